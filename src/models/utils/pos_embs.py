"""Positions of a grid of tokens. Legend: B batch, T H W token grid (time, rows, columns), N = T*H*W, D width.

Tokens are in raster order, time slowest: index = (t * H + h) * W + w.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from src.utils.errors import UserError
from src.utils.token_grid import Grid


def _sincos(dim: int, positions_N: torch.Tensor) -> torch.Tensor:
    """Sine-cosine code of 1-D positions (Vaswani et al. 2017, section 3.5), sines first -> (N, dim), float64."""
    frequencies = 1.0 / 10000 ** (torch.arange(dim // 2, dtype=torch.float64) / (dim / 2.0))
    angles = positions_N.to(torch.float64)[:, None] * frequencies[None, :]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_pos_embed_3d(dim: int, grid: Grid, uniform_power: bool = False) -> torch.Tensor:
    """Fixed 3-D positions as in V-JEPA -> (1, N, dim) float32; channels are [time, row, column].

    uniform_power gives each axis a third of the channels; otherwise time takes a half, row and column a quarter each.
    """
    if dim % 2:
        raise UserError(f"sin-cos positions need an even width, not {dim}")
    if uniform_power:
        dim_t = dim_h = dim_w = math.ceil(dim / 6) * 2
    else:
        dim_t, dim_h, dim_w = dim // 2, dim // 4, dim // 4
        if dim % 8:
            raise UserError(f"sin-cos positions without uniform_power need a width divisible by 8, not {dim}")
    codes = [_sincos(d, torch.arange(n)).float() for d, n in zip((dim_t, dim_h, dim_w), grid)]
    places = torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij")
    return torch.cat([code[place.flatten()] for code, place in zip(codes, places)], dim=1)[None, :, :dim]


def interpolate_pos_embed(pos_1ND: torch.Tensor, old: Grid, new: Grid) -> torch.Tensor:
    """Positions made for grid `old`, resampled (trilinear) for grid `new` -> (1, new.size, D)."""
    if old == new:
        return pos_1ND
    dim = pos_1ND.shape[-1]
    volume = pos_1ND.reshape(1, *old, dim).permute(0, 4, 1, 2, 3)
    volume = F.interpolate(volume, size=tuple(new), mode="trilinear")  # of scale factors, 15/13 * 13 is 14
    return volume.permute(0, 2, 3, 4, 1).reshape(1, new.size, dim)


def resample_plane(pos_1PD: torch.Tensor, old: Grid, new: Grid) -> torch.Tensor:
    """Learned positions of a frame's patches, resampled (bicubic, as VideoMamba does) -> (1, new.h * new.w, D)."""
    if old[1:] == new[1:]:
        return pos_1PD
    plane = pos_1PD.reshape(1, old.h, old.w, -1).permute(0, 3, 1, 2)
    plane = F.interpolate(plane, size=(new.h, new.w), mode="bicubic", align_corners=False)
    return plane.flatten(2).transpose(1, 2)


def resample_time(pos_1TD: torch.Tensor, frames: int) -> torch.Tensor:
    """Learned positions of a clip's tubelets, resampled (linear, as VideoMamba does) -> (1, frames, D)."""
    if pos_1TD.shape[1] == frames:
        return pos_1TD
    return F.interpolate(pos_1TD.transpose(1, 2), size=frames, mode="linear").transpose(1, 2)
