"""From sample references to samples: what happens to a video that cannot be read, and which worker was reading what."""

from __future__ import annotations

import multiprocessing
import os
from typing import Protocol

import torch
from torch.utils.data import Dataset, get_worker_info

from src.datasets.batch import Fetched, Skipped
from src.datasets.clip_reader import Sample
from src.datasets.decoding.decode import DecodeError
from src.datasets.samplers import EpochSampler, SampleRef
from src.launch.preemption import shield_worker

# Other videos tried in place of one that cannot be read.
MAX_REPLACEMENTS = 5


class ClipSource(Protocol):
    """What the loader needs of a data set."""

    sizes: list[int]

    def __len__(self) -> int: ...

    def path(self, index: int) -> str:
        """Where a sample comes from, for messages."""

    def load(self, index: int, seed: int) -> Sample:
        """One sample, a function of its arguments only. Raises DecodeError."""


class WorkerTracker:
    """Which sample each worker is on, in memory shared with the process that started it."""

    def __init__(self, num_workers: int) -> None:
        self._pids = multiprocessing.RawArray("q", num_workers)
        self._indices = multiprocessing.RawArray("q", num_workers)

    def start(self, worker: int) -> None:
        """Say which process this worker is."""
        self._pids[worker] = os.getpid()
        self._indices[worker] = -1

    def at(self, worker: int, index: int) -> None:
        """Say which sample this worker is about to read."""
        self._indices[worker] = index

    def dead(self, message: str) -> dict[int, int]:
        """The last sample of each worker whose process is named in torch's message, or else of all, by process."""
        last = {pid: index for pid, index in zip(self._pids, self._indices) if index >= 0}
        named = {pid: index for pid, index in last.items() if str(pid) in message}
        return named or last


class SampleRefDataset(Dataset):
    """A data set that is asked for whole batches, as sample references.

    In training (`order` given) a sample that cannot be read is replaced by another one of the same list, a function
    of the reference alone, at most MAX_REPLACEMENTS times, and after that by repeating one of the same batch. In
    evaluation it is left out.
    """

    def __init__(self, source: ClipSource, order: EpochSampler | None, tracker: WorkerTracker) -> None:
        self._source, self._order, self._tracker = source, order, tracker

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, ref: SampleRef) -> Fetched:
        return self.__getitems__([ref])

    def __getitems__(self, refs: list[SampleRef]) -> Fetched:
        found: list[tuple[int, Sample] | None] = []
        skipped: list[Skipped] = []
        for ref in refs:
            found.append(self._load(ref, skipped))
        good = [f for f in found if f is not None]
        attempts = len(good) + len(skipped)
        if self._order is not None and good:
            good = [f if f is not None else good[i % len(good)] for i, f in enumerate(found)]
        indices = [i for i, _ in good]
        paths = [self._source.path(i) for i in indices]
        return Fetched([s for _, s in good], indices, paths, refs[0].step, attempts, skipped)

    def _load(self, ref: SampleRef, skipped: list[Skipped]) -> tuple[int, Sample] | None:
        worker = get_worker_info()
        tries = 1 if self._order is None else 1 + MAX_REPLACEMENTS
        for attempt in range(tries):
            index = ref.index
            if attempt and self._order is not None:
                index = self._order.replacement(ref.index, ref.seed, attempt)
            if worker is not None:
                self._tracker.at(worker.id, index)
            try:
                return index, self._source.load(index, ref.seed)
            except DecodeError as error:
                skipped.append(Skipped(error.path, error.kind, error.reason))
        return None


class StartWorker:
    """What a worker process does first."""

    def __init__(self, tracker: WorkerTracker) -> None:
        self._tracker = tracker

    def __call__(self, worker: int) -> None:
        shield_worker()
        # OpenMP's threads do not survive a fork, and workers are the parallelism.
        torch.set_num_threads(1)
        self._tracker.start(worker)
