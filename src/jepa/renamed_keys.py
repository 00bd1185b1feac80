"""What keys of a pretraining config were called in earlier versions. Old YAMLs and checkpoints are read by it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from src.config.renaming import Renamed, with_new_names

RENAMED: dict[str, Renamed] = {
    "data": Renamed(
        keys={"mask_equalize": "length_matching"},
        values={"length_matching": {"matched": "size_sorted", "tail": "truncate"}},
    ),
    "loss": Renamed(
        keys={"target_pooled": "clip_mean_weight"},
        values={"target_norm": {"batch": "batch_standardize", "whiten": "zca_whiten"}},
    ),
    "model": Renamed(values={"init": {"published": "default"}}),
}


def with_present_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """A plain config, as a checkpoint or a run's folder holds it, under the names of this version."""
    new = dict(config)
    for name, renamed in RENAMED.items():
        if isinstance(config.get(name), Mapping):  # what is no section is for the schema to refuse
            new[name] = with_new_names(config[name], renamed)[0]
    return new
