"""What one evaluation has to know about its data, and the probe that its config asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from evals.classification.finetuning import Tuning
from evals.classification.frozen_encoder import LoadedEncoder, probe_heads
from evals.classification.probe_checkpoint import ProbeSettings
from evals.config import ProbeConfig
from src.datasets.clip_reader import Transform
from src.datasets.data_manager import Loader, init_data
from src.probes.sample_list import SampleList
from src.utils.distributed import current
from src.utils.errors import UserError


@dataclass(frozen=True)
class Task:
    """What an eval.py knows and the rest does not.

    Attributes:
        train, val: where the lists are.
        keys: which config keys name them, by 'train' and 'val'.
        dataset_type, label_key: as data.dataset_type and data.label_key.
        resolution: side of a view, pixels.
        segments: clips of a sample.
        attend_across_segments: one probe over all clips of a sample.
        data_name: what the data is called in the results, if the config says.
        clip_positions: add each frame's place in its video to its tokens.
        make_loader: (samples, mode, seed) -> Loader. mode is 'augment' (training), 'plain' (training samples, one view,
            no augmentation, in order) or 'val' (all views, in order).
        settings: what the features of 'plain' and 'val' depend on, for the key of the cache.
        tuning: how the encoder trains along with the probe; None: it is frozen.
    """

    train: str
    val: str
    keys: dict[str, str]
    dataset_type: str
    resolution: int
    segments: int
    attend_across_segments: bool
    make_loader: Callable[[SampleList, str, int], Loader]
    settings: dict[str, Any]
    clip_positions: bool = False
    data_name: str | None = None
    tuning: Tuning | None = None
    label_key: str | None = None


def probe_loader(
    cfg: ProbeConfig, samples: SampleList, mode: str, seed: int, transform: Transform, **reading: Any
) -> Loader:
    """The loader of one evaluation; `reading` are the arguments of `init_data` that its kind of data has."""
    rank, world_size, device = current()
    return init_data(
        datasets=[samples.source],
        batch_size=cfg.optimization.batch_size,
        transform=transform,
        num_workers=cfg.data.num_workers,
        pin_mem=cfg.data.pin_mem and device.type == "cuda",
        rank=rank,
        world_size=world_size,
        seed=seed,
        training=mode == "augment",
        folder=cfg.output_folder(),
        classes=samples.classes,
        **reading,
    )


def probe_settings(cfg: ProbeConfig, loaded: LoadedEncoder, tuning: Tuning | None = None) -> ProbeSettings:
    """The attentive probe that the config asks for. Raises UserError if its heads do not divide the encoder's width."""
    o, width = cfg.optimization, loaded.encoder.embed_dim
    heads = o.num_heads or probe_heads(loaded.encoder)
    if width % heads:
        raise UserError(f"optimization.num_heads={heads} does not divide the encoder's width {width}")
    return ProbeSettings(
        embed_dim=width,
        num_heads=heads,
        num_classes=cfg.data.num_classes,
        num_epochs=o.num_epochs,
        lrs=tuple(o.lrs or [o.lr]),
        weight_decays=tuple(o.weight_decays or [o.weight_decay]),
        start_lr=o.start_lr,
        final_lr=o.final_lr,
        warmup=o.warmup,
        use_bfloat16=o.use_bfloat16,
        seed=cfg.seed,
        val_every=o.val_every,
        tuning=tuning,
    )
