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

from src.masks.utils import apply_masks
from src.models.utils.multimask import MultiMaskWrapper, PredictorMultiMaskWrapper

SHRINKAGE = 0.1  # of the covariance that whitening divides by: directions of next to no variance stay small


class VideoJEPA(nn.Module):
    """Encoder and predictor as the one trained module: (B, C, T, H, W) and masks -> predictions [(B, M_i, D)]."""

    def __init__(self, encoder: nn.Module, predictor: nn.Module) -> None:
        super().__init__()
        self.encoder = MultiMaskWrapper(encoder)
        self.predictor = PredictorMultiMaskWrapper(predictor)

    def forward(
        self, clips: torch.Tensor, masks_enc: list[torch.Tensor], masks_pred: list[torch.Tensor]
    ) -> list[torch.Tensor]:
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
    pooled: float = 0.0,
) -> list[torch.Tensor]:
    """Target features of the hidden tokens, every token of the clip encoded -> [(B, M_i, D)]; see below."""
    return normalised_targets(target_encoder(clips), masks_pred, norm, pooled)


@torch.no_grad()
def normalised_targets(
    h_BND: torch.Tensor,
    masks_pred: list[torch.Tensor],
    norm: str = "layer",
    pooled: float = 0.0,
    like_BND: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """The targets of `make_targets` from the target encoder's output (B, N, D) -> [(B, M_i, D)], float32.

    norm "layer", V-JEPA's: layer normalisation without affine, each token by itself. What says where a token is stays
    in it, and is the first thing that a predictor gets right. norm "batch": the mean over the batch at the same place
    is taken away, which leaves what differs between clips, and each dimension has variance 1 over the batch. norm
    "whiten": dimensions are decorrelated besides (Ermolov et al. 2021, there of embeddings), so that what all of them
    say counts as one and an encoder gains nothing by saying it again.

    `pooled` is the share of each target that is the mean of the clip's hidden tokens, standardised over the batch too:
    what distant tokens have in common stays in the mean, and what each has for itself is averaged out.

    `like_BND` is the batch that means and variances over the batch are of, where it is not `h_BND` itself: other
    futures are then measured by what the true ones were.
    """
    h_BND, like_BND = h_BND.float(), None if like_BND is None else like_BND.float()
    if norm == "layer":
        h_BND = F.layer_norm(h_BND, (h_BND.shape[-1],))
    else:
        h_BND = (_whitened if norm == "whiten" else _standardised)(h_BND, like_BND)
    targets = apply_masks(h_BND, masks_pred, concat=False)
    if not pooled:
        return targets
    like = targets if like_BND is None else normalised_targets(like_BND, masks_pred, norm)
    pools = [_standardised(h.mean(dim=1, keepdim=True), x.mean(dim=1, keepdim=True)) for h, x in zip(targets, like)]
    return [torch.lerp(h, pool.expand_as(h), pooled) for h, pool in zip(targets, pools)]


def _standardised(x_BND: torch.Tensor, like_BND: torch.Tensor | None = None) -> torch.Tensor:
    """Mean 0 over the batch (or `like_BND`) at each place, variance 1 over batch and places in each dimension."""
    like_BND = x_BND if like_BND is None else like_BND
    mean = like_BND.mean(dim=0, keepdim=True)
    return (x_BND - mean) * ((like_BND - mean).square().mean(dim=(0, 1), keepdim=True) + 1e-6).rsqrt()


def _whitened(x_BND: torch.Tensor, like_BND: torch.Tensor | None = None) -> torch.Tensor:
    """`_standardised`, then turned by the inverse root of its covariance over batch and places, and scaled anew.

    The root is the symmetric one, which keeps each dimension as near to what it was as can be.
    """
    like_BND = x_BND if like_BND is None else like_BND
    x_BND, like_BND = _standardised(x_BND, like_BND), _standardised(like_BND)
    flat = like_BND.flatten(0, 1)
    with torch.autocast(x_BND.device.type, enabled=False):  # bfloat16's digits are too few for a covariance
        # Where features are not finite the targets are not either, and the loss says so; eigh would raise first.
        covariance = (flat.T @ flat / len(flat)).nan_to_num(0.0, 0.0, 0.0)
        identity = torch.eye(len(covariance), device=covariance.device)
        values, vectors = torch.linalg.eigh(torch.lerp(covariance, identity, SHRINKAGE))
        turn = vectors * values.rsqrt() @ vectors.T
        return _standardised(x_BND @ turn, like_BND @ turn)


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
def ema_update(target: Iterable[nn.Parameter], online: Iterable[nn.Parameter], momentum: float) -> None:
    """target <- momentum * target + (1 - momentum) * online, in place, one fused call for all parameters."""
    torch._foreach_lerp_(list(target), list(online), 1.0 - momentum)
