"""Batches from a data set: the iteration, what it reports, and how it fails."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from src.datasets.batch import Batch, Collate
from src.datasets.sample_fetcher import ClipSource, SampleRefDataset, StartWorker, WorkerTracker
from src.datasets.samplers import EpochSampler, EvalSampler, TrainingSampler
from src.datasets.skipped import SkipReport
from src.datasets.webdataset.web_stream import WebVideoStream
from src.utils.errors import UserError


class Loader:
    """Iterates over batches, reports what had to be skipped, and names the file a killed worker was on.

    In training, steps start_step .. total_steps - 1 (both may be set until iteration starts; total_steps None means
    one pass); in evaluation every sample once, and again at the next iteration. Iterating raises UserError when too
    many videos fail, and when the operating system ends a worker.

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
        self._tracker = WorkerTracker(max(num_workers, 1))
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
        loader = self._loader()
        previous = signal.getsignal(signal.SIGCHLD)
        batches = iter(loader)
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
            except RuntimeError as error:
                self._explain(error)
                raise
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

    def _explain(self, error: RuntimeError) -> None:
        if not str(error).startswith("DataLoader worker"):
            return
        files = sorted({self._source.path(i) for i in self._tracker.dead(str(error)).values()})
        raise UserError(
            f"a data worker was killed (out of memory?) while reading {', '.join(files) or 'its first file'}; "
            f"try a smaller data.num_workers, or remove the file: {error}"
        ) from error

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
        how: dict[str, Any] = {"collate_fn": self._collate}
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
            pin_memory=self._pin_mem,
            worker_init_fn=StartWorker(self._tracker),
            persistent_workers=self._num_workers > 0 and not self._training,
            **how,
        )
        if not self._training:
            self._evaluation_loader = loader
        return loader
