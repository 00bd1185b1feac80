"""What one evaluation has to know about its data, and the probe that its config asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from evals.config import ProbeConfig
from evals.finetune import Tuning
from evals.frozen_encoder import Loaded, probe_heads
from evals.listing import Listing
from evals.probe_files import ProbeSettings
from src.datasets.data_manager import Loader
from src.utils.errors import UserError


@dataclass(frozen=True)
class Task:
    """What an eval.py knows and the rest does not.

    Attributes:
        train, val: where the lists are.
        keys: which config keys name them, by 'train' and 'val'.
        dataset_type: as data.dataset_type.
        resolution: side of a view, pixels.
        segments: clips of a sample.
        attend_across_segments: one probe over all clips of a sample.
        data_name: what the data is called in the results, if the config says.
        clip_positions: add each frame's place in its video to its tokens.
        make_loader: (listing, mode, seed) -> Loader, mode being 'augment' (training), 'plain' (training samples, one
        view,
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
    make_loader: Callable[[Listing, str, int], Loader]
    settings: dict[str, Any]
    clip_positions: bool = False
    data_name: str | None = None
    tuning: Tuning | None = None


def probe_settings(cfg: ProbeConfig, loaded: Loaded, tuning: Tuning | None = None) -> ProbeSettings:
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
