"""How the target encoder's features become targets: normalisation, and the share of the clip's mean in them.

Legend: B batch, N tokens, M masked tokens of one mask, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from src.masks.utils import apply_masks

SHRINKAGE = 0.1  # of the covariance towards the identity: directions of next to no variance stay small


@torch.no_grad()
def normalize_targets(
    h_BND: torch.Tensor,
    masks_pred: list[torch.Tensor],
    norm: str = "layer",
    clip_mean_weight: float = 0.0,
    like_BND: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """Normalise the target encoder's output (B, N, D) and gather it at the masked tokens -> [(B, M_i, D)], float32.

    Args:
        norm: 'layer', V-JEPA's: layer normalisation without affine, each token by itself. A token's position stays in
            it, and is the first thing that a predictor gets right.
            'batch_standardize': the mean over the batch at the same position is subtracted, which leaves what differs
            between clips, and each dimension gets variance 1 over the batch.
            'zca_whiten': dimensions are decorrelated besides (Ermolov et al. 2021, there of embeddings), so that an
            encoder gains nothing by repeating one signal in many dimensions.
        clip_mean_weight: share of each target that is the mean over the masked tokens of its clip, standardised over
            the batch too. The mean keeps what distant tokens have in common and averages out what is local.
        like_BND: the batch whose mean and variance are used, where it is not `h_BND` itself. Other candidates for a
            future are normalised by the statistics of the true ones.
    """
    h_BND, like_BND = h_BND.float(), None if like_BND is None else like_BND.float()
    if norm == "layer":
        h_BND = F.layer_norm(h_BND, (h_BND.shape[-1],))
    else:
        h_BND = (zca_whiten if norm == "zca_whiten" else batch_standardize)(h_BND, like_BND)
    targets = apply_masks(h_BND, masks_pred, concat=False)
    if not clip_mean_weight:
        return targets
    like = targets if like_BND is None else normalize_targets(like_BND, masks_pred, norm)
    means = [batch_standardize(h.mean(dim=1, keepdim=True), x.mean(dim=1, keepdim=True)) for h, x in zip(targets, like)]
    return [torch.lerp(h, mean.expand_as(h), clip_mean_weight) for h, mean in zip(targets, means)]


def batch_standardize(x_BND: torch.Tensor, like_BND: torch.Tensor | None = None) -> torch.Tensor:
    """Mean 0 over the batch (or `like_BND`) at each position; variance 1 over batch and positions in each dimension."""
    like_BND = x_BND if like_BND is None else like_BND
    mean = like_BND.mean(dim=0, keepdim=True)
    return (x_BND - mean) * ((like_BND - mean).square().mean(dim=(0, 1), keepdim=True) + 1e-6).rsqrt()


def zca_whiten(x_BND: torch.Tensor, like_BND: torch.Tensor | None = None) -> torch.Tensor:
    """Batch-standardise, multiply by the inverse square root of the covariance over batch and positions, standardise.

    The root is the symmetric one (ZCA, Bell & Sejnowski 1997), which changes each dimension as little as can be.
    """
    like_BND = x_BND if like_BND is None else like_BND
    x_BND, like_BND = batch_standardize(x_BND, like_BND), batch_standardize(like_BND)
    flat = like_BND.flatten(0, 1)
    with torch.autocast(x_BND.device.type, enabled=False):  # bfloat16's digits are too few for a covariance
        # Where features are not finite the targets are not either, and the loss says so; eigh would raise first.
        covariance = (flat.T @ flat / len(flat)).nan_to_num(0.0, 0.0, 0.0)
        identity = torch.eye(len(covariance), device=covariance.device)
        shrunk = torch.lerp(covariance, identity, SHRINKAGE)
        inverse_root = newton_schulz_inverse_root(shrunk) if shrunk.is_cuda else inverse_root_by_eigh(shrunk)
        return batch_standardize(x_BND @ inverse_root, like_BND @ inverse_root)


def inverse_root_by_eigh(matrix_DD: torch.Tensor) -> torch.Tensor:
    """The symmetric inverse square root of a positive definite matrix (D, D), from its eigenvalues."""
    values, vectors = torch.linalg.eigh(matrix_DD)
    return vectors * values.rsqrt() @ vectors.T


def newton_schulz_inverse_root(matrix_DD: torch.Tensor, steps: int = 18) -> torch.Tensor:
    """The same by the coupled Newton-Schulz iteration (Higham 2008, equation 6.35): matrix products alone.

    On a GPU eigh waits for the device and takes several times as long. 18 steps bring it within 1e-4 of eigh, relative
    to the norm, at the worst condition that SHRINKAGE allows.
    """
    norm = matrix_DD.norm()
    identity = torch.eye(len(matrix_DD), device=matrix_DD.device, dtype=matrix_DD.dtype)
    root, inverse = matrix_DD / norm, identity
    for _ in range(steps):
        correction = 1.5 * identity - 0.5 * inverse @ root
        root, inverse = root @ correction, correction @ inverse
    return inverse * norm.rsqrt()
