"""3-D multi-block masks (V-JEPA, Bardes et al. 2024): targets are the union of blocks, the context is everything else.

The size of the blocks is drawn once per batch, their places per sample, so the number of tokens differs from sample to
sample and has to be made equal. V-JEPA cuts every index list to the shortest of the batch, and in raster order that
removes the last frames. Here (`length_matching`):

size_sorted (default)
    Draw POOL times as many masks as needed, sort them by size, split the sorted list into consecutive groups of one
    batch, and use one group, chosen uniformly. Each mask of the pool is used with the same probability, so a sample's
    mask has the distribution it would have alone, and the masks of a batch have nearly the same size. The few tokens of
    difference are dropped as below: with V-JEPA's masks and 24 clips, 3 to 6 % of the context and 1 to 2 % of the
    targets.
random
    Drop random tokens down to the smallest mask of the batch; for blocks of full temporal extent, drop random spatial
    positions in all frames. The larger the batch, the smaller its smallest mask: 37 % (short range) and 66 % (long
    range) of the context, 24 % and 13 % of the targets.
truncate
    V-JEPA's rule, for comparison: the same numbers, all of them the last frames.

A dropped token is neither context nor target.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from src.masks.collator import BaseMaskCollator, Generator
from src.masks.utils import generator, pick, read_keys, tubes_to_tokens
from src.utils.errors import UserError
from src.utils.token_grid import Grid

LENGTH_MATCHING = ("size_sorted", "random", "truncate")
POOL = 16  # candidates per sample when matching
MAX_SIZES, MAX_POOLS = 16, 64  # draws of a block size, and of candidates of that size, before giving up
TRIAL_BATCH = 16
SHARED = 0  # last key of the draws that all batches of a step have in common; a batch's own use 1 + its place


class MaskCollator(BaseMaskCollator):
    """Config keys are those of `BlockConfig`; `length_matching` is explained above."""

    def __init__(self, *args: Any, length_matching: str = "size_sorted", **kwargs: Any) -> None:
        if length_matching not in LENGTH_MATCHING:
            raise UserError(
                f"mask: length_matching {length_matching!r} does not exist; choose one of {', '.join(LENGTH_MATCHING)}"
            )
        self.length_matching = length_matching
        super().__init__(*args, **kwargs)

    def make_generator(self, cfg: Mapping[str, Any], where: str) -> Generator:
        """The generator of one mask config."""
        return MultiBlock3D(self.grid, BlockConfig.read(cfg, where), self.length_matching, where)


@dataclass(frozen=True)
class BlockConfig:
    """One mask. Ranges are (low, high) and drawn from uniformly, once per batch.

    num_blocks: blocks per sample. spatial_scale: share of H*W that a block covers. aspect_ratio: height / width.
    temporal_scale: share of T that a block spans. max_temporal_keep: the context sees only this first share of T (what
    lies after it is target). max_keep: tokens the context has at most.
    """

    num_blocks: int
    spatial_scale: tuple[float, float]
    aspect_ratio: tuple[float, float]
    temporal_scale: tuple[float, float] = (1.0, 1.0)
    max_temporal_keep: float = 1.0
    max_keep: int | None = None

    @classmethod
    def read(cls, cfg: Mapping[str, Any], where: str) -> BlockConfig:
        """Check one entry of `mask`; UserError naming the key."""
        values = read_keys(
            cfg,
            where,
            required=["num_blocks", "spatial_scale", "aspect_ratio"],
            optional=["temporal_scale", "max_temporal_keep", "max_keep"],
        )
        for key in ("num_blocks", "max_keep"):
            value = values.get(key, 1)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"{where}.{key} must be a whole number of at least 1, got {value!r}")
        for key, limit in (("spatial_scale", 1.0), ("temporal_scale", 1.0), ("aspect_ratio", math.inf)):
            if key in values:
                values[key] = _range(values[key], limit, f"{where}.{key}")
        share = values.get("max_temporal_keep", 1.0)
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
            raise UserError(f"{where}.max_temporal_keep must lie above 0 and not above 1, got {share!r}")
        return cls(**values)


def _range(value: Any, limit: float, where: str) -> tuple[float, float]:
    numbers = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    valid = len(numbers) == 2 and all(isinstance(n, (int, float)) and not isinstance(n, bool) for n in numbers)
    if not valid or not 0 < numbers[0] <= numbers[1] <= limit:
        upper = "" if math.isinf(limit) else f" <= {limit:g}"
        raise UserError(f"{where} must be a pair [low, high] with 0 < low <= high{upper}, got {value!r}")
    return float(numbers[0]), float(numbers[1])


class MultiBlock3D:
    """Draws (context, targets) of one mask config for a batch."""

    def __init__(self, grid: Grid, cfg: BlockConfig, length_matching: str, where: str) -> None:
        self.grid, self.cfg, self.length_matching, self.where = grid, cfg, length_matching, where
        self.context_duration = max(1, int(grid.t * cfg.max_temporal_keep))
        if int(grid.area * cfg.spatial_scale[1]) < 1:
            raise UserError(
                f"{where}.spatial_scale {list(cfg.spatial_scale)} of {grid.h}x{grid.w} patches is less than "
                f"one patch and leaves nothing to predict; raise it to at least {1 / grid.area:.2g}"
            )
        self(TRIAL_BATCH, (0,), 0)  # a mask that leaves no context fails here, not in the middle of a run

    def __call__(self, batch_size: int, key: tuple[int, ...], place: int) -> tuple[np.ndarray, np.ndarray]:
        """Context (B, K) and targets (B, M): ascending int64 token indices, disjoint in each row.

        The size of the blocks, and the size of the masks when they are matched, is common to all batches of a step: it
        is what they cost, and the slowest process sets the pace.
        """
        shared, own = generator(*key, SHARED), generator(*key, 1 + place)
        context_BU, tubes = self._draw_contexts(batch_size, shared, own)
        tokens_per_unit = self.grid.t if tubes else 1
        num_context = context_BU.sum(axis=1)
        keep = int(num_context.min())
        if self.cfg.max_keep is not None:
            keep = min(keep, self.cfg.max_keep // tokens_per_unit)
        num_target = context_BU.shape[1] - int(num_context.max())
        dropping = None if self.length_matching == "truncate" else own
        context, target = pick(context_BU, keep, dropping), pick(~context_BU, num_target, dropping)
        if tubes:
            return tubes_to_tokens(context, self.grid), tubes_to_tokens(target, self.grid)
        return context, target

    def _draw_contexts(
        self, batch_size: int, shared: np.random.Generator, own: np.random.Generator
    ) -> tuple[np.ndarray, bool]:
        """One context per sample, (B, U) bool, none of them empty, and whether the units U are tubes."""
        wanted = batch_size * (POOL if self.length_matching == "size_sorted" else 1)
        quantile = shared.random()
        for _ in range(MAX_SIZES):
            size = self._size(*shared.random(3))
            tubes = self._whole_tubes(size)
            pool_PU = self._pool(batch_size, wanted, size, tubes, own)
            if pool_PU is not None:
                break
        else:
            raise self._no_context()
        groups = len(pool_PU) // batch_size if self.length_matching == "size_sorted" else 1
        pool_PU = pool_PU[: groups * batch_size]
        if groups > 1:
            by_size = np.argsort(pool_PU.sum(axis=1), kind="stable")
            start = int(quantile * groups) * batch_size
            # back in the order drawn, so that the place in the batch tells nothing about the mask
            pool_PU = pool_PU[np.sort(by_size[start : start + batch_size])]
        return pool_PU, tubes

    def _whole_tubes(self, size: tuple[int, int, int]) -> bool:
        """Whether tubes are kept or dropped as a whole: where the mask consists of them, and max_keep admits one."""
        full = size[0] == self.grid.t == self.context_duration
        admits = self.cfg.max_keep is None or self.cfg.max_keep >= self.grid.t
        return full and admits and self.length_matching != "truncate"

    def _pool(
        self, needed: int, wanted: int, size: tuple[int, int, int], tubes: bool, rng: np.random.Generator
    ) -> np.ndarray | None:
        """Contexts (P, U) bool, P >= `needed`, without the empty ones; None if blocks of this size hardly leave any."""
        if size == (self.grid.t, self.grid.h, self.grid.w):
            return None
        pool_PU = self._candidates(wanted, size, tubes, rng)
        for _ in range(MAX_POOLS):
            if len(pool_PU) >= needed:
                return pool_PU
            pool_PU = np.concatenate([pool_PU, self._candidates(wanted, size, tubes, rng)])
        return None

    def _candidates(self, count: int, size: tuple[int, int, int], tubes: bool, rng: np.random.Generator) -> np.ndarray:
        """Up to `count` contexts (P, U) bool: the complement of `num_blocks` blocks placed at random, if not empty."""
        grid, shape = self.grid, (count, self.cfg.num_blocks)
        row_PbH = _intervals(rng.integers(0, grid.h - size[1] + 1, shape), size[1], grid.h)
        col_PbW = _intervals(rng.integers(0, grid.w - size[2] + 1, shape), size[2], grid.w)
        start_Pb = rng.integers(0, grid.t - size[0] + 1, shape)
        masked = np.zeros((count, 1 if tubes else grid.t, grid.area), dtype=bool)
        for block in range(self.cfg.num_blocks):
            area = (row_PbH[:, block, :, None] & col_PbW[:, block, None, :]).reshape(count, 1, grid.area)
            if not tubes:
                area = area & _intervals(start_Pb[:, block], size[0], grid.t)[:, :, None]
            masked |= area
        if self.context_duration < grid.t:  # then `tubes` is False and the axis is time
            masked[:, self.context_duration :] = True
        context_PU = ~masked.reshape(count, -1)
        return context_PU[context_PU.any(axis=1)]

    def _size(self, time: float, scale: float, aspect: float) -> tuple[int, int, int]:
        """Block size in tokens (T, H, W) at a place, 0 to 1, within each of the config's ranges."""
        cfg, grid = self.cfg, self.grid
        duration = max(1, int(grid.t * _at(cfg.temporal_scale, time)))
        area, ratio = int(grid.area * _at(cfg.spatial_scale, scale)), _at(cfg.aspect_ratio, aspect)
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        return duration, min(max(height, 1), grid.h), min(max(width, 1), grid.w)

    def _no_context(self) -> UserError:
        cfg, grid = self.cfg, self.grid
        return UserError(
            f"{self.where}: {cfg.num_blocks} block(s) of spatial_scale {list(cfg.spatial_scale)} over "
            f"{grid.t}x{grid.h}x{grid.w} tokens leave no context; lower spatial_scale or num_blocks, "
            "or use a larger crop"
        )


def _at(bounds: tuple[float, float], place: float) -> float:
    return bounds[0] + place * (bounds[1] - bounds[0])


def _intervals(start: np.ndarray, length: int, total: int) -> np.ndarray:
    """Membership (..., total) bool of [start, start + length)."""
    offset = np.arange(total) - start[..., None]
    return (offset >= 0) & (offset < length)
