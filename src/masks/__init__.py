"""Masks: which tokens the encoder sees and which the predictor has to predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from src.masks import clip_row, multiblock3d, random_tube
from src.masks.collator import BaseMaskCollator
from src.utils.errors import UserError

MASK_COLLATORS: dict[str, type[BaseMaskCollator]] = {
    "multiblock3d": multiblock3d.MaskCollator,
    "random_tube": random_tube.MaskCollator,
    "clip_row": clip_row.MaskCollator,
}


def create_mask_collator(
    mask_type: str, cfgs_mask: Sequence[Mapping[str, Any]], *args: Any, **kwargs: Any
) -> BaseMaskCollator:
    """The collator that `data.mask_type` names, built with the other arguments; UserError for an unknown name."""
    if mask_type not in MASK_COLLATORS:
        raise UserError(f"data.mask_type {mask_type!r} does not exist; choose one of {', '.join(MASK_COLLATORS)}")
    return MASK_COLLATORS[mask_type](cfgs_mask, *args, **kwargs)
