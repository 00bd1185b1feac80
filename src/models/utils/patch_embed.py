"""A clip cut into tubelets, each projected to one token."""

from __future__ import annotations

import torch
from torch import nn


def inflate(weight: torch.Tensor, tubelet_size: int) -> torch.Tensor:
    """Kernel of images (D, C, h, w) or of short tubelets (D, C, t, h, w) -> of longer ones (D, C, tubelet_size, h, w).

    Repeated over time and divided by the number of repetitions (Carreira & Zisserman 2017, section 2.4.1), so that a
    clip that stands still gives what the image gave. Raises ValueError if tubelet_size is no multiple of t.
    """
    weight = weight.unsqueeze(2) if weight.dim() == 4 else weight
    times, rest = divmod(tubelet_size, weight.shape[2])
    if rest or not times:
        raise ValueError(f"a kernel over {weight.shape[2]} frames cannot be repeated to span {tubelet_size}")
    return weight.repeat(1, 1, times, 1, 1) / times


class PatchEmbed3D(nn.Module):
    """Tubelets of (tubelet_size, patch_size, patch_size) pixels -> tokens, by a 3-D convolution with that stride.

    forward: (B, C, T, H, W) float -> (B, N, D), raster order, time slowest.
    """

    def __init__(self, patch_size: int = 16, tubelet_size: int = 2, in_chans: int = 3, embed_dim: int = 768) -> None:
        super().__init__()
        size = (tubelet_size, patch_size, patch_size)
        self.proj = nn.Conv3d(in_chans, embed_dim, kernel_size=size, stride=size)
        # Unit-variance pixels give unit-variance tokens, beside sin-cos positions of variance 1/2. With PyTorch's own
        # initialisation, a third of that variance, positions dominate what the encoder sees.
        nn.init.normal_(self.proj.weight, std=self.proj.weight[0].numel() ** -0.5)
        assert self.proj.bias is not None  # it has one unless told otherwise
        nn.init.zeros_(self.proj.bias)

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """(B, C, T, H, W) -> (B, N, D)."""
        B, C, T, H, W = x_BCTHW.shape
        t, h, w = self.proj.kernel_size
        # Stride equals kernel, so the convolution is one matrix product over the pixels of each tubelet.
        tubelets = x_BCTHW.reshape(B, C, T // t, t, H // h, h, W // w, w).permute(0, 2, 4, 6, 1, 3, 5, 7)
        tubelets = tubelets.reshape(B, (T // t) * (H // h) * (W // w), C * t * h * w)
        return nn.functional.linear(tubelets, self.proj.weight.flatten(1), self.proj.bias)
