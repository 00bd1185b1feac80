"""The processes of one run: who this one is, and the few things they do together.

A launcher calls `init_distributed` once per process; everything else asks `current()`. A run of one process has no
process group, and the collectives here are then the identity.
"""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from src.utils.errors import UserError

# For one collective: what the others may have to wait for is rank 0 writing a large checkpoint to a slow disk, or
# fitting a linear probe alone. A run that hangs costs as much as this, so the environment may say less.
_TIMEOUT_S = 1800.0
TIMEOUT_VARIABLE = "COLLECTIVE_TIMEOUT_S"
_WATCHDOG_S = 120.0  # NCCL's own time-out comes later than ours: it ends the process without saying whose fault it was
_REPORT_S = 5.0  # for the processes that still run to report


class LostError(RuntimeError):
    """Other processes of the run have ended or hang."""


class Process(NamedTuple):
    """One process of a run; unpacks as (rank, world_size, device)."""

    rank: int
    world_size: int
    device: torch.device


_state: dict[str, Process] = {}
_store: dict[str, dist.Store] = {}
_control: dict[str, dist.ProcessGroup] = {}  # of GPU runs: a gloo group for what lies in host memory


def default_device() -> torch.device:
    """The first GPU if there is one, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def current() -> Process:
    """This process; rank 0 of 1 on `default_device()` where no launcher has said otherwise."""
    return _state.get("process") or Process(0, 1, default_device())


def is_main() -> bool:
    """Whether this is the process that writes files."""
    return current().rank == 0


def in_torchrun() -> bool:
    """Whether torchrun, or anything that sets the same variables, started this process."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"))


def init_distributed(
    rank: int = 0,
    world_size: int = 1,
    port: int | None = None,
    device: torch.device | str | None = None,
    backend: str | None = None,
    address: str = "127.0.0.1",
    host_store: bool = True,
    timeout_s: float | None = None,
) -> Process:
    """Join the run.

    Args:
        rank, world_size: this process's number, and how many there are.
        port, address: where the processes meet. Under torchrun they come from the environment and may be left out.
        device: where this process computes; default `default_device()`.
        backend: default nccl for a GPU, gloo for a CPU.
        host_store: whether rank 0 opens the meeting point; False where a launcher already has.
        timeout_s: seconds after which a collective that not every process joined fails; default: the environment's
            COLLECTIVE_TIMEOUT_S, or 1800.

    Raises:
        UserError: the port is taken, or COLLECTIVE_TIMEOUT_S is no number of seconds.
        RuntimeError: the processes could not meet. A run that was asked for several processes never goes on as one.
    """
    process = Process(rank, world_size, torch.device(device) if device is not None else default_device())
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not in a run of {world_size} processes")
    if process.device.type == "cuda":
        torch.cuda.set_device(process.device)
    if world_size > 1:
        timeout = datetime.timedelta(seconds=timeout_s or _default_timeout())
        if port is None:
            store, _, _ = next(dist.rendezvous("env://", rank, world_size, timeout=timeout))
        else:
            store = _meet(address, port, world_size, host_store and rank == 0, timeout)
        meeting = {"store": store, "rank": rank, "world_size": world_size}
        backend = backend or ("nccl" if process.device.type == "cuda" else "gloo")
        if backend == "gloo":
            dist.init_process_group(backend, timeout=timeout, **meeting)
        else:
            later = timeout + datetime.timedelta(seconds=_WATCHDOG_S)
            dist.init_process_group(backend, timeout=later, device_id=process.device, **meeting)
            _control["group"] = dist.new_group(backend="gloo", timeout=timeout)
        _store["store"] = store
    _state["process"] = process
    return process


def _default_timeout() -> float:
    text = os.environ.get(TIMEOUT_VARIABLE, str(_TIMEOUT_S))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e7:
        raise UserError(f"{TIMEOUT_VARIABLE}={text}: expected a number of seconds above 0")
    return seconds


@contextmanager
def naming_the_lost() -> Iterator[None]:
    """Say which processes are gone or hang, when what is done inside fails because they did not take part.

    Raises:
        LostError: in place of the collective's own error.
    """
    try:
        yield
    except RuntimeError as error:  # the backends have no class of their own for it
        if current().world_size == 1 or "gloo" not in str(error):
            raise
        lost = _not_reporting()
        if not lost:
            raise
        who = f"rank {' and '.join(map(str, lost))} of {current().world_size}"
        how = "hangs" if "imed out" in str(error) else "is gone"
        raise LostError(f"{who} {how}: rank {current().rank} waited for it in vain") from error


def _not_reporting() -> list[int]:
    """The ranks that do not report to the store, as every process does that fails for want of another."""
    rank, world_size, _ = current()
    store = _store["store"]
    store.set(f"failed/{rank}", "")
    silent, deadline = list(range(world_size)), time.monotonic() + _REPORT_S
    while silent and time.monotonic() < deadline:
        time.sleep(0.1)
        silent = [other for other in silent if not store.check([f"failed/{other}"])]
    return silent


def _meet(address: str, port: int, world_size: int, host: bool, timeout: datetime.timedelta) -> dist.TCPStore:
    """Open (host) or find the store through which the processes learn of each other."""
    try:
        return dist.TCPStore(address, port, world_size, is_master=host, timeout=timeout)
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise UserError(f"port {port} on this machine is taken, maybe by another job: set MASTER_PORT") from None


def shutdown() -> None:
    """Leave the run. Safe to call when there is nothing to leave."""
    _state.clear()
    _control.clear()
    _store.clear()
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until every process is here, in host memory: one that is gone is noticed at once, not by a watchdog."""
    if current().world_size > 1:
        dist.barrier(group=_control.get("group"))


def all_reduce_max(*values: int) -> list[int]:
    """The largest of each value over all processes, in host memory: no device has to be waited for."""
    if current().world_size == 1:
        return list(values)
    largest = torch.tensor(values, dtype=torch.int64)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=_control.get("group"))
    return largest.tolist()


def gather_objects(mine: Any) -> list[Any]:
    """One object from each process, in order of rank, on every process."""
    world_size = current().world_size
    if world_size == 1:
        return [mine]
    parts: list[Any] = [None] * world_size
    dist.all_gather_object(parts, mine, group=_control.get("group"))
    return parts


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum of `x` over all processes, as a new tensor; `x` lies on this process's device."""
    x = x.detach().clone()
    if current().world_size > 1:
        dist.all_reduce(x)
    return x


def all_reduce_mean(x: Tensor) -> Tensor:
    """Mean of a floating-point `x` over all processes, as a new tensor; `x` lies on this process's device."""
    return all_reduce_sum(x) / current().world_size
