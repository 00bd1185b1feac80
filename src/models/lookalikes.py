"""Files of other models that look like a VideoMamba's: told apart, and refused by name.

Vision Mamba (Vim, hustvl/Vim) has the names and shapes of VideoMamba's image models, but its class token stands in the
middle of the patches and its two directions are averaged. Loaded as VideoMamba it would give wrong features.

Legend: D width, N tokens of an image with the class token.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from src.models.spec import CLS, PATCH, POS
from src.utils.errors import UserError

_OF_VIM = re.compile(r"vim(?![a-z])|.*mid(dle)?_?cls_?tok", re.IGNORECASE)
_OF_VIDEOMAMBA = re.compile(r"videomamba", re.IGNORECASE)
_NAMES_OF_VIM = ("cls_token_head", "cls_token_tail", "rope.freqs_cos")  # of its variants
_FINE = 27  # patches in a row of those, at 224 pixels
_SMOOTHER = 0.6  # of the other order's roughness
_ENOUGH = 1000  # numbers to compare, below which chance could do it


def refuse_vim(
    tensors: Mapping[str, Tensor], path: Path, what: str, args: object = None, model_name: str | None = None
) -> None:
    """Raise UserError if these tensors (bare names) are Vim's, or may be and nobody says that they are VideoMamba's.

    In order: names that only Vim has; the model's name in `args`, which both projects' training scripts keep in their
    checkpoints; a class token in the middle, by the positions; the file's name; one in front, by the positions;
    `model_name`, the caller's word.
    """
    if "layers.0.mixer.in_proj.weight" not in tensors:
        return
    named = _model_of(args)
    is_image = PATCH in tensors and tensors[PATCH].dim() == 4
    if any(name in tensors for name in _NAMES_OF_VIM):
        raise _vim(what, "its tensors are named so")
    if _OF_VIM.match(named):
        raise _vim(what, f"it is of a model '{named}'")
    if not is_image or _OF_VIDEOMAMBA.match(named):
        return
    place = class_token_place(tensors[POS]) if CLS in tensors and POS in tensors else None
    if place == "middle":
        raise _vim(what, "its positions have the class token in the middle")
    if _OF_VIM.match(path.name):  # before the positions: those that Vim resampled in fine-tuning show nothing of it
        raise _vim(what, "it is called so; if it is VideoMamba's, rename it")
    if place == "first" or _OF_VIDEOMAMBA.match(path.name):
        return
    if model_name is None:
        raise UserError(
            f"{what}: an image model of VideoMamba's or of Vim's, whose tensors look alike: if VideoMamba's, pass "
            "model_name, or let the file's name begin with videomamba; Vim's cannot be loaded"
        )


def _vim(what: str, why: str) -> UserError:
    return UserError(f"{what}: Vision Mamba's (Vim's), not VideoMamba's ({why}): its class token is in the middle")


def _model_of(args: object) -> str:
    """The model that a training script's settings name, '' if they do not."""
    settings: Mapping[str, Any] = args if isinstance(args, Mapping) else getattr(args, "__dict__", {})
    return next((v for key in ("model", "model_name", "arch") if isinstance(v := settings.get(key), str)), "")


def class_token_place(pos_1ND: Tensor) -> Literal["first", "middle"] | None:
    """Where the class token is among learned positions (1, N, D) of a square image; None if they do not show it.

    Those of Vim's finer models, patches of 16 pixels every 8, were resampled as if it came first: they do not either.

    Trained positions of neighbours in a row are alike. Taking the class token out of the wrong place shifts half of the
    rows by one, and puts the end of a row beside the beginning of the next.
    """
    count, width = pos_1ND.shape[1], pos_1ND.shape[2]
    side = math.isqrt(count - 1)
    if side**2 != count - 1 or side in (0, 1, _FINE):
        return None
    everything = list(range(count))
    first, middle = (_neighbours(everything[:at] + everything[at + 1 :], side) for at in (0, side**2 // 2))
    if min(len(first - middle), len(middle - first)) * width < _ENOUGH:
        return None
    as_first, as_middle = (_roughness(pos_1ND[0].float(), pairs) for pairs in (first - middle, middle - first))
    if as_first < _SMOOTHER * as_middle:
        return "first"
    return "middle" if as_middle < _SMOOTHER * as_first else None


def _neighbours(patches: list[int], side: int) -> set[tuple[int, int]]:
    """Pairs of tokens beside each other in a row of the image, whose patches are these tokens in raster order."""
    rows = (patches[i : i + side] for i in range(0, len(patches), side))
    return {pair for row in rows for pair in pairwise(row)}


def _roughness(pos_ND: Tensor, pairs: set[tuple[int, int]]) -> float:
    left, right = (torch.tensor(side) for side in zip(*sorted(pairs)))
    return float((pos_ND[left] - pos_ND[right]).square().mean())
