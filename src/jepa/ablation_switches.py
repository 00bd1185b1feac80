"""Ablation switches on the initial weights: the `study` section of a pretraining YAML.

An earlier attempt at this combination did not converge (SSv2 frozen probe 3.2 %). Its code differs from ours in what
`StudyConfig` lists, and in keys that have their own place (`model.pred_token_order`, `model.drop_path_rate`,
`data.length_matching`, ...). Each difference can be switched on alone, to measure what it does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from src.models.utils.mamba import MambaMixer


@torch.no_grad()
def reinit_weights(study: Mapping[str, Any], *modules: nn.Module) -> None:
    """Draw initial weights again as the `study` section says, in place, from the global random generator."""
    parts = [part for module in modules for part in module.modules()]
    mixers = [part for part in parts if isinstance(part, MambaMixer)]
    step_sizes = [getattr(mixer, f"dt_proj{suffix}") for mixer in mixers for suffix in mixer.suffixes]
    if study["linear_std"] is not None:
        for part in parts:
            if isinstance(part, (nn.Linear, nn.Conv3d)):
                nn.init.trunc_normal_(part.weight, std=study["linear_std"])
                if part.bias is not None and part not in step_sizes:  # their biases are a switch of their own
                    nn.init.zeros_(part.bias)
    if study["zero_dt_bias"]:
        for step_size in step_sizes:
            nn.init.zeros_(step_size.bias)
