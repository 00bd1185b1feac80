"""Small pictures of masks and features, to be shown while training. uint8 arrays (H, W, 3).

Legend: B clips, C channels, T frames, H W pixels, N = t h w tokens in raster order, K tokens of a mask, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_SIDE = 64  # pixels of a frame, about: larger ones are thinned out
_TARGET, _UNSEEN = np.array([209, 102, 27]), np.array([226, 229, 233])  # orange, pale grey


def mask_picture(
    clip_CTHW: Tensor, masks_enc: Sequence[Tensor], masks_pred: Sequence[Tensor], grid: tuple[int, int, int]
) -> np.ndarray:
    """A clip over a row for each mask set: context as it is, targets tinted, what is neither grey.

    Args:
        clip_CTHW: uint8.
        masks_enc, masks_pred: for each mask set the indices (K,) of context and targets.
        grid: (t, h, w).
    """
    frames = _frames(clip_CTHW, grid[0])
    tinted = (0.45 * frames + 0.55 * _TARGET).astype(np.uint8)
    rows = [frames]
    for context_K, targets_K in zip(masks_enc, masks_pred, strict=True):
        seen, hidden = (_pixels(_flags(mask, grid), frames.shape[1:3])[..., None] for mask in (context_K, targets_K))
        rows.append(np.where(seen, frames, np.where(hidden, tinted, _UNSEEN)).astype(np.uint8))
    return _sheet(rows)


def feature_picture(
    clips_BCTHW: Tensor, features_BND: Tensor, grid: tuple[int, int, int], clips: int = 3
) -> np.ndarray:
    """The first clips, each over its tokens' features, coloured by `principal_colors` over the whole batch."""
    colors = principal_colors(features_BND)[0].reshape(-1, *grid, 3)
    rows = []
    for clip, color in zip(clips_BCTHW[:clips], colors):
        frames = _frames(clip, grid[0])
        rows += [frames, _pixels(color, frames.shape[1:3])]
    return _sheet(rows)


def principal_colors(x_BND: Tensor) -> tuple[np.ndarray, float]:
    """RGB uint8 (B, N, 3) from the three main directions of the features, and the share of their variance, 0 to 1.

    Each direction is scaled to its 1st to 99th percentile over all tokens.
    """
    x = x_BND.detach().cpu().flatten(0, 1).double()
    x = x - x.mean(0)
    variances, directions = torch.linalg.eigh(x.T @ x)  # ascending; D x D, for N is far larger
    # A direction's sign is arbitrary: the same features are to give the same colours.
    directions = directions * directions.gather(0, directions.abs().argmax(0, keepdim=True)).sign()
    places = (x @ directions[:, -3:].flip(1)).numpy()
    low, high = np.percentile(places, (1, 99), axis=0)
    colors = np.clip((places - low) / np.maximum(high - low, 1e-12), 0, 1)
    share = float(variances[-3:].sum() / variances.sum().clamp_min(1e-12))
    colors = np.nan_to_num(colors)  # black where features are not finite
    return (255 * colors).round().astype(np.uint8).reshape(*x_BND.shape[:2], 3), share


def _frames(clip_CTHW: Tensor, t: int) -> np.ndarray:
    """The first frame of each tubelet, thinned out: (t, H, W, 3)."""
    every = max(clip_CTHW.shape[2] // _SIDE, 1)
    return clip_CTHW[:, :: clip_CTHW.shape[1] // t, ::every, ::every].permute(1, 2, 3, 0).cpu().numpy()


def _flags(mask_K: Tensor, grid: tuple[int, int, int]) -> np.ndarray:
    """Indices -> bool (t, h, w)."""
    flags = np.zeros(int(np.prod(grid)), dtype=bool)
    flags[mask_K.cpu().numpy()] = True
    return flags.reshape(grid)


def _pixels(tokens: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A value for each token (t, h, w, ...) -> one for each pixel (t, H, W, ...)."""
    rows, columns = (np.arange(n) * tokens.shape[i] // n for i, n in enumerate(size, start=1))
    return tokens[:, rows][:, :, columns]


def _sheet(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows (t, H, W, 3) below each other, their moments side by side, two white pixels between."""
    padded = [np.pad(row, ((0, 0), (0, 2), (0, 2), (0, 0)), constant_values=255) for row in rows]
    return np.concatenate([np.concatenate(list(row), axis=1) for row in padded], axis=0)
