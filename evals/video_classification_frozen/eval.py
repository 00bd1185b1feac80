"""Frozen evaluation on videos: how they are cut into segments and views, as in V-JEPA (Bardes et al. 2024)."""

from __future__ import annotations

from typing import Any

from evals.classification.evaluation import evaluate
from evals.classification.task import Task, probe_loader
from evals.config import VideoClassificationConfig, VideoProbeConfig
from src.datasets.augmentation import PretrainTransform, make_transforms
from src.datasets.data_manager import Loader
from src.datasets.dataset_types import SHARDED
from src.datasets.transforms import EvalTransform
from src.probes.sample_list import SampleList

SMALLEST_CROP = 0.08  # of the frame, when the probe trains with augmentation


def main(args_eval: VideoProbeConfig, resume_preempt: bool = False) -> dict[str, Any] | None:
    """Run the evaluation in this process; the main one returns what it wrote to the json.

    Raises:
        UserError: anything wrong with config, checkpoint or data.
    """
    return evaluate(args_eval, build_task, resume_preempt)


def build_task(cfg: VideoClassificationConfig) -> Task:
    """Loaders and shapes of a video evaluation."""
    d, o = cfg.data, cfg.optimization
    sampling = {
        "num_frames": d.frames_per_clip,
        "sampling_rate": d.frame_step,
        "clip_duration": cfg.pretrain.clip_duration,
        "num_clips": d.num_segments,
        "allow_clip_overlap": True,
        "decoder": d.decoder,
    }

    def loader(samples: SampleList, mode: str, seed: int) -> Loader:
        transform: PretrainTransform | EvalTransform
        if mode == "augment":
            transform = make_transforms(
                o.resolution,
                random_resize_scale=(SMALLEST_CROP, 1.0),
                horizontal_flip=False,
                auto_augment=True,
                reprob=0.25,
            )
        else:
            transform = EvalTransform(o.resolution, d.num_views_per_segment if mode == "val" else 1)
        reading = {"random_clip_sampling": mode == "augment", "max_skip_fraction": d.max_skip_fraction, **sampling}
        kind = "WebVideoDataset" if d.dataset_type in SHARDED else "VideoDataset"
        return probe_loader(cfg, samples, mode, seed, transform, dataset_type=kind, label_key=d.label_key, **reading)

    return Task(
        train=str(d.dataset_train),
        val=str(d.dataset_val),
        keys={"train": "data.dataset_train", "val": "data.dataset_val"},
        dataset_type=d.dataset_type,
        resolution=o.resolution,
        segments=d.num_segments,
        attend_across_segments=o.attend_across_segments,
        make_loader=loader,
        settings={**sampling, "views": d.num_views_per_segment},
        clip_positions=o.clip_positions,
        label_key=d.label_key,
    )
