"""The processes of one run: who this one is, and the few things they do together.

A launcher calls `init_distributed` once per process; everything else asks `current()`. A run of one process has no
process group, and the collectives here are then the identity.
"""

from __future__ import annotations

import datetime
import os
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from src.utils.errors import UserError

_TIMEOUT_S = 1800  # for one collective; long enough for rank 0 to write a large checkpoint to a slow disk


class Process(NamedTuple):
    """One process of a run; unpacks as (rank, world_size, device)."""

    rank: int
    world_size: int
    device: torch.device


_state: dict[str, Process] = {}
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
    timeout_s: float = _TIMEOUT_S,
) -> Process:
    """Join the run.

    Args:
        rank, world_size: this process's number, and how many there are.
        port, address: where the processes meet. Under torchrun they come from the environment and may be left out.
        device: where this process computes; default `default_device()`.
        backend: default nccl for a GPU, gloo for a CPU.
        host_store: whether rank 0 opens the meeting point; False where a launcher already has.
        timeout_s: seconds after which a collective that not every process joined fails.

    Raises:
        UserError: the port is taken.
        RuntimeError: the processes could not meet. A run that was asked for several processes never goes on as one.
    """
    process = Process(rank, world_size, torch.device(device) if device is not None else default_device())
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not in a run of {world_size} processes")
    if process.device.type == "cuda":
        torch.cuda.set_device(process.device)
    if world_size > 1:
        timeout = datetime.timedelta(seconds=timeout_s)
        backend = backend or ("nccl" if process.device.type == "cuda" else "gloo")
        bind = {"device_id": process.device} if process.device.type == "cuda" else {}
        if port is None:
            dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=timeout, **bind)
        else:
            store = _meet(address, port, world_size, host_store and rank == 0, timeout)
            dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout, **bind)
        if backend != "gloo":
            _control["group"] = dist.new_group(backend="gloo", timeout=timeout)
    _state["process"] = process
    return process


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
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until every process is here."""
    process = current()
    if process.world_size > 1:
        dist.barrier(device_ids=[process.device.index] if process.device.type == "cuda" else None)


def agree(*values: int) -> list[int]:
    """The largest of each value over all processes, in host memory: no device has to be waited for."""
    if current().world_size == 1:
        return list(values)
    largest = torch.tensor(values, dtype=torch.int64)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=_control.get("group"))
    return largest.tolist()


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum of `x` over all processes, as a new tensor; `x` lies on this process's device."""
    x = x.detach().clone()
    if current().world_size > 1:
        dist.all_reduce(x)
    return x


def all_reduce_mean(x: Tensor) -> Tensor:
    """Mean of a floating-point `x` over all processes, as a new tensor; `x` lies on this process's device."""
    return all_reduce_sum(x) / current().world_size
