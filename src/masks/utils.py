"""What every kind of mask shares: gathering by index, and drawing index sets of equal length.

Legend: B batch, P pool of candidates, U units (whole tubes or single tokens), T tubelets, H W patches, N = T*H*W tokens
in raster order (time slowest), K kept tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor

from src.utils.errors import UserError
from src.utils.token_grid import Grid


@overload
def apply_masks(x: Tensor, masks: Tensor | Sequence[Tensor], concat: Literal[True] = True) -> Tensor: ...
@overload
def apply_masks(x: Tensor, masks: Tensor | Sequence[Tensor], concat: Literal[False]) -> list[Tensor]: ...
def apply_masks(x: Tensor, masks: Tensor | Sequence[Tensor], concat: bool = True) -> Tensor | list[Tensor]:
    """Gather the tokens that each mask names.

    Args:
        x: (B, N, D) tokens.
        masks: one index tensor (B, K), or a list of them, one per mask config.
        concat: True stacks the results along the batch, (B * len(masks), K, D), which needs equal K;
            False returns a list of (B, K_i, D).

    Raises:
        ValueError: `concat` with masks of different length, or no mask at all.
    """
    if isinstance(masks, Tensor):
        masks = [masks]
    kept = [torch.gather(x, 1, mask_BK.unsqueeze(-1).expand(-1, -1, x.size(-1))) for mask_BK in masks]
    if not concat:
        return kept
    if len({tokens.size(1) for tokens in kept}) != 1:
        lengths = [tokens.size(1) for tokens in kept]
        raise ValueError(f"apply_masks: only masks of one length can be concatenated, got {lengths}; use concat=False")
    return torch.cat(kept, dim=0)


def read_keys(
    cfg: Mapping[str, Any], where: str, required: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, Any]:
    """The entries of one mask config that are set (None means "not set").

    Raises:
        UserError: a key this kind of mask does not have, or one it needs and did not get.
    """
    given = {key: value for key, value in cfg.items() if value is not None}
    known = [*required, *optional]
    for key in given:
        if key not in known:
            raise UserError(f"{where}.{key}: this mask type has no such key; it has {', '.join(known)}")
    for key in required:
        if key not in given:
            raise UserError(f"{where}.{key} is missing")
    return given


def read_ratio(cfg: Mapping[str, Any], where: str) -> float:
    """The `ratio` of a mask config: the share that is masked, strictly between 0 and 1."""
    ratio = read_keys(cfg, where, required=["ratio"])["ratio"]
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio < 1:
        raise UserError(f"{where}.ratio is the share that is masked, a number between 0 and 1, got {ratio!r}")
    return float(ratio)


def num_kept(total: int, ratio: float, what: str, where: str) -> int:
    """How many of `total` rows or positions stay in the context when `ratio` of them are masked (rounded down).

    Raises:
        UserError: nothing would be left to see, or nothing to predict.
    """
    kept = int(total * (1 - ratio) + 1e-6)  # 10 * (1 - 0.9) is 0.99..., and one row is meant
    if kept == 0:
        raise UserError(
            f"{where}.ratio {ratio} of {total} {what} leaves no context; lower it below {1 - 1 / total:.3g}"
        )
    if kept == total:
        raise UserError(f"{where}.ratio {ratio} of {total} {what} leaves nothing to predict; raise it above 0")
    return kept


def generator(*key: int) -> np.random.Generator:
    """A generator that depends on the non-negative numbers of `key` and on nothing else."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


def pick(allowed_BU: np.ndarray, count: int, rng: np.random.Generator | None) -> np.ndarray:
    """`count` allowed units of every row, ascending: (B, count) int64.

    Uniformly at random with `rng`; without one, the first `count` (which cuts the tail). Every row must allow at least
    `count` units.
    """
    if rng is None:
        rank_BU = np.broadcast_to(np.arange(allowed_BU.shape[1], dtype=np.float64), allowed_BU.shape)
    else:
        rank_BU = rng.random(allowed_BU.shape)
    rank_BU = np.where(allowed_BU, rank_BU, np.inf)
    chosen = np.argpartition(rank_BU, count - 1, axis=1)[:, :count]
    return np.sort(chosen, axis=1).astype(np.int64)


def tubes_to_tokens(tubes_BK: np.ndarray, grid: Grid) -> np.ndarray:
    """Token indices (B, T * K), ascending, of spatial positions (B, K) taken in every tubelet."""
    offset_T1 = np.arange(grid.t, dtype=np.int64)[:, None] * grid.area
    return (tubes_BK[:, None, :] + offset_T1).reshape(len(tubes_BK), -1)
