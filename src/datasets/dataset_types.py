"""Kinds of data as a value of a YAML: `data.dataset_type`."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator

_DatasetType = Literal[
    "VideoDataset",
    "WebVideoDataset",
    "ImageDataset",
    "MotionDataset",
    "DriftDataset",
    "SlowDriftDataset",
    "MetaWorldDataset",
]
SHARDED = ("WebVideoDataset", "MetaWorldDataset")  # kinds that are shards on a disk or behind URLs
PAIRED = ("MetaWorldDataset",)  # labels are 2 x scene + direction: a pair of classes differs in the order of time


def _spell_dataset_type(value: object) -> object:
    """V-JEPA compares these without regard to case, and so do files written for it."""
    names = {name.lower(): name for name in get_args(_DatasetType)}
    return names.get(value.lower(), value) if isinstance(value, str) else value


DatasetType = Annotated[_DatasetType, BeforeValidator(_spell_dataset_type)]
