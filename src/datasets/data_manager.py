"""The one way to get batches, for every data set, in training and in evaluation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from src.datasets.batch import Collate, MaskCollator
from src.datasets.clip_reader import ClipReader, Transform, to_tensor
from src.datasets.dataset_types import SHARDED
from src.datasets.decoding.frame_sampling import ClipSampling
from src.datasets.embedded.generate import ensure_embedded
from src.datasets.embedded.rendered import check_rendered
from src.datasets.embedded.scenes import EMBEDDED
from src.datasets.image_dataset import ImageDataset
from src.datasets.loader import Loader
from src.datasets.sample_fetcher import ClipSource
from src.datasets.skipped import SkipReport
from src.datasets.video_dataset import VideoDataset
from src.datasets.webdataset.shards import expand, is_url
from src.datasets.webdataset.web_dataset import WebVideoDataset
from src.datasets.webdataset.web_stream import WebVideoStream
from src.utils.errors import UserError

logger = logging.getLogger(__name__)

__all__ = ["DATASET_TYPES", "Loader", "init_data"]

DATASET_TYPES = ("VideoDataset", *SHARDED, "ImageDataset", *EMBEDDED)


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
    center_clips: bool = False,
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
    labelled: bool = True,
    classes: Sequence[str] | None = None,
    label_key: str | None = None,
) -> Loader:
    """Batches of a data set.

    Args:
        dataset_type: one of DATASET_TYPES. The embedded ones (src/datasets/embedded) write themselves where absent.
        datasets: lists of `path label` lines; folders of class folders for ImageDataset; shards for WebVideoDataset.
        batch_size: samples per rank and step.
        transform: frames and a generator -> a clip, or a list of views.
        collator: draws masks (src/masks); None for evaluation.
        num_frames, sampling_rate, clip_duration, num_clips, random_clip_sampling, allow_clip_overlap, center_clips: see
            ClipSampling.
        filter_short_videos, filter_long_videos, pad_truncated, decoder: see ClipReader.
        datasets_weights: how often each data set is drawn from, in training.
        max_skip_fraction: stop with a UserError when a larger share of the videos cannot be used.
        start_step, total_steps: which steps of the run to yield, in training.
        training: draw at random for ever (up to total_steps), or everything once and in order.
        folder: where skipped.csv is written, if anywhere.
        labelled: whether labels are needed; pretraining reads lists without them too (`read_list`).
        classes: see ImageDataset.
        label_key: see WebVideoDataset.

    Raises:
        UserError: a list is missing or malformed, the data set is empty, or an argument makes no sense.
    """
    if not datasets:
        raise UserError("data.datasets is empty: name at least one list of `path label` lines")
    if datasets_weights is not None and len(datasets_weights) != len(datasets):
        raise UserError(f"data.datasets_weights has {len(datasets_weights)} entries for {len(datasets)} data.datasets")
    sampling = ClipSampling(
        num_frames, sampling_rate, clip_duration, num_clips, random_clip_sampling, allow_clip_overlap, center_clips
    )
    transform = transform or to_tensor
    reader = ClipReader(sampling, transform, filter_short_videos, filter_long_videos, decoder, pad_truncated)
    skips = SkipReport(max_skip_fraction, folder)
    source: ClipSource | WebVideoStream
    if dataset_type == "VideoDataset" or dataset_type in EMBEDDED:
        for path in datasets if dataset_type in EMBEDDED else ():
            ensure_embedded(path, dataset_type)
        source = VideoDataset(datasets, reader, labelled)
    elif dataset_type == "ImageDataset":
        source = ImageDataset(datasets, transform, num_frames, classes, labelled)
    elif dataset_type in SHARDED:
        check_rendered(datasets, dataset_type)
        shards = expand(datasets, allow_pipe)
        urls = [shard for group in shards for shard in group]
        if any(is_url(url) for url in urls):
            if datasets_weights is not None:
                raise UserError("data.datasets_weights does not work with streamed shards: list a shard more than once")
            source = WebVideoStream(
                urls, batch_size, training, reader, rank, world_size, num_workers, seed, labelled, label_key
            )
        else:
            source = WebVideoDataset(shards, reader, labelled, label_key)
            skips.note(source.errors)
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
