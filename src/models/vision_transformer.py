"""ViT video encoder (Dosovitskiy et al. 2021; Bardes et al. 2024); V-JEPA's names of constructor and parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn

from src.models.backbone import ClipOptions, LayerNorm, VideoEncoder, attention_trunk

if TYPE_CHECKING:
    from typing_extensions import Unpack


class VisionTransformer(VideoEncoder):
    """ViT over tubelets. forward: (B, C, T, H, W) -> (B, N, D), or (B, K, D) under masks (B, K).

    `clip`: img_size, patch_size, num_frames, tubelet_size, in_chans, uniform_power, as in VideoEncoder.
    """

    def __init__(
        self,
        *,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        norm_layer: Callable[..., nn.LayerNorm] = LayerNorm,
        drop_path_rate: float = 0.0,
        use_sdpa: bool = True,
        **clip: Unpack[ClipOptions],
    ) -> None:
        super().__init__(embed_dim=embed_dim, **clip)
        self.num_heads = num_heads
        self.add_sincos()
        self.blocks, self.norm = attention_trunk(
            embed_dim, depth, num_heads, mlp_ratio, qkv_bias, drop_path_rate, norm_layer, use_sdpa
        )

    def run_trunk(self, x_BND: torch.Tensor) -> torch.Tensor:
        """Embedded tokens (B, N, D) through blocks and final norm -> (B, N, D)."""
        for block in self.blocks:
            x_BND = block(x_BND)
        return self.norm(x_BND)
