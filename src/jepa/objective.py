"""The objective: predict the target encoder's features where the context encoder saw nothing.

Bardes et al. 2024, equation 1.
Legend: B batch, C channels, T H W clip, N tokens, K context tokens, M target tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from src.jepa.target_norm import normalize_targets
from src.models.utils.multimask import MultiMaskWrapper, PredictorMultiMaskWrapper


class VideoJEPA(nn.Module):
    """Encoder and predictor as the one trained module: (B, C, T, H, W) and masks -> predictions [(B, M_i, D)]."""

    def __init__(self, encoder: nn.Module, predictor: nn.Module) -> None:
        super().__init__()
        self.encoder = MultiMaskWrapper(encoder)
        self.predictor = PredictorMultiMaskWrapper(predictor)

    def forward(
        self, clips: torch.Tensor, masks_enc: list[torch.Tensor], masks_pred: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Clips (B, C, T, H, W), context (B, K_i) and target indices (B, M_i) of each mask -> [(B, M_i, D)]."""
        return self.predictor(self.encoder(clips, masks_enc), None, masks_enc, masks_pred)


class Losses(NamedTuple):
    """loss = jepa + reg_coeff * reg; scalars."""

    loss: torch.Tensor
    jepa: torch.Tensor
    reg: torch.Tensor


@torch.no_grad()
def make_targets(
    target_encoder: nn.Module,
    clips: torch.Tensor,
    masks_pred: list[torch.Tensor],
    norm: str = "layer",
    clip_mean_weight: float = 0.0,
) -> list[torch.Tensor]:
    """Target features of the masked tokens, every token of the clip encoded -> [(B, M_i, D)].

    `norm` and `clip_mean_weight` are those of src.jepa.target_norm.normalize_targets.
    """
    return normalize_targets(target_encoder(clips), masks_pred, norm, clip_mean_weight)


def jepa_losses(
    predictions: list[torch.Tensor],
    targets: list[torch.Tensor],
    loss_exp: float = 1.0,
    reg_coeff: float = 0.0,
    shrink: bool = False,
) -> Losses:
    """|z - h|^p / p averaged over tokens and masks, plus reg_coeff times the variance hinge, in float32.

    The hinge is mean(relu(1 - std)), std over the predicted tokens of a clip, averaged over masks: it pushes the
    variance up. With `shrink` it is mean(std), as the earlier attempt's report prints it, which pulls it down.
    """
    predictions = [z.float() for z in predictions]
    distances = [((z - h).abs() ** loss_exp).mean() / loss_exp for z, h in zip(predictions, targets)]
    jepa = torch.stack(distances).mean()
    std_BD = torch.stack([(z.var(dim=1) + 1e-4).sqrt() for z in predictions]).mean(dim=0)
    reg = std_BD.mean() if shrink else F.relu(1.0 - std_BD).mean()
    return Losses(jepa + reg_coeff * reg if reg_coeff else jepa, jepa, reg)


@torch.no_grad()
def ema_update(
    target: Iterable[nn.Parameter],
    online: Iterable[nn.Parameter],
    momentum: float,
    applied: torch.Tensor | None = None,
) -> None:
    """target <- momentum * target + (1 - momentum) * online, in place, for all parameters together.

    Where `applied`, a bool (,) on their device, is given and false, target stays as it is; the host does not read it.
    """
    old: list[torch.Tensor] = list(target)
    new: list[torch.Tensor] = list(online)
    if applied is None:
        torch._foreach_lerp_(old, new, 1.0 - momentum)
        return
    changes = list(torch._foreach_sub(new, old))  # lerp takes no weight that lies on the device
    torch._foreach_mul_(changes, (1.0 - momentum) * applied)
    torch._foreach_add_(old, changes)
