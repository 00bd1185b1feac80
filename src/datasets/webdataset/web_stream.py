"""Videos in webdataset shards behind URLs, read from beginning to end.

Every reader (a worker of a rank) gets its own shards, by a seeded permutation that is new in every pass, and makes
whole batches from them; worker w makes steps w, w + workers, ... So no sample is lost or repeated within a pass, the
order is a function of the seed and the number of readers, and a resumed run with as many readers goes on where it
stopped, after reading over what it has seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from src.datasets.batch import Fetched, Skipped
from src.datasets.clip_reader import ClipReader, Sample
from src.datasets.decoding.decode import DecodeError
from src.datasets.sample_fetcher import WorkerTracker, skip
from src.datasets.samplers import hash_seed
from src.datasets.webdataset.shard_stream import ShardStream, StreamedVideo
from src.utils.errors import UserError

# Undecoded samples a reader draws from at random.
_SHUFFLE = 128


class WebVideoStream(IterableDataset):
    """Batches from shards behind URLs.

    Args:
        urls: shards, in any order.
        batch_size: samples per batch.
        training: shuffle and go on for ever; otherwise every sample once, and a smaller last batch.
        rank, world_size, num_workers: the readers.
        reader: how the clips of a video are read.
        labelled, label_key: as WebVideoDataset.

    Attributes:
        start_step, total_steps: steps to make, in training.
        tracker: where a worker notes which shard its sample is from, if anybody wants to know.

    Raises:
        UserError: fewer shards than readers.
    """

    def __init__(
        self,
        urls: Sequence[str],
        batch_size: int,
        training: bool,
        reader: ClipReader,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        seed: int = 0,
        labelled: bool = True,
        label_key: str | None = None,
    ) -> None:
        self._readers = world_size * max(num_workers, 1)
        if len(urls) < self._readers:
            raise UserError(
                f"{len(urls)} shards for {self._readers} readers ({world_size} ranks x {max(num_workers, 1)} workers): "
                "lower data.num_workers or write more shards"
            )
        self._urls, self._batch_size, self._training = list(urls), batch_size, training
        self._rank, self._num_workers, self._seed = rank, max(num_workers, 1), seed
        self._reader, self._labelled, self._label_key = reader, labelled, label_key
        self._notes: list[str] = []
        self.start_step, self.total_steps = 0, 0
        self.tracker: WorkerTracker | None = None

    def path(self, index: int) -> str:
        """A shard, for messages."""
        return self._urls[index]

    def __iter__(self) -> Iterator[Fetched]:
        info = get_worker_info()
        worker = info.id if info is not None else 0
        batches = self._train(worker) if self._training else self._evaluate(worker)
        if self.tracker is None:
            yield from batches
        else:
            with self.tracker.noting():
                yield from batches

    def _train(self, worker: int) -> Iterator[Fetched]:
        # The loader asks worker 0 first, for start_step; whose shards those are does not depend on start_step.
        worker = (worker + self.start_step) % self._num_workers
        errors: list[Skipped] = []
        samples = self._samples(worker, errors)
        for step in range(worker, self.total_steps, self._num_workers):
            raw = list(islice(samples, self._batch_size))
            if step >= self.start_step or not raw:
                yield self._decode(raw, step, errors)
            if not raw:
                return

    def _evaluate(self, worker: int) -> Iterator[Fetched]:
        errors: list[Skipped] = []
        raw: list[StreamedVideo] = []
        step = worker
        for sample in self._read(self._urls[self._rank * self._num_workers + worker :: self._readers], errors):
            raw.append(sample)
            if len(raw) == self._batch_size:
                yield self._decode(raw, step, errors)
                raw, step = [], step + self._num_workers
        if raw or errors:
            yield self._decode(raw, step, errors)

    def _samples(self, worker: int, errors: list[Skipped]) -> Iterator[StreamedVideo]:
        """A reader's samples, pass after pass, shuffled in a buffer; ends when a whole pass gives none."""
        reader = self._rank * self._num_workers + worker
        number = 0
        while True:
            order = np.random.default_rng(hash_seed(self._seed, 4, number)).permutation(len(self._urls))
            rng = np.random.default_rng(hash_seed(self._seed, 5, reader, number))
            buffer: list[StreamedVideo] = []
            count = 0
            for sample in self._read([self._urls[i] for i in order[reader :: self._readers]], errors):
                count += 1
                buffer.append(sample)
                if len(buffer) > _SHUFFLE:
                    yield _take(buffer, rng)
            while buffer:
                yield _take(buffer, rng)
            if count == 0:
                return
            number += 1

    def _read(self, urls: Sequence[str], errors: list[Skipped]) -> Iterator[StreamedVideo]:
        """Undecoded videos. A shard that fails is a fault, and the next one follows."""
        for url in urls:
            stream = ShardStream(url, self._labelled, self._label_key)
            yield from stream
            errors.extend(Skipped(*error) for error in stream.errors)
            if stream.strangers:
                count, first = len(stream.strangers), stream.strangers[0]
                self._notes.append(f"{url}: passed over {count} files that belong to no sample, as {first}")

    def _decode(self, raw: list[StreamedVideo], step: int, errors: list[Skipped]) -> Fetched:
        skipped, attempts = list(errors), len(raw) + len(errors)
        errors.clear()
        found: list[tuple[str, Sample] | None] = []
        worker = get_worker_info()
        for place, one in enumerate(raw):
            if worker is not None and self.tracker is not None:
                self.tracker.at(worker.id, self._urls.index(one.url))
            try:
                self._reader.check_size(one.name, len(one.data))
                seed = hash_seed(self._seed, 6, self._rank, step, place)
                found.append((one.name, self._reader.read(one.data, one.name, one.label, seed)))
            except DecodeError as error:
                skipped.append(skip(error))
                found.append(None)
        good = [f for f in found if f is not None]
        if self._training and good:
            good = [f if f is not None else good[i % len(good)] for i, f in enumerate(found)]
        names = [name for name, _ in good]
        notes, self._notes = self._notes, []
        return Fetched([s for _, s in good], [-1] * len(good), names, step, attempts, skipped, notes)


def _take(buffer: list[StreamedVideo], rng: np.random.Generator) -> StreamedVideo:
    place = int(rng.integers(len(buffer)))
    buffer[place], buffer[-1] = buffer[-1], buffer[place]
    return buffer.pop()
