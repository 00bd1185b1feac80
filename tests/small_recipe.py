"""A pretraining file that trains in moments, for tests of what launches it."""

from pathlib import Path
from typing import Any


def small_recipe(lists: Path, folder: Path | str, ipe: int) -> dict[str, Any]:
    """ViT-Tiny on four frames of 32 pixels, one epoch of `ipe` steps."""
    return {
        "data": {
            "datasets": [str(lists / "train.csv")],
            "batch_size": 2,
            "num_frames": 4,
            "sampling_rate": 1,
            "crop_size": 32,
            "num_workers": 0,
            "mask_type": "random_tube",
        },
        "logging": {"folder": str(folder)},
        "mask": [{"ratio": 0.5}],
        "model": {"model_name": "vit_tiny", "pred_depth": 1, "pred_embed_dim": 24, "use_mask_tokens": True},
        "optimization": {"epochs": 1, "ipe": ipe, "lr": 1e-4},
    }
