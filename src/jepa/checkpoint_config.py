"""The config that a pretraining checkpoint carries: plain sections and keys, those of older versions made whole.

A model is rebuilt from it alone. No schema is needed, and none of any app is known here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from src.jepa.renamed_keys import with_present_names
from src.models.spec import encoder_spec, predictor_spec
from src.utils.errors import UserError, one_line

# What keys that came later mean where a checkpoint has none of them: what the code did before.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "data": {"clip_duration": None},
    "loss": {"target_norm": "layer", "clip_mean_weight": 0.0},
    "meta": {"seed": 0, "use_sdpa": True},
    "model": {"init": "default", "scan_order": "spatial", "halve_directions": False, "projector": None},
    "study": {"linear_std": None, "zero_dt_bias": False},
}

# What the network before step 0 is made from (src.jepa.build): every key of `model` but these, and the listed ones.
_NOT_OF_THE_START = ("drop_path_rate", "use_activation_checkpointing", "compile_model")
_OF_THE_START = {
    "meta": ("seed",),
    "data": ("crop_size", "patch_size", "num_frames", "tubelet_size"),
    "study": ("linear_std", "zero_dt_bias"),
}


def checkpoint_config(state: Mapping[str, Any], path: Path) -> dict[str, Any] | None:
    """The config of a checkpoint's dictionary; None where it has none, as published weights do.

    Raises:
        UserError: what stands in its place is no config of a pretraining run.
    """
    config = state.get("config")
    if not config:
        return None
    try:
        config = with_present_names(config)
        config |= {name: defaults | config.get(name, {}) for name, defaults in _DEFAULTS.items()}
        encoder_spec(config), predictor_spec(config)
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{path}: its config is not a pretraining config of this version: {one_line(error)}") from None
    return config


def check_same_start(stored: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    """Refuse to go on from a checkpoint under a config whose network before step 0 was another one.

    The checkpoints to come carry the new config, and evaluations draw their random baseline from it again.

    Args:
        stored: the config of `path`, made whole (`checkpoint_config`).
        now: the run's config, every default filled in.

    Raises:
        UserError: names the first key that differs, and both values.
    """
    model = tuple(key for key in now["model"] if key not in _NOT_OF_THE_START)
    for section, keys in {**_OF_THE_START, "model": model}.items():
        for key in keys:
            then, wanted = stored[section].get(key), now[section][key]
            if then != wanted:
                raise UserError(
                    f"{path}: its run began with {section}.{key}={_shown(then)}, and {_shown(wanted)} is asked for: "
                    "the random baseline of evaluations, drawn from the config, would not be its start; set "
                    f"{section}.{key}={_shown(then)}, or start afresh (no meta.read_checkpoint, another folder)"
                )


def _shown(value: Any) -> str:
    """A value as YAML has it."""
    return json.dumps(value)
