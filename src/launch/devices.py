"""Which devices this machine has, and which of them a run uses."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from src.utils.errors import UserError


def available_devices() -> list[str]:
    """Names of the devices of this machine."""
    names = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return [*names, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def resolve_devices(names: Sequence[str] | None) -> list[torch.device]:
    """The devices of a run, one per process.

    Args:
        names: as given on the command line; None for every GPU, or the CPU where there is none.

    Raises:
        UserError: a device that does not exist (names those that do), a GPU named twice, or a mixture of kinds.
    """
    there = available_devices()
    if names is None:
        return [torch.device(name) for name in there if name.startswith("cuda")] or [torch.device("cpu")]
    if not names:
        raise UserError(f"command line: --devices names no device; there is: {', '.join(there)}")
    names = [{"cuda": "cuda:0", "mps:0": "mps", "cpu:0": "cpu"}.get(name, name) for name in names]
    for name in names:
        if name not in there:
            raise UserError(f"command line: --devices: there is no device '{name}' here; there is: {', '.join(there)}")
        if name != "cpu" and names.count(name) > 1:
            raise UserError(
                f"command line: --devices: {name} is named twice; a device other than cpu takes one process"
            )
    kinds = sorted({name.split(":")[0] for name in names})
    if len(kinds) > 1:
        raise UserError(f"command line: --devices mixes {' and '.join(kinds)}: all processes need the same kind")
    return [torch.device(name) for name in names]


def share_cores(device: torch.device, processes: int) -> None:
    """Split the cores of this machine between processes that compute on them, unless the user has done so."""
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // processes))
