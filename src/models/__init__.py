"""Backbones, predictor and probe head; `load_encoder` reads an encoder from any file that has one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from src.models.loading import load_encoder

__all__ = ["load_encoder"]


def __getattr__(name: str) -> Any:
    """Import `load_encoder` when it is asked for: torch takes seconds, and a command's --help needs none of it."""
    if name != "load_encoder":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from src.models.loading import load_encoder

    return load_encoder
