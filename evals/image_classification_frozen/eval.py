"""Frozen evaluation on images: each is a clip that stands still, as long as the clips the encoder was made for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evals.classification.evaluation import evaluate
from evals.classification.task import Task, probe_loader
from evals.config import ImageProbeConfig
from src.datasets.data_manager import Loader
from src.datasets.transforms import EvalTransform, TrainTransform
from src.probes.sample_list import SampleList

SMALLEST_CROP = 0.08  # of the image, when the probe trains with augmentation
SHORT_SIDE = 256 / 224  # images are resized to this times the resolution before their centre is cut out
SPLITS = ("train", "val")  # folders of one folder per class


def main(args_eval: ImageProbeConfig, resume_preempt: bool = False) -> dict[str, Any] | None:
    """Run the evaluation in this process; the main one returns what it wrote to the json.

    Raises:
        UserError: anything wrong with config, checkpoint or data.
    """
    return evaluate(args_eval, build_task, resume_preempt)


def build_task(cfg: ImageProbeConfig) -> Task:
    """Loaders and shapes of an image evaluation."""
    d = cfg.data
    root = Path(str(d.root_path)) / d.image_folder
    train, val = (str(root / split) for split in SPLITS)

    def loader(samples: SampleList, mode: str, seed: int) -> Loader:
        transform: TrainTransform | EvalTransform
        if mode == "augment":
            transform = TrainTransform(d.resolution, scale=(SMALLEST_CROP, 1.0))
        else:
            transform = EvalTransform(d.resolution, short_side=round(d.resolution * SHORT_SIDE))
        frames = cfg.pretrain.frames_per_clip
        return probe_loader(cfg, samples, mode, seed, transform, dataset_type="ImageDataset", num_frames=frames)

    return Task(
        train=train,
        val=val,
        keys={"train": "data.root_path", "val": "data.root_path"},
        dataset_type="ImageDataset",
        resolution=d.resolution,
        segments=1,
        attend_across_segments=False,
        data_name=d.dataset_name,
        make_loader=loader,
        settings={"num_frames": cfg.pretrain.frames_per_clip, "short_side": SHORT_SIDE},
    )
