"""The weights of a pretraining checkpoint, into the modules that they are of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from src.utils.checkpoint import load_state_dict_strict, strip_prefixes


def load_weights(
    state: dict[str, Any],
    path: Path,
    encoder: nn.Module,
    predictor: nn.Module,
    target_encoder: nn.Module,
    target_projector: nn.Module,
) -> None:
    """Load `state`, which `path` held, into a run's modules.

    Raises:
        UserError: names the first parameter that does not fit.
    """
    modules = {"encoder": encoder, "predictor": predictor, "target_encoder": target_encoder}
    modules["target_projector"] = target_projector  # absent from the checkpoints of before there was one
    for name, module in modules.items():
        load_state_dict_strict(module, strip_prefixes(state.get(name, {})), f"{path}: {name}")
