"""The one way to get batches, for every data set, in training and in evaluation."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from src.datasets.batch import Batch, Collate, MaskCollator
from src.datasets.fetch import ClipSource, DrawDataset, Progress, StartWorker
from src.datasets.frame_sampling import ClipSampling
from src.datasets.image_dataset import ImageDataset
from src.datasets.motion import ensure_motion
from src.datasets.samplers import DrawOrder, EvalSampler, TrainingSampler
from src.datasets.shards import expand, is_url
from src.datasets.skips import SkipReport
from src.datasets.video_dataset import Transform, VideoDataset
from src.datasets.web_dataset import WebVideoDataset
from src.datasets.web_stream import WebVideoStream
from src.utils.errors import UserError

logger = logging.getLogger(__name__)

DATASET_TYPES = ("VideoDataset", "WebVideoDataset", "ImageDataset", "MotionDataset")


class Loader:
    """Iterates over batches, reports what had to be skipped, and names the file a killed worker was on.

    In training, steps start_step .. total_steps - 1 (both may be set until iteration starts; total_steps None means
    one pass); in evaluation every sample once, and again at the next iteration. Iterating raises UserError when too
    many videos fail, and when the operating system ends a worker.

    Attributes:
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
        self._order: DrawOrder | None = None
        if training and not isinstance(source, WebVideoStream):
            self._order = DrawOrder(source.sizes, weights, seed)
        self.start_step, self._total_steps = start_step, total_steps
        self._progress = Progress(max(num_workers, 1))
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
        if not self._training and not used and self.skips.attempts:
            raise self.skips.none_usable()

    def _explain(self, error: RuntimeError) -> None:
        if not str(error).startswith("DataLoader worker"):
            return
        files: list[str] = []
        if not isinstance(self._source, WebVideoStream):
            files = sorted({self._source.path(i) for i in self._progress.dead(str(error)).values()})
        raise UserError(
            f"a data worker was killed (out of memory?) while reading {', '.join(files) or 'a shard'}; "
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
        )

    def _loader(self) -> DataLoader:
        if self._evaluation_loader is not None:
            return self._evaluation_loader
        stream = isinstance(self._source, WebVideoStream)
        if stream and self._training:
            self._source.start_step, self._source.total_steps = self.start_step, self.total_steps
        loader = DataLoader(
            self._source if stream else DrawDataset(self._source, self._order, self._progress),
            batch_size=None if stream else 1,
            batch_sampler=None if stream else self._sampler(),  # type: ignore[arg-type]
            num_workers=self._num_workers,
            collate_fn=self._collate,
            pin_memory=self._pin_mem,
            worker_init_fn=StartWorker(self._progress),
            persistent_workers=self._num_workers > 0 and not self._training,
        )
        if not self._training:
            self._evaluation_loader = loader
        return loader


def init_data(
    *,
    dataset_type: str = "VideoDataset",
    datasets: Sequence[str | Path],
    batch_size: int,
    transform: Transform | None = None,
    collator: MaskCollator | None = None,
    num_frames: int = 16,
    sampling_rate: int = 4,
    clip_duration: float | None = None,
    num_clips: int = 1,
    random_clip_sampling: bool = True,
    allow_clip_overlap: bool = False,
    filter_short_videos: bool = False,
    filter_long_videos: int = 10**9,
    pad_truncated: bool = False,
    datasets_weights: Sequence[float] | None = None,
    decoder: str = "auto",
    allow_pipe: bool = False,
    max_skip_fraction: float = 0.2,
    num_workers: int = 0,
    pin_mem: bool = False,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    start_step: int = 0,
    total_steps: int | None = None,
    training: bool = True,
    folder: str | Path | None = None,
) -> Loader:
    """Batches of a data set.

    Args:
        dataset_type: one of DATASET_TYPES. MotionDataset writes itself where its lists are absent.
        datasets: lists of `path label` lines; folders of class folders for ImageDataset; shards for WebVideoDataset.
        batch_size: samples per rank and step.
        transform: frames and a generator -> a clip, or a list of views.
        collator: draws masks (src/masks); None for evaluation.
        num_frames, sampling_rate, clip_duration, num_clips, random_clip_sampling, allow_clip_overlap: see ClipSampling.
        filter_short_videos, filter_long_videos, pad_truncated, decoder: see VideoDataset.
        datasets_weights: how often each data set is drawn from, in training.
        max_skip_fraction: stop with a UserError when a larger share of the videos cannot be used.
        start_step, total_steps: which steps of the run to yield, in training.
        training: draw at random for ever (up to total_steps), or everything once and in order.
        folder: where skipped.csv is written, if anywhere.

    Raises:
        UserError: a list is missing or malformed, the data set is empty, or an argument makes no sense.
    """
    if not datasets:
        raise UserError("data.datasets is empty: name at least one list of `path label` lines")
    if datasets_weights is not None and len(datasets_weights) != len(datasets):
        raise UserError(f"data.datasets_weights has {len(datasets_weights)} entries for {len(datasets)} data.datasets")
    sampling = ClipSampling(
        num_frames, sampling_rate, clip_duration, num_clips, random_clip_sampling, allow_clip_overlap
    )
    how = (transform, filter_short_videos, filter_long_videos, decoder, pad_truncated)
    skips = SkipReport(max_skip_fraction, folder)
    source: ClipSource | WebVideoStream
    if dataset_type in ("VideoDataset", "MotionDataset"):
        if dataset_type == "MotionDataset":
            for root in dict.fromkeys(Path(path).parent for path in datasets):
                ensure_motion(root)
        source = VideoDataset(datasets, sampling, *how)
    elif dataset_type == "ImageDataset":
        source = ImageDataset(datasets, transform, num_frames)
    elif dataset_type == "WebVideoDataset":
        shards = expand(datasets, allow_pipe)
        urls = [shard for group in shards for shard in group]
        if any(is_url(url) for url in urls):
            if datasets_weights is not None:
                raise UserError("data.datasets_weights does not work with streamed shards: list a shard more than once")
            readers = (rank, world_size, num_workers, seed)
            source = WebVideoStream(urls, batch_size, training, sampling, *how, *readers)
        else:
            source = WebVideoDataset(shards, sampling, *how)
            skips.note(source.faults)
    else:
        raise UserError(f"data.dataset_type {dataset_type!r} is not one of {', '.join(DATASET_TYPES)}")
    if not isinstance(source, WebVideoStream):
        logger.info("%s: %d samples", dataset_type, len(source))
    return Loader(
        source,
        Collate(collator),
        skips,
        batch_size=batch_size,
        num_workers=num_workers,
        rank=rank,
        world_size=world_size,
        seed=seed,
        weights=datasets_weights,
        start_step=start_step,
        total_steps=total_steps,
        training=training,
        pin_mem=pin_mem,
    )
