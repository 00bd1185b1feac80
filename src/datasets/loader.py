"""Batches from a data set: the iteration, what it reports, and how it fails."""

from __future__ import annotations

import logging
import signal
import threading
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from src.datasets.batch import Batch, Collate
from src.datasets.sample_fetcher import ClipSource, CollateInWorker, SampleRefDataset, StartWorker, WorkerTracker
from src.datasets.samplers import EpochSampler, EvalSampler, TrainingSampler
from src.datasets.skipped import SkipReport
from src.datasets.system_errors import PREFETCH, system_fault
from src.datasets.webdataset.web_stream import WebVideoStream
from src.utils.errors import UserError, one_line

logger = logging.getLogger(__name__)

# Of the notes about what was read, this many are logged.
_LOGGED_NOTES = 3


class Loader:
    """Iterates over batches, reports what had to be skipped, and names the file a killed worker was on.

    In training, steps start_step .. total_steps - 1 (both may be set until iteration starts; total_steps None means
    one pass); in evaluation every sample once, and again at the next iteration. Iterating raises UserError when too
    many videos fail, when the operating system ends a worker, and when the machine lacks what workers need
    (system_errors.py).

    Attributes:
        start_position: place of start_step in the order of samples, where it is not start_step full steps; shards that
            are streamed have no such place.
        skips: what was skipped so far.
    """

    def __init__(
        self,
        source: ClipSource | WebVideoStream,
        collate: Collate,
        skips: SkipReport,
        *,
        batch_size: int,
        num_workers: int,
        rank: int,
        world_size: int,
        seed: int,
        weights: Sequence[float] | None,
        start_step: int,
        total_steps: int | None,
        training: bool,
        pin_mem: bool,
    ) -> None:
        self._source, self._collate, self.skips = source, collate, skips
        self._batch_size, self._num_workers = batch_size, num_workers
        self._pin_mem = pin_mem and torch.cuda.is_available()
        self._rank, self._world_size, self._seed, self._training = rank, world_size, seed, training
        self._order: EpochSampler | None = None
        if training and not isinstance(source, WebVideoStream):
            self._order = EpochSampler(source.sizes, weights, seed)
        self.start_step, self._total_steps = start_step, total_steps
        self.start_position: int | None = None
        self._tracker: WorkerTracker | None = None
        self._notes: set[str] = set()
        self._evaluation_loader: DataLoader | None = None

    @property
    def dataset_size(self) -> int:
        """Samples of the whole data set. Raises UserError for shards that are streamed, which nobody has counted."""
        if isinstance(self._source, WebVideoStream):
            raise UserError("the size of streamed shards is not known: set optimization.ipe")
        return len(self._source)

    @property
    def steps_per_pass(self) -> int:
        """Full steps of all ranks that one pass over the data gives, at least 1."""
        return max(self.dataset_size // (self._batch_size * self._world_size), 1)

    @property
    def total_steps(self) -> int:
        """The step the run ends before."""
        return self.steps_per_pass if self._total_steps is None else self._total_steps

    @total_steps.setter
    def total_steps(self, value: int | None) -> None:
        self._total_steps = value

    def __len__(self) -> int:
        """Batches of one iteration, in evaluation before any is dropped for being unreadable."""
        if self._training:
            return max(self.total_steps - self.start_step, 0)
        return len(self._sampler())

    def __iter__(self) -> Iterator[Batch]:
        previous = signal.getsignal(signal.SIGCHLD)
        try:
            batches = iter(self._loader())
        except OSError as error:  # processes, pipes, semaphores and shared memory are all that is asked for here
            _abandon(error)
            reason = system_fault(error) or f"{one_line(error)}: with data.num_workers=0 none are needed"
            raise UserError(f"data workers cannot be started: {reason}") from error
        if previous is not None and threading.current_thread() is threading.main_thread():
            # torch's handler raises wherever the main thread happens to be; without it the death of a worker is noticed
            # (within seconds) where its batch is waited for, below.
            signal.signal(signal.SIGCHLD, previous)
        used = False
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                break
            except Exception as error:
                self._explain(error, getattr(batches, "_workers", ()))
                raise
            self._log_notes(batch)
            self.skips.add(batch)
            if len(batch):
                used = True
                yield batch
            elif self._training:
                raise self.skips.none_usable()
        self.skips.log_summary()
        # With several ranks the few samples of one may all be bad without anything being wrong with the set.
        if not self._training and not used and self.skips.attempts and self._world_size == 1:
            raise self.skips.none_usable()

    def close(self) -> None:
        """End the workers that an evaluation's loader keeps for its next iteration, which then starts new ones."""
        self._evaluation_loader = None

    def _log_notes(self, batch: Batch) -> None:
        for note in batch.notes:
            if note not in self._notes and len(self._notes) < _LOGGED_NOTES:
                self._notes.add(note)
                logger.info("%s", note)

    def _explain(self, error: Exception, workers: Sequence[BaseProcess]) -> None:
        """Raise UserError for what is the machine's or the user's fault; a bug is left as it is."""
        message = str(error)
        if self._tracker is None or self._num_workers == 0:
            if reason := system_fault(error):
                raise UserError(f"while reading data: {reason}") from error
            return
        if known := self._tracker.reason(message):
            reason, index = known
            by_file = index >= 0 and reason.startswith("out of memory")
            where = f" while reading {self._source.path(index)}" if by_file else ""
            raise UserError(f"a data worker failed{where}: {reason}") from error
        if message.startswith("DataLoader worker"):
            files = ", ".join(sorted({self._source.path(i) for i in self._tracker.dead(message).values()}))
            signals = [-code for worker in workers if (code := worker.exitcode or 0) < 0]
            why = _why_killed(signals[0] if signals else signal.SIGKILL, files or "its first file")
            raise UserError(f"a data worker was killed {why}: {one_line(message)}") from error
        # What goes wrong in this process or its thread for page-locked memory has no worker's traceback in it.
        last = message.strip().splitlines()[-1:] if "pin memory thread" in message else []
        own = RuntimeError(last[0]) if last else None if message.startswith("Caught ") else error
        if own is not None and (reason := system_fault(own)):
            raise UserError(f"while batches of data workers were taken over: {reason}") from error

    def _sampler(self) -> TrainingSampler | EvalSampler:
        if self._order is None:
            return EvalSampler(self.dataset_size, self._batch_size, self._rank, self._world_size, self._seed)
        return TrainingSampler(
            self._order,
            self._batch_size,
            self.total_steps,
            self.start_step,
            self._rank,
            self._world_size,
            self._seed,
            self.start_position,
        )

    def _loader(self) -> DataLoader:
        if self._evaluation_loader is not None:
            return self._evaluation_loader
        source: Dataset
        self._tracker = WorkerTracker(max(self._num_workers, 1))
        batches = None if isinstance(self._source, WebVideoStream) else len(self)
        how: dict[str, Any] = {"collate_fn": CollateInWorker(self._collate, self._tracker, batches)}
        if isinstance(self._source, WebVideoStream):
            source, how["batch_size"] = self._source, None
            self._source.tracker = self._tracker
            if self._training:
                self._source.start_step, self._source.total_steps = self.start_step, self.total_steps
        else:
            source, how["batch_sampler"] = SampleRefDataset(self._source, self._order, self._tracker), self._sampler()
        loader = DataLoader(
            source,
            num_workers=self._num_workers,
            prefetch_factor=PREFETCH if self._num_workers else None,
            pin_memory=self._pin_mem,
            worker_init_fn=StartWorker(self._tracker),
            persistent_workers=self._num_workers > 0 and not self._training,
            **how,
        )
        if not self._training:
            self._evaluation_loader = loader
        return loader


def _abandon(error: OSError) -> None:
    """Let go of the iterator that torch was making, whose own end would complain that it is half made."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        made = frame.f_locals.get("self")
        if isinstance(made, _MultiProcessingDataLoaderIter):
            made._shutdown = True
            for process in getattr(made, "_workers", ()):
                process.terminate()


def _why_killed(number: int, files: str) -> str:
    """The rest of the line about a worker that a signal has ended."""
    if number == signal.SIGKILL:
        return f"(out of memory?) while reading {files}; try a smaller data.num_workers, or remove the file"
    name = signal.strsignal(number)
    if number == signal.SIGBUS:
        return f"by the signal {name} while reading {files}; {system_fault(RuntimeError(name))}"
    return f"by the signal {name} while reading {files}; if it happens again, remove the file"
