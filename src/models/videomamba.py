"""VideoMamba encoder (Li et al. 2024), with VideoMamba's parameter names.

Legend: B batch, C channels, T H W clip, N tokens in raster order, K kept tokens, D width, P patches per frame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from src.masks.utils import apply_masks
from src.models.backbone import ClipOptions, VideoEncoder, mamba_trunk
from src.models.utils.pos_embs import resample_plane, resample_time
from src.utils.errors import UserError
from src.utils.token_grid import Grid

if TYPE_CHECKING:
    from typing_extensions import Unpack


class VideoMamba(VideoEncoder):
    """Bidirectional selective state-space blocks over tubelets in raster order (space first, then time).

    forward: (B, C, T, H, W) -> (B, N, D), or (B, K, D) under masks (B, K), without the class token.
    `scan_order`: what the blocks scan along first, the places of a frame ('spatial', raster order) or time
    ('temporal'); tokens come in and go out in raster order either way.
    `pos_embed`: 'sincos' (fixed, 3-D), 'learned' (VideoMamba's: per patch plus per tubelet) or 'none'.
    `cls_token` puts a class token first in the sequence; `num_classes` adds the head that `logits` reads it with.
    `backend`: who computes, 'auto' or a name of docs/backends.md. 'reference' is PyTorch's operations throughout: slow,
    but with second derivatives, forward mode and torch.func, which compiled operators refuse.
    `clip`: img_size, patch_size, num_frames, tubelet_size, in_chans, uniform_power, as in VideoEncoder.
    """

    blocks_name, norm_name = "layers", "norm_f"

    def __init__(
        self,
        *,
        embed_dim: int = 192,
        depth: int = 24,
        pos_embed: Literal["sincos", "learned", "none"] = "sincos",
        cls_token: bool = False,
        num_classes: int = 0,
        bidirectional: bool = True,
        d_state: int = 16,
        drop_path_rate: float = 0.0,
        halve_directions: bool = False,
        scan_order: Literal["spatial", "temporal"] = "spatial",
        backend: str = "auto",
        **clip: Unpack[ClipOptions],
    ) -> None:
        super().__init__(embed_dim=embed_dim, **clip)
        patches = self.grid.area
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if cls_token else None
        if pos_embed == "sincos":
            self.add_sincos()
        elif pos_embed == "learned":
            self.pos_embed = nn.Parameter(0.02 * torch.randn(1, patches + int(cls_token), embed_dim))
            self.temporal_pos_embedding = nn.Parameter(torch.zeros(1, self.grid.t, embed_dim))
        elif pos_embed != "none":
            raise UserError(f"pos_embed '{pos_embed}' is not known: choose sincos, learned or none")
        self.pos_kind = pos_embed
        if scan_order not in ("spatial", "temporal"):
            raise UserError(f"scan_order '{scan_order}' is not known: choose spatial or temporal")
        self.scan_order = scan_order
        self.non_tensor_config = {"scan_order": scan_order, "halve_directions": halve_directions}
        self.layers, self.norm_f = mamba_trunk(
            embed_dim,
            depth,
            drop_path_rate,
            d_state=d_state,
            bidirectional=bidirectional,
            halve_directions=halve_directions,
            backend=backend,
        )
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()

    def positions(self, grid: Grid) -> torch.Tensor:
        """Positions for `grid` -> (1, N, D), resampled if the model was made for another grid."""
        if self.pos_kind == "none":
            return torch.zeros((), device=self.patch_embed.proj.weight.device)
        if self.pos_kind == "sincos":
            return super().positions(grid)
        space_1PD = resample_plane(self.pos_embed[:, -self.grid.area :], self.grid, grid)
        time_1TD = resample_time(self.temporal_pos_embedding, grid.t)
        return (time_1TD[:, :, None] + space_1PD[:, None]).flatten(1, 2)

    def encode(
        self,
        x_BND: torch.Tensor,
        masks: torch.Tensor | list[torch.Tensor] | None = None,
        grid: Grid | None = None,
    ) -> torch.Tensor:
        """Embedded tokens (B, N, D), kept only at `masks` if given -> (B, N or K, D), in the order they came in.

        `grid` is that of the clip, where it has another size than the one the encoder was made for.
        """
        if masks is None:
            return self.run_trunk(x_BND, grid=grid)
        index_BK = torch.cat(masks) if isinstance(masks, list) else masks
        return self.run_trunk(apply_masks(x_BND, masks), index_BK, grid)

    def run_trunk(
        self, x_BND: torch.Tensor, index_BK: torch.Tensor | None = None, grid: Grid | None = None
    ) -> torch.Tensor:
        """Embedded tokens (B, N, D), those at `index_BK` if some are left out -> (B, N, D), no class token."""
        tokens = self._all_tokens(x_BND, grid or self.grid, index_BK)
        return tokens if self.cls_token is None else tokens[:, 1:]

    def scan_order_of(self, grid: Grid, index_BK: torch.Tensor | None = None) -> torch.Tensor | None:
        """Time first: the tokens of each place of the frame, one after another in time, (B or 1, K). None: raster."""
        if self.scan_order == "spatial":
            return None
        if index_BK is None:
            index_BK = torch.arange(grid.size, device=self.patch_embed.proj.weight.device)[None]
        area = grid.area
        return (index_BK % area * grid.t + index_BK // area).argsort(dim=1)

    def forward_features(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Every token after the final norm, the class token first if there is one -> (B, N or 1 + N, D)."""
        return self._all_tokens(self.embed(x_BCTHW), self.grid_of(x_BCTHW))

    def logits(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Classification from the class token, or from the mean token without one -> (B, num_classes)."""
        tokens = self.forward_features(x_BCTHW)
        return self.head(tokens.mean(dim=1) if self.cls_token is None else tokens[:, 0])

    def _all_tokens(self, x_BND: torch.Tensor, grid: Grid, index_BK: torch.Tensor | None = None) -> torch.Tensor:
        """Tokens of a clip of `grid` through the blocks; `index_BK` says which they are where some are left out."""
        order_BK = self.scan_order_of(grid, index_BK)
        if order_BK is not None:
            x_BND = x_BND.take_along_dim(order_BK[..., None], dim=1)
        if self.cls_token is not None:
            cls: torch.Tensor = self.cls_token
            if self.pos_kind == "learned":
                cls = cls + self.pos_embed[:, :1]
            x_BND = torch.cat([cls.expand(len(x_BND), -1, -1), x_BND], dim=1)
        for layer in self.layers:
            x_BND = layer(x_BND)
        x_BND = self.norm_f(x_BND)
        if order_BK is None:
            return x_BND
        first = x_BND.shape[1] - order_BK.shape[1]  # 1 with a class token
        back_BK1 = order_BK.argsort(dim=1)[..., None]
        return torch.cat([x_BND[:, :first], x_BND[:, first:].take_along_dim(back_BK1, dim=1)], dim=1)
