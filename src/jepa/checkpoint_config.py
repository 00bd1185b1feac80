"""The config that a pretraining checkpoint carries: plain sections and keys, those of older versions made whole.

A model is rebuilt from it alone. No schema is needed, and none of any app is known here.
"""

from __future__ import annotations

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
    "model": {"init": "default"},
    "study": {"linear_std": None, "zero_dt_bias": False},
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
