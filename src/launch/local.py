"""Start a run on this machine, or as part of torchrun. One module for app and evals; job.py is what a cluster runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from src.launch.devices import resolve_devices, share_cores
from src.launch.preemption import Preempted
from src.launch.processes import run_processes
from src.utils.distributed import in_torchrun, init_distributed, naming_the_lost, shutdown
from src.utils.errors import UserError


def run_local(target: Callable[..., None], devices: Sequence[str] | None, args: Sequence[Any] = ()) -> int:
    """Call `target(*args)` in one process per device; in this process where there is one device.

    Args:
        target: a function of a module, so that a new process can import it.
        devices: names, or None for what there is. Under torchrun, the device of each local rank.
        args: picklable arguments.

    Returns:
        The exit code: 0, or that of the first process that failed, whose traceback is then on stderr; 128 + signal of
        a run that was asked to stop.

    Raises:
        UserError: the first failure was one, or the devices do not exist.
    """
    if in_torchrun():
        return _run_in_torchrun(target, devices, args)
    resolved = resolve_devices(devices)
    if len(resolved) > 1:
        return run_processes(target, resolved, args)
    init_distributed(device=resolved[0])
    try:
        target(*args)
    except Preempted as stop:
        return _stopped(stop)
    finally:
        shutdown()
    return 0


def _stopped(stop: Preempted) -> int:
    """Say that a run was asked to stop, and where it is. Returns the exit code."""
    print(stop, file=sys.stderr, flush=True)
    return stop.exitcode


def _run_in_torchrun(target: Callable[..., None], devices: Sequence[str] | None, args: Sequence[Any]) -> int:
    """Join the processes that torchrun has started; it watches over them."""
    local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    resolved = resolve_devices(devices)
    if devices is None and resolved[0].type == "cpu":
        resolved *= local_size
    if len(resolved) < local_size:
        raise UserError(
            f"torchrun starts {local_size} processes here for {len(resolved)} devices: lower --nproc-per-node"
        )
    init_distributed(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), device=resolved[local_rank])
    share_cores(resolved[local_rank], local_size)
    try:
        with naming_the_lost():
            target(*args)
    except Preempted as stop:
        return _stopped(stop)
    shutdown()
    return 0
