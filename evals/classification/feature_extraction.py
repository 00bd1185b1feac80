"""From clips to features: batches of a data loader through the frozen encoder, used at once or kept in a cache.

Legend: B batch, C channels, T H W a clip, L tokens of a view, D width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from evals.classification.feature_cache import CacheWriter, FeatureBatch, FeatureTable, load_cache
from evals.classification.frozen_encoder import ClipAggregation
from src.datasets.batch import Batch
from src.datasets.data_manager import Loader
from src.datasets.samplers import hash_seed
from src.datasets.transforms import normalize
from src.utils.distributed import barrier, current, gather_objects
from src.utils.errors import UserError
from src.utils.progress import Progress


class ClipEncoder:
    """Normalises a batch on the device and runs the aggregated encoder, with gradients only where it is in training.

    `segments` is the number of clips of a video; what is left of a batch's clips are views of each.
    """

    def __init__(self, model: ClipAggregation, segments: int, device: torch.device, use_bfloat16: bool) -> None:
        self.model, self.segments, self.device = model, segments, device
        self.autocast = use_bfloat16 and device.type == "cuda"

    def __call__(self, batch: Batch) -> FeatureBatch:
        """Clips (B, C, T, H, W) uint8, segment-major -> features, labels and positions of the samples in their list."""
        dtype = torch.bfloat16 if self.autocast else torch.float32
        clips = [normalize(clip.to(self.device, non_blocking=True), dtype) for clip in batch.clips]
        views = len(clips) // self.segments
        nested = [clips[s * views : (s + 1) * views] for s in range(self.segments)]
        indices = [index.to(self.device) for index in batch.clip_indices]
        gradients = torch.set_grad_enabled(self.model.training)
        with gradients, torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            features = self.model(nested, indices)
        return FeatureBatch(features, batch.labels, batch.indices)


class LiveSource:
    """Encodes each time it is asked: what training with augmentation, or a set too large for a cache, needs.

    Args:
        training: draw an epoch's steps of the loader's order; else every sample once.
        tune_seed: of an encoder that trains along with the probe: of its stochastic depth. None: it stays frozen.
    """

    def __init__(self, loader: Loader, encode: ClipEncoder, training: bool, tune_seed: int | None = None) -> None:
        self.loader, self.encode, self.training, self.tune_seed = loader, encode, training, tune_seed

    def __len__(self) -> int:
        return self.loader.steps_per_pass if self.training else len(self.loader)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[FeatureBatch]:
        """The batches of one epoch, on this process; in training from step `start` on."""
        if self.training:
            self.loader.start_step, self.loader.total_steps = epoch * len(self) + start, (epoch + 1) * len(self)
        seed = self.tune_seed if self.training else None
        self.encode.model.train(seed is not None)
        for batch in self.loader:
            if seed is not None:  # the same after resuming, and another in each process
                torch.manual_seed(hash_seed(seed, current().rank, batch.step))
            yield self.encode(batch)


def cached_table(
    folder: Path,
    key: str,
    make_loader: Callable[[], Loader],
    make_encode: Callable[[], ClipEncoder],
    pool: bool,
    what: str,
    log: Callable[[str], None],
) -> FeatureTable:
    """The features of a list, from `folder` if it holds exactly these, else encoded by all processes and kept there.

    Args:
        key: everything the features depend on (evals.classification.feature_cache.digest).
        pool: keep only the mean over views and tokens.
        what: name of the features in the log.

    Raises:
        UserError: no sample could be read, or the disk is too small.
    """
    found = load_cache(folder, key)
    barrier()  # every process has looked before one starts to write
    if found is not None:
        log(f"{what}: {len(found.ids)} samples from the cache {folder}")
        return found
    loader, encode, process = make_loader(), make_encode(), current()
    writer = CacheWriter(folder, key, loader.dataset_size, process.rank == 0, barrier)
    started, opened = time.monotonic(), False

    def open_together(own_VLD: tuple[int, ...] | None) -> None:
        """Each process calls it once, with the shape of its samples; None where it could read none of its share."""
        shape_VLD = next((shape for shape in gather_objects(own_VLD) if shape), None)
        if shape_VLD is None:
            raise UserError(f"{what}: none of the {loader.dataset_size} samples could be read")
        writer.open(shape_VLD)

    with Progress(len(loader), what=what, enabled=process.rank == 0) as progress:
        for batch in progress.waiting_for(loader):
            features = encode(batch)
            if pool:
                mean = torch.stack([view.float().mean(1) for view in features.views_BLD]).mean(0)
                features = features._replace(views_BLD=[mean[:, None]])
            if not opened:
                view = features.views_BLD[0]
                open_together((len(features.views_BLD), *view.shape[1:]))
                opened = True
            writer.write(features)
            progress.advance(len(features.labels_B) * process.world_size)
    if not opened:
        open_together(None)
    writer.close()
    table = load_cache(folder, key)
    if table is None:
        raise RuntimeError(f"{folder} was written but cannot be read back")
    seconds = time.monotonic() - started
    log(f"{what}: {len(table.ids)} of {loader.dataset_size} samples encoded in {seconds:.1f} s")
    return table
