"""Kinds of values that more than one schema uses. Imports nothing slow, but the table of models to check a name."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field

Range = Annotated[list[float], Field(min_length=2, max_length=2)]
Share = Annotated[float, Field(ge=0, le=1)]


def _check_model_name(name: str) -> str:
    from src.models.registry import BACKBONES, PREDICTOR_ONLY  # imports torch, which takes seconds: not for --help

    if name in PREDICTOR_ONLY:
        raise ValueError(f"'{name}' is a predictor only; encoders: {', '.join(BACKBONES)}")
    if name not in BACKBONES:
        raise ValueError(f"there is no model '{name}'; models: {', '.join(BACKBONES)}")
    return name


def _check_predictor_name(name: str) -> str:
    from src.models.registry import BACKBONES, PREDICTOR_ONLY

    if name not in BACKBONES | PREDICTOR_ONLY:
        raise ValueError(f"there is no model '{name}'; predictors: {', '.join(BACKBONES | PREDICTOR_ONLY)}")
    return name


def _without_nothing(value: object) -> object:
    """`key:` with nothing after it is an empty list, and so is a list whose only entry was left empty."""
    if value is None:
        return []
    return [item for item in value if item is not None] if isinstance(value, list) else value


ModelName = Annotated[str, AfterValidator(_check_model_name)]
PredictorName = Annotated[str, AfterValidator(_check_predictor_name)]
PathList = Annotated[list[str], BeforeValidator(_without_nothing)]


_DatasetType = Literal[
    "VideoDataset", "WebVideoDataset", "ImageDataset", "MotionDataset", "DriftDataset", "SlowDriftDataset"
]


def _spell_dataset_type(value: object) -> object:
    """V-JEPA compares these without regard to case, and so do files written for it."""
    names = {name.lower(): name for name in get_args(_DatasetType)}
    return names.get(value.lower(), value) if isinstance(value, str) else value


DatasetType = Annotated[_DatasetType, BeforeValidator(_spell_dataset_type)]


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
