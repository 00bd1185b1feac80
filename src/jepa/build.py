"""Encoder, predictor and target encoder, built from the plain config that a run or its checkpoint has."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from src.jepa.ablation_switches import reinit_weights
from src.models.backbone import VideoEncoder, init_fan_in
from src.models.predictor import Predictor
from src.models.spec import encoder_spec, predictor_spec

Module = TypeVar("Module", bound=nn.Module)


def build_encoder_and_predictor(config: Mapping[str, Any]) -> tuple[VideoEncoder, Predictor]:
    """Both as they are before step 0, drawn from meta.seed. So the random baseline of a checkpoint is drawn again.

    Args:
        config: plain sections and keys with every default filled in (src.jepa.checkpoint_config).
    """
    torch.manual_seed(config["meta"]["seed"])
    encoder = encoder_spec(config).build()
    predictor = predictor_spec(config).build()
    if config["model"]["init"] == "fan_in":
        encoder.apply(init_fan_in)
        predictor.apply(init_fan_in)
    reinit_weights(config["study"], encoder, predictor)
    return encoder, predictor


def make_target_encoder(encoder: Module) -> Module:
    """Copy of the encoder, or of the projector behind it, that only the EMA changes.

    It has no gradients and is in eval mode (no stochastic depth).
    """
    target = copy.deepcopy(encoder).eval()
    return target.requires_grad_(False)
