"""The order in which samples are drawn, as a pure function of the seed.

Nothing here has state: where a run stands is one number, its step, so a resumed run continues with the same remaining
draws, and neither the number of workers nor an interruption changes what a step sees. A training run walks through
permutations of its data one after another (pass 0, pass 1, ...); no sample comes back before its pass is over,
however many steps an epoch has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

# Draws are shared out between weighted data sets in blocks of this many, so that a position needs no history.
_BLOCK = 1024
_MASK = (1 << 64) - 1


class SampleRef(NamedTuple):
    """One sample of one step: which, when, and the seed of everything random about it."""

    index: int  # type: ignore[assignment]  # in place of tuple.index, which nobody calls
    step: int
    seed: int


def hash_seed(*values: int) -> int:
    """A 63-bit hash of integers, for seeds independent of their neighbours (splitmix64, Steele et al. 2014)."""
    state = 0
    for value in values:
        state = (state + (value & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


@lru_cache(maxsize=16)
def _permutation(size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(size)


class EpochSampler:
    """The endless sequence of samples of a run over one data set, or several joined end to end.

    Args:
        sizes: samples in each data set; sample indices run through all of them.
        weights: share of the draws each gets; None draws every sample of every set once per pass.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float] | None, seed: int) -> None:
        if not sizes or min(sizes) < 1:
            raise ValueError(f"data sets must not be empty (sizes {list(sizes)})")
        self._seed = seed
        self._sizes = [sum(sizes)] if weights is None else list(sizes)
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)[:-1]])
        self._counts = _shares(weights) if weights is not None else np.array([_BLOCK])
        if weights is not None and len(weights) != len(sizes):
            raise ValueError(f"{len(weights)} weights for {len(sizes)} data sets")

    def index(self, position: int) -> int:
        """The sample at a position of the sequence."""
        dataset, nth = self._dataset(position)
        size = self._sizes[dataset]
        permutation = _permutation(size, hash_seed(self._seed, 1, dataset, nth // size))
        return int(self._starts[dataset]) + int(permutation[nth % size])

    def replacement(self, index: int, seed: int, attempt: int) -> int:
        """Another sample of the same data set, for one that could not be read."""
        dataset = int(np.searchsorted(self._starts, index, side="right")) - 1
        return int(self._starts[dataset]) + hash_seed(seed, 2, attempt) % self._sizes[dataset]

    def _dataset(self, position: int) -> tuple[int, int]:
        """Which data set a position draws from, and how many draws that set had before."""
        if len(self._sizes) == 1:
            return 0, position
        block, offset = divmod(position, _BLOCK)
        plan = _block_plan(tuple(self._counts.tolist()), hash_seed(self._seed, 3, block))
        dataset = int(plan[offset])
        return dataset, block * int(self._counts[dataset]) + int((plan[:offset] == dataset).sum())


def _shares(weights: Sequence[float]) -> np.ndarray:
    """Draws per block for each weight, by largest remainder."""
    shares = np.asarray(weights, dtype=np.float64)
    if (shares < 0).any() or not np.isfinite(shares).all() or shares.sum() <= 0:
        raise ValueError(f"data set weights must be at least 0, and not all 0: {list(weights)}")
    exact = shares / shares.sum() * _BLOCK
    counts = np.floor(exact).astype(np.int64)
    for i in np.argsort(counts - exact, kind="stable")[: _BLOCK - counts.sum()]:
        counts[i] += 1
    return counts


@lru_cache(maxsize=4)
def _block_plan(counts: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))


class TrainingSampler:
    """Batches of draws for the steps start_step .. total_steps - 1 of one rank.

    Step s of all ranks together draws positions [s * B * W, (s + 1) * B * W) of the order, each rank its own B of them.
    A run that goes on with another B or W passes `start_position`, where it stands in the order at start_step.
    """

    def __init__(
        self,
        order: EpochSampler,
        batch_size: int,
        total_steps: int,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        start_position: int | None = None,
    ) -> None:
        self._order, self._batch_size, self._seed = order, batch_size, seed
        self._offset = 0 if start_position is None else start_position - start_step * batch_size * world_size
        self._rank, self._world_size = rank, world_size
        self._start_step, self._total_steps = start_step, total_steps

    def __len__(self) -> int:
        return max(self._total_steps - self._start_step, 0)

    def __iter__(self) -> Iterator[list[SampleRef]]:
        for step in range(self._start_step, self._total_steps):
            first = self._offset + (step * self._world_size + self._rank) * self._batch_size
            positions = range(first, first + self._batch_size)
            yield [SampleRef(self._order.index(p), step, hash_seed(self._seed, 0, p)) for p in positions]


class EvalSampler:
    """Every sample exactly once, in order, every world_size-th one to a rank; the last batch may be smaller."""

    def __init__(self, size: int, batch_size: int, rank: int = 0, world_size: int = 1, seed: int = 0) -> None:
        self._indices = range(rank, size, world_size)
        self._batch_size, self._seed = batch_size, seed

    def __len__(self) -> int:
        return -(-len(self._indices) // self._batch_size)

    def __iter__(self) -> Iterator[list[SampleRef]]:
        for step in range(len(self)):
            chunk = self._indices[step * self._batch_size : (step + 1) * self._batch_size]
            yield [SampleRef(i, step, hash_seed(self._seed, 0, i)) for i in chunk]
