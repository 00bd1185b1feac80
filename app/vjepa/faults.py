"""The faults of an earlier attempt at this combination, to be switched on one at a time: the `study` section.

It did not converge (SSv2 frozen probe 3.2 %), and its code differs from ours in what is listed in `StudyConfig`, and in
keys that have their own place (`model.pred_token_order`, `model.drop_path_rate`, `data.mask_equalize`, ...). Whether
any of it is why is a question for controlled runs, which need a way to make the mistakes again.
"""

from __future__ import annotations

import torch
from torch import nn

from app.vjepa.config import StudyConfig
from src.models.utils.mamba import MambaMixer


@torch.no_grad()
def redraw(study: StudyConfig, *modules: nn.Module) -> None:
    """Draw weights again as `study` asks for, in place, from the present state of the random generator."""
    parts = [part for module in modules for part in module.modules()]
    mixers = [part for part in parts if isinstance(part, MambaMixer)]
    step_sizes = [getattr(mixer, f"dt_proj{suffix}") for mixer in mixers for suffix in mixer.suffixes]
    if study.linear_std is not None:
        for part in parts:
            if isinstance(part, (nn.Linear, nn.Conv3d)):
                nn.init.trunc_normal_(part.weight, std=study.linear_std)
                if part.bias is not None and part not in step_sizes:  # their biases are a switch of their own
                    nn.init.zeros_(part.bias)
    if study.zero_dt_bias:
        for step_size in step_sizes:
            nn.init.zeros_(step_size.bias)
