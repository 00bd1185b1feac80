"""`app.main` with backbones two blocks deep, and a fault where FAULT="kind rank step ..." asks for one.

The processes that it starts import this module too, and so have the same fault. A step is counted from 0 and is hit
before it is taken; the fault is in a run's own process, as it would be there.
"""

import datetime
import hashlib
import io
import os
import shutil
import signal
import time

import torch

from app.vjepa import train
from src.launch import processes
from src.models.registry import BACKBONES
from src.utils.distributed import current
from src.utils.errors import run_cli

processes._GRACE_S = 1.0
processes._DUMP_S = 60.0  # a process that writes where it hangs has ended long before
for _name, _row in list(BACKBONES.items()):
    BACKBONES[_name] = _row._replace(depth=2)

_train_step = train.train_step


def hang(sign, here):
    """Hang here, or go on where the other hangs: only then, so that no other wait can be too long, time is short."""
    if here:
        sign.touch()
        time.sleep(3600)
    while not sign.exists():
        time.sleep(0.01)
    torch.distributed.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=3))


def faulty(args, run, group, now):
    """train_step, after or with the fault."""
    kind, rank, step = os.environ["FAULT"].split()
    hit = current().rank == int(rank) and str(run.step) in step.split(",")
    if kind == "hang" and str(run.step) == step:
        hang(args.output_folder() / "hangs", hit)
    elif hit and kind == "folder":
        shutil.rmtree(args.output_folder())
    elif hit and kind.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, kind))
    endless.append(float("inf") if hit and kind == "inf" else 0.0)
    numbers = _train_step(args, run, group, now)
    if kind == "inf":
        with (args.output_folder() / f"rank{current().rank}.txt").open("a") as file:
            file.write(fingerprint(run) + "\n")
    return numbers


def losses(*args, **kwargs):
    """jepa_losses, or with a loss that is not finite although its gradient is."""
    found = _jepa_losses(*args, **kwargs)
    return found._replace(loss=found.loss + endless[-1])


def fingerprint(run):
    """Of what a step changes, bit for bit."""
    state = [module.state_dict() for module in (run.encoder, run.predictor, run.target_encoder)]
    file = io.BytesIO()
    torch.save([*state, run.optimizer.state_dict()["state"]], file)
    return hashlib.sha256(file.getvalue()).hexdigest()


if "FAULT" in os.environ:
    endless, _jepa_losses = [], train.jepa_losses
    train.train_step, train.jepa_losses = faulty, losses

if __name__ == "__main__":
    from app.main import main

    run_cli(main)
