"""Jobs submitted by an earlier version name `src.utils.job.Job`; they find it in src.launch.job."""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    return getattr(importlib.import_module("src.launch.job"), name)
