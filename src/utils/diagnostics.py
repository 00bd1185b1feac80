"""Cheap figures that tell a healthy run from a collapsing one. Loss alone does not: a collapse lowers it.

Legend: B samples, N tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

FEATURE_STATS = ("feature_std", "effective_rank", "effective_rank_centered", "sample_cosine")


@torch.no_grad()
def feature_stats(x_BND: Tensor) -> dict[str, float]:
    """How spread out the features of a batch are. One synchronisation with the device.

    feature_std: standard deviation over all tokens and samples, averaged over the dimensions; 0 is a full collapse.
    effective_rank: RankMe (Garrido et al. 2023), the exponential of the entropy of the singular values of the (B*N, D)
        matrix normalised to sum 1; from 1 (all tokens on one line) to min(B*N, D).
    effective_rank_centered: the same after subtracting the mean token. A mean that dominates hides the spread from the
        figure above, and the other way round; 1 when nothing is left but the mean.
    sample_cosine: mean cosine similarity between the mean features of different samples; 1 when samples look alike.
        NaN with one sample.

    Returns:
        The four figures; all NaN where the features are not finite.

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
    figures = torch.stack([std, ranks[0], ranks[1], _mean_cosine(x_BND.detach().double().mean(1))])
    values = figures.tolist()
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
def grad_norms(named_modules: Iterable[tuple[str, nn.Module]]) -> dict[str, float]:
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
