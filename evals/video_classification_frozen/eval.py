"""Frozen evaluation on videos: how they are cut into segments and views, as in V-JEPA (Bardes et al. 2024)."""

from __future__ import annotations

from typing import Any

from app.vjepa.transforms import make_transforms
from evals.config import VideoProbeConfig
from evals.evaluation import Evaluation
from evals.listing import Listing
from evals.task import Task
from src.datasets.data_manager import Loader, init_data
from src.datasets.transforms import EvalTransform
from src.utils.config import check_ready
from src.utils.distributed import current

SMALLEST_CROP = 0.08  # of the frame, when the probe trains with augmentation


def main(args_eval: VideoProbeConfig, resume_preempt: bool = False) -> dict[str, Any] | None:
    """Run the evaluation in this process; the main one returns what it wrote to the json.

    Raises:
        UserError: anything wrong with config, checkpoint or data.
    """
    check_ready(args_eval, "config")
    return Evaluation(args_eval, build_task(args_eval), args_eval.resume_checkpoint or resume_preempt).run()


def build_task(cfg: VideoProbeConfig) -> Task:
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

    def make_loader(listing: Listing, mode: str, seed: int) -> Loader:
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
        rank, world_size, device = current()
        return init_data(
            dataset_type="VideoDataset",
            datasets=[listing.source],
            batch_size=o.batch_size,
            transform=transform,
            random_clip_sampling=mode == "augment",
            max_skip_fraction=d.max_skip_fraction,
            num_workers=d.num_workers,
            pin_mem=d.pin_mem and device.type == "cuda",
            rank=rank,
            world_size=world_size,
            seed=seed,
            training=mode == "augment",
            folder=cfg.output_folder(),
            **sampling,
        )

    return Task(
        train=str(d.dataset_train),
        val=str(d.dataset_val),
        keys={"train": "data.dataset_train", "val": "data.dataset_val"},
        dataset_type=d.dataset_type,
        resolution=o.resolution,
        segments=d.num_segments,
        attend_across_segments=o.attend_across_segments,
        make_loader=make_loader,
        settings={**sampling, "views": d.num_views_per_segment},
        clip_positions=o.clip_positions,
    )
