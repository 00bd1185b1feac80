"""No masking: every token is context. For the evals: an encoder called with masks=None sees the whole clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data import default_collate


class MaskCollator:
    """Collates samples only. Takes the arguments of the other collators, so that they are exchangeable; needs none."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        pass

    def __call__(self, samples: Sequence[Any], step: int | None = None) -> tuple[Any, None, None]:
        """`(batch, None, None)`: None stands for all tokens."""
        return default_collate(list(samples)), None, None
