"""Kinds of values, and checks of them, that more than one schema uses."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from src.utils.paths import expand_user

Range = Annotated[list[float], Field(min_length=2, max_length=2)]
Share = Annotated[float, Field(ge=0, le=1)]


def _without_nothing(value: object) -> object:
    """`key:` with nothing after it is an empty list, and so is a list whose only entry was left empty."""
    if value is None:
        return []
    return [item for item in value if item is not None] if isinstance(value, list) else value


# A file or folder, with `~` for a home folder; every key that names one has this type.
PathText = Annotated[str, AfterValidator(expand_user)]
PathList = Annotated[list[PathText], BeforeValidator(_without_nothing)]


def check_divisible(key: str, value: int, by_key: str, by: int) -> None:
    """Refuse a size that does not split into whole tokens.

    Raises:
        ValueError: names both keys and the nearest sizes that would do.
    """
    if value % by:
        below = value // by * by
        near = f"{below} or {below + by}" if below else str(by)
        raise ValueError(f"{key}={value} is not divisible by {by_key}={by}: use {near}")


def check_range(key: str, pair: list[float] | None, most: float | None = None) -> None:
    """Refuse a [low, high] pair that is not 0 < low <= high <= most.

    Raises:
        ValueError: names the key and the rule.
    """
    low, high = pair or (0.0, 0.0)
    if not 0 < low <= high or (most is not None and high > most):
        limit = f" <= {most:g}" if most is not None else ""
        raise ValueError(f"{key}={pair} must be [low, high] with 0 < low <= high{limit}")
