"""From sample references to samples: what happens to a video that cannot be read, and which worker was reading what."""

from __future__ import annotations

import errno
import multiprocessing
import multiprocessing.queues
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.utils.data import Dataset, get_worker_info

from src.datasets.batch import Batch, Collate, Fetched, Skipped
from src.datasets.clip_reader import Sample
from src.datasets.decoding.decode import DecodeError
from src.datasets.samplers import EpochSampler, SampleRef
from src.datasets.system_errors import check_room, system_fault
from src.launch.preemption import shield_worker
from src.utils.errors import UserError, one_line

# Other videos tried in place of one that cannot be read.
MAX_REPLACEMENTS = 5
# What a video cannot help. Memory is not among these: a damaged file may well announce more than there is.
_NOT_THE_FILE = (errno.EMFILE, errno.ENFILE, errno.ENOSPC)
_REASON = 2048


class ClipSource(Protocol):
    """What the loader needs of a data set."""

    sizes: list[int]

    def __len__(self) -> int: ...

    def path(self, index: int) -> str:
        """Where a sample comes from, for messages."""

    def load(self, index: int, seed: int) -> Sample:
        """One sample, a function of its arguments only. Raises DecodeError."""


def skip(error: DecodeError) -> Skipped:
    """The record of a video that cannot be used. Raises the error behind it, where that is not the video's fault."""
    behind = error.__cause__ or error.__context__
    if isinstance(behind, OSError) and behind.errno in _NOT_THE_FILE:
        raise behind
    return Skipped(error.path, error.kind, error.reason)


class WorkerTracker:
    """Which sample each worker is on and what ended it, in memory shared with the process that started it."""

    def __init__(self, num_workers: int) -> None:
        self._pids = multiprocessing.RawArray("q", num_workers)
        self._indices = multiprocessing.RawArray("q", num_workers)
        self._reasons = [multiprocessing.RawArray("c", _REASON) for _ in range(num_workers)]

    def start(self, worker: int) -> None:
        """Say which process this worker is."""
        self._pids[worker] = os.getpid()
        self._indices[worker] = -1
        self._reasons[worker].value = b""

    def at(self, worker: int, index: int) -> None:
        """Say which sample this worker is about to read."""
        self._indices[worker] = index

    def fails(self, worker: int, reason: str) -> None:
        """Say why this worker cannot go on."""
        self._reasons[worker].value = reason.encode(errors="replace")[: _REASON - 1]

    @contextmanager
    def noting(self) -> Iterator[None]:
        """In a worker: keep the reason of an error that is the machine's or the user's, which is raised on."""
        try:
            yield
        except Exception as error:
            worker = get_worker_info()
            reason = one_line(error) if isinstance(error, UserError) else system_fault(error)
            if worker is not None and reason:
                self.fails(worker.id, reason)
            raise

    def reason(self, message: str) -> tuple[str, int] | None:
        """Why the worker that torch's message names could not go on, and its last sample; None: no reason is known.

        A message that names none may come of any that is gone.
        """
        named = re.search(r"DataLoader worker process (\d+)", message)
        pids = re.findall(r"\d+", message.partition("DataLoader worker (pid")[2])
        for worker, pid in enumerate(self._pids):
            mine = worker == int(named[1]) if named else str(pid) in pids or not (pids or message.startswith("Caught"))
            if mine and (text := bytes(self._reasons[worker].value)):
                return text.decode(errors="replace"), int(self._indices[worker])
        return None

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
        with self._tracker.noting():
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
                skipped.append(skip(error))
        return None


@dataclass
class CollateInWorker:
    """`collate`, where shared memory has room for its batches."""

    collate: Collate
    tracker: WorkerTracker
    batches: int | None = None  # of one iteration, where it is known

    def __call__(self, fetched: Fetched) -> Batch:
        worker = get_worker_info()
        with self.tracker.noting():
            if worker is not None:
                check_room(fetched.nbytes(), worker.num_workers, self.batches)
            return self.collate(fetched)


class StartWorker:
    """What a worker process does first."""

    def __init__(self, tracker: WorkerTracker) -> None:
        self._tracker = tracker

    def __call__(self, worker: int) -> None:
        shield_worker()
        # OpenMP's threads do not survive a fork, and workers are the parallelism.
        torch.set_num_threads(1)
        self._tracker.start(worker)
        self._watch_threads(worker)

    def _watch_threads(self, worker: int) -> None:
        """End this process when a thread of it that hands batches over fails.

        Such a thread prints its error and goes on, and whoever waits for the batch would wait for ever.
        """

        def end(error: BaseException) -> None:
            if reason := system_fault(error):
                self._tracker.fails(worker, reason)
                os._exit(1)

        feeder: Any = multiprocessing.queues.Queue
        on_feeder_error, hook = feeder._on_queue_feeder_error, sys.excepthook

        def feeder_error(error: BaseException, obj: object) -> None:
            end(error)
            on_feeder_error(error, obj)

        def sharer_error(kind: type[BaseException], error: BaseException, trace: Any) -> None:
            end(error)
            hook(kind, error, trace)

        feeder._on_queue_feeder_error = staticmethod(feeder_error)  # made to be replaced, says multiprocessing
        sys.excepthook = sharer_error
