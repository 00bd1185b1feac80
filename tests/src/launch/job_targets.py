"""What the jobs of test_cluster.py and test_job.py run; a module of its own, so that a new process can import it."""

import json
import os
import signal
import time
from pathlib import Path

import torch

from src.launch import preemption
from src.utils.distributed import all_reduce_max, all_reduce_mean, current, is_main
from src.utils.errors import UserError


def job(name, config, resume_preempt=False):
    """A run that writes down what it was told."""
    facts = {
        "name": name,
        "resume": resume_preempt,
        "ranks": all_reduce_mean(torch.tensor(float(current().rank))).item(),
    }
    if is_main():
        folder = Path(config["logging"]["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "job.json").write_text(json.dumps(facts))
    if config["logging"]["write_tag"] == "bad":
        raise UserError("logging.write_tag is bad")


def until_signalled(name, config, resume_preempt=False):
    """A run that gets the signal named by logging.write_tag, and stops as training does; started again, it ends."""
    if resume_preempt:
        job(name, config, resume_preempt)
        return
    with preemption.listening():
        if is_main():
            os.kill(os.getpid(), getattr(signal, config["logging"]["write_tag"]))
        while not (signum := all_reduce_max(preemption.requested())[0]):
            time.sleep(0.01)
        raise preemption.Preempted(signum, "saved at step 3")
