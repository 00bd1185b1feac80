"""What the processes of test_launch.py run; a module of its own, so that a new process can import it."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from src.utils.distributed import all_reduce_mean, barrier, current, is_main
from src.utils.errors import UserError


def report(folder):
    """Each rank writes what it knows of itself, and the mean over all."""
    rank, world_size, device = current()
    mine = torch.tensor([float(rank), 1.0])
    mean = all_reduce_mean(mine)
    barrier()
    facts = {
        "world_size": world_size,
        "device": str(device),
        "backend": dist.get_backend() if dist.is_initialized() else None,
        "mean": mean.tolist(),
        "untouched": mine.tolist() == [rank, 1.0],
        "main": is_main(),
    }
    (Path(folder) / f"{rank}.json").write_text(json.dumps(facts))


def fail(kind):
    """Rank 1 fails while rank 0 waits for it."""
    barrier()
    if current().rank == 1:
        if kind == "user":
            raise UserError("data.datasets: no such file a.csv")
        if kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise KeyError("x" * 200_000 if kind == "long" else "a bug in rank 1")
    all_reduce_mean(torch.ones(1))


def fail_alone(kind):
    """The only process fails."""
    raise UserError("alone") if kind == "user" else KeyError("alone")


def sleep(folder):
    """Say who we are and sleep; rank 1 does not even listen to SIGTERM."""
    if current().rank == 1:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (Path(folder) / f"{current().rank}.tmp").write_text(str(os.getpid()))
    (Path(folder) / f"{current().rank}.tmp").rename(Path(folder) / f"{current().rank}.pid")
    time.sleep(3600)


if __name__ == "__main__":
    from src.launch import local as launch
    from src.launch import processes
    from src.utils.errors import run_cli

    processes._GRACE_S = 1.0
    target = {"sleep": sleep, "report": report}[sys.argv[1]]
    run_cli(lambda: launch.run_local(target, ["cpu", "cpu"] if target is sleep else None, (sys.argv[2],)))
