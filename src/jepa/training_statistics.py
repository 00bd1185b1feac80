"""Cheap statistics that tell a run which learns from one that collapses. The loss alone does not: a collapse lowers it.

Legend: B samples, N tokens, M tokens of a mask, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

NamedModule = tuple[str, nn.Module]
FEATURE_STATS = ("feature_std", "between_clip_std", "effective_rank", "effective_rank_centered", "between_clip_cosine")


@torch.no_grad()
def feature_stats(x_BND: Tensor) -> dict[str, float]:
    """How spread out the features of a batch are. One synchronisation with the device.

    feature_std: standard deviation over all tokens and samples, averaged over the dimensions; 0 is a full collapse.
    between_clip_std: the same between samples at the same position, root mean square over positions and dimensions.
        Features that only say where a token is have a good feature_std and a between_clip_std of 0. NaN for one sample.
    effective_rank: RankMe (Garrido et al. 2023), the exponential of the entropy of the singular values of the (B*N, D)
        matrix normalised to sum 1; from 1 (all tokens on one line) to min(B*N, D).
    effective_rank_centered: the same after subtracting the mean token, which may otherwise dominate; 1 when nothing is
        left but the mean.
    between_clip_cosine: mean cosine similarity between the mean features of different samples; 1 when samples look
        alike. NaN with one sample.

    Returns:
        The five statistics; all NaN where the features are not finite.

    Raises:
        ValueError: x is not (B, N, D) or is empty.
    """
    if x_BND.dim() != 3 or x_BND.numel() == 0:
        raise ValueError(f"feature_stats needs features (B, N, D), got shape {tuple(x_BND.shape)}")
    tokens = x_BND.detach().flatten(0, 1).double()
    mean = tokens.mean(0)
    centered = tokens - mean
    # Singular values through the D x D products: N is far larger than D. Double precision keeps the square roots clean.
    products = torch.stack([tokens.T @ tokens, centered.T @ centered])
    products = torch.nan_to_num(products, nan=0.0, posinf=0.0, neginf=0.0)  # eigvalsh would raise; masked again below
    ranks = _effective_rank(torch.linalg.eigvalsh(products).clamp_min(0.0).sqrt())
    std = centered.square().mean(0).sqrt().mean()
    between = x_BND.detach().double().var(0).mean().sqrt() if len(x_BND) > 1 else torch.full_like(std, math.nan)
    statistics = torch.stack([std, between, ranks[0], ranks[1], _mean_cosine(x_BND.detach().double().mean(1))])
    values = statistics.tolist()
    if not math.isfinite(values[0]):
        values = [math.nan] * len(values)
    return dict(zip(FEATURE_STATS, values))


def _effective_rank(singular_values_KD: Tensor) -> Tensor:
    """exp(entropy) of each row normalised to sum 1: (K,); 1 for a row of zeros."""
    largest = singular_values_KD.amax(1, keepdim=True)
    # what rounding leaves of a zero: the square root of double precision's epsilon
    values = torch.where(singular_values_KD > 1e-7 * largest, singular_values_KD, 0.0)
    share = values / values.sum(1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny)
    return torch.special.entr(share).sum(1).exp()


def _mean_cosine(features_BD: Tensor) -> Tensor:
    """Mean of the cosine similarities of all pairs of different rows."""
    count = len(features_BD)
    unit = nn.functional.normalize(features_BD, dim=1)
    # |sum of unit vectors|^2 is the sum over all pairs, of which `count` are a vector with itself
    pairs = unit.sum(0).square().sum() - unit.square().sum()
    return pairs / (count * (count - 1)) if count > 1 else torch.full_like(pairs, math.nan)


@torch.no_grad()
def grad_norms(named_modules: Iterable[NamedModule]) -> dict[str, float]:
    """L2 norm of all gradients of each module, by name. One synchronisation with the device for all of them.

    Call it after unscaling and before zeroing. Modules without any gradient are left out, so that a zero in the result
    is a gradient that is zero. NaN and inf come through.
    """
    norms: dict[str, Tensor] = {}
    for name, module in named_modules:
        grads = [p.grad for p in module.parameters() if p.grad is not None]
        if grads:
            norms[name] = torch.stack([norm.float() for norm in torch._foreach_norm(grads)]).norm()
    return dict(zip(norms, torch.stack(list(norms.values())).tolist())) if norms else {}


@torch.no_grad()
def weight_copies(named_modules: Iterable[NamedModule]) -> dict[str, list[Tensor]]:
    """Copies of each module's trainable parameters, for `update_ratios`."""
    return {
        name: [p.detach().clone() for p in module.parameters() if p.requires_grad] for name, module in named_modules
    }


@torch.no_grad()
def update_ratios(
    before: Mapping[str, Sequence[Tensor]], named_modules: Iterable[tuple[str, nn.Module]]
) -> dict[str, float]:
    """Norm of each module's last change over the norm of its parameters. One synchronisation with the device.

    Around 1e-3 is usual; orders below it a module does not learn, orders above it it is thrown about.
    """
    ratios = {}
    for name, module in named_modules:
        now = [p.detach() for p in module.parameters() if p.requires_grad]
        if now:
            change = torch.stack(torch._foreach_norm(torch._foreach_sub(now, list(before[name])))).norm()
            ratios[name] = change / torch.stack(torch._foreach_norm(list(before[name]))).norm().clamp_min(1e-12)
    return dict(zip(ratios, torch.stack(list(ratios.values())).tolist())) if ratios else {}


@torch.no_grad()
def state_space_stats(mixers: Iterable[tuple[str, Any]]) -> dict[str, float]:
    """Step sizes and decay rates of Mamba mixers: the medians over channels (and states) and directions.

    `dt/<name>`: softplus(dt_proj.bias), the step at zero input; initialised between 0.001 and 0.1.
    `A/<name>`: exp(A_log), the decay rate; initialised to 1 ... N.
    """
    statistics: dict[str, Tensor] = {}
    for name, mixer in mixers:
        steps = [nn.functional.softplus(getattr(mixer, f"dt_proj{s}").bias.float()) for s in mixer.suffixes]
        rates = [getattr(mixer, f"A{s}_log").float().exp().flatten() for s in mixer.suffixes]
        statistics[f"dt/{name}"], statistics[f"A/{name}"] = torch.cat(steps).median(), torch.cat(rates).median()
    return dict(zip(statistics, torch.stack(list(statistics.values())).tolist())) if statistics else {}


@torch.no_grad()
def loss_by_frame(
    predictions: Sequence[Tensor],
    targets: Sequence[Tensor],
    masks: Sequence[Tensor],
    tokens_per_frame: int,
    frames: int,
) -> list[float]:
    """Mean absolute error of the predicted tokens of each time index; NaN where none was predicted.

    Args:
        predictions, targets: one (B, M, D) per mask.
        masks: one (B, M) per mask, indices of the tokens in raster order, time slowest.
        tokens_per_frame: tokens of one time index.
        frames: number of time indices (tubelets).
    """
    total = torch.zeros(frames, device=predictions[0].device)
    count = torch.zeros_like(total)
    for z_BMD, h_BMD, mask_BM in zip(predictions, targets, masks, strict=True):
        error_BM = (z_BMD.float() - h_BMD.float()).abs().mean(-1)
        index = mask_BM.flatten() // tokens_per_frame
        total.index_add_(0, index, error_BM.flatten())
        count.index_add_(0, index, torch.ones_like(error_BM).flatten())
    return (total / count).tolist()
