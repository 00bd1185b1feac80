"""One forward pass per mask configuration. Legend: B batch, N tokens, K kept tokens, D width."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class MultiMaskWrapper(nn.Module):
    """Encoder over several masks: clip (B, C, T, H, W), masks [(B, K_i)] -> [(B, K_i, D)]; without masks (B, N, D)."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone: Any = backbone  # a VideoEncoder

    def forward(
        self, x_BCTHW: torch.Tensor, masks: torch.Tensor | list[torch.Tensor] | None = None
    ) -> torch.Tensor | list[torch.Tensor]:
        """Clip (B, C, T, H, W) -> tokens (B, K_i, D) for each mask (B, K_i); all of them, (B, N, D), without masks."""
        if masks is None:
            return self.backbone(x_BCTHW)
        masks = masks if isinstance(masks, list) else [masks]
        tokens = self.backbone.embed(x_BCTHW)  # once: only what follows depends on the mask
        grid = self.backbone.grid_of(x_BCTHW)
        return [self.backbone.encode(tokens, mask, grid) for mask in masks]


class PredictorMultiMaskWrapper(nn.Module):
    """Predictor over several masks: mask i uses mask token i. Lists in, a list of (B, K_pred_i, D) out."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(
        self,
        ctxt: torch.Tensor | list[torch.Tensor],
        tgt: torch.Tensor | list[torch.Tensor] | None,
        masks_ctxt: torch.Tensor | list[torch.Tensor],
        masks_tgt: torch.Tensor | list[torch.Tensor],
    ) -> list[torch.Tensor]:
        """Context (B, K_i, D) for each mask -> predictions (B, M_i, D) for each mask. `tgt` is not read."""
        ctxt, masks_ctxt, masks_tgt = (x if isinstance(x, list) else [x] for x in (ctxt, masks_ctxt, masks_tgt))
        targets = tgt if isinstance(tgt, list) else [tgt] * len(ctxt)
        return [
            self.backbone(z, h, mc, mt, mask_index=i)
            for i, (z, h, mc, mt) in enumerate(zip(ctxt, targets, masks_ctxt, masks_tgt))
        ]
