"""What runs in every process of a submitted job: join the others, run, and be queued again if it has to stop early."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable
from typing import Any

import submitit
import torch
from submitit.core.utils import UncompletedJobError
from submitit.helpers import DelayedSubmission

from src.launch.devices import share_cores
from src.launch.preemption import Preempted
from src.utils.distributed import init_distributed, naming_the_lost, shutdown
from src.utils.errors import UserError, one_line
from src.utils.logging import get_logger

logger = get_logger(__name__)

# Ports for the meeting of a job's processes, below the range that systems hand out to others.
_FIRST_PORT, _PORTS = 20000, 12000


class Job:
    """A run as submitit pickles it. Requeued, it goes on from its latest checkpoint.

    Args:
        target: called as target(name, config, resume_preempt=...).
        name: of the app or eval.
        config: its checked config as plain values: a job may start days later, when the schema has new keys.
        on_gpu: whether GPUs were asked for.
        resume: go on from what the folder holds, whatever the config says.
    """

    def __init__(
        self, target: Callable[..., None], name: str, config: dict[str, Any], on_gpu: bool, resume: bool = False
    ) -> None:
        self.target, self.name, self.config = target, name, config
        self.on_gpu, self.resume = on_gpu, resume

    def __call__(self) -> None:
        job = submitit.JobEnvironment()
        if job.cluster == "local":  # where it comes from someone who wants the run to end; submitit would ignore it
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        device = task_device(job.local_rank, self.on_gpu)
        _share_cores(device, job.num_tasks // job.num_nodes)
        init_distributed(
            job.global_rank,
            job.num_tasks,
            port=job_port(job.raw_job_id),
            device=device,
            address="127.0.0.1" if job.num_nodes == 1 else node_address(job.hostnames[0]),
        )
        # SLURM itself restarts a job whose node failed; that job too has checkpoints to go on from.
        restarted = int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0
        try:
            with naming_the_lost():
                self.target(self.name, self.config, resume_preempt=self.resume or restarted)
        except Preempted as stop:
            try:
                _end_early(job, stop)
            finally:
                shutdown()
        shutdown()

    def checkpoint(self) -> DelayedSubmission:
        """What submitit queues in place of this job when it is preempted or out of time."""
        return DelayedSubmission(Job(self.target, self.name, self.config, self.on_gpu, resume=True))


def job_port(job_id: str) -> int:
    """Where the processes of a job meet: MASTER_PORT, or one that jobs started one after another do not share."""
    return int(os.environ.get("MASTER_PORT", _FIRST_PORT + int(re.sub(r"\D", "", job_id)) % _PORTS))


def task_device(local_rank: int, on_gpu: bool) -> torch.device:
    """The device of one process of a node. A job that asked for GPUs never computes on the CPU instead."""
    if not on_gpu:
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise UserError("the job asked for GPUs and sees none: check the partition, or pass --gpus-per-node 0")
    if count == 1:
        return torch.device("cuda", 0)  # the cluster binds one GPU to each process
    if local_rank >= count:
        raise UserError(f"process {local_rank} of this node has no GPU: tasks_per_node is above the {count} GPUs there")
    return torch.device("cuda", local_rank)


def _share_cores(device: torch.device, processes: int) -> None:
    """Threads of a process on a CPU: the cores that SLURM gave it, or its share of this machine."""
    given = os.environ.get("SLURM_CPUS_PER_TASK")
    if given is None:
        share_cores(device, processes)
    elif device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(int(given))


def node_address(host: str) -> str:
    """Network address of a node: its name where that resolves, else what SLURM knows."""
    try:
        return socket.gethostbyname(host)
    except socket.gaierror:
        pass
    shown = subprocess.run(["scontrol", "show", "node", host], capture_output=True, text=True, check=True).stdout
    found = re.search(r"NodeAddr=(\S+)", shown)
    if found is None:
        raise RuntimeError(f"neither DNS nor SLURM knows the address of node {host}")
    return socket.gethostbyname(found.group(1))


def _user_signal() -> int:
    """What submitit has SLURM send before a job's end: USR2 unless SUBMITIT_PREEMPT_SIGNAL says otherwise."""
    return getattr(signal, f"SIG{submitit.JobEnvironment.USR_SIG}")


def _end_early(job: submitit.JobEnvironment, stop: Preempted) -> None:
    """Leave a job whose state is saved: its first process has it queued again where that is wanted, all end.

    Raises:
        SystemExit: the usual end.
        UserError: the job cannot be queued again; says why.
        Preempted: nobody could start this again (--cluster debug).
    """
    # submitit's, back in its place: puts what `Job.checkpoint` returns where the job is stored, requeues it and exits.
    requeue = signal.getsignal(_user_signal())
    if not callable(requeue):
        raise stop
    if job.global_rank != 0:
        raise SystemExit(0)
    if job.cluster != "slurm" and stop.signum != _user_signal():
        raise SystemExit(stop.exitcode)
    try:
        state = _slurm_state(job.raw_job_id) if job.cluster == "slurm" else "RUNNING"
        if state == "RUNNING":
            requeue(stop.signum, None)
    except (UncompletedJobError, subprocess.SubprocessError, OSError) as error:
        raise UserError(
            f"{stop}; but job {job.job_id} cannot be queued again: {_reason(error)}; submit it again to go on"
        ) from None
    # Cancelled by its user, or already put back by SLURM itself: either way the decision is made.
    logger.info(f"{stop}; job {job.job_id} is {state}: SLURM decides what becomes of it")
    raise SystemExit(0)


def _slurm_state(job_id: str) -> str:
    """State of a job in SLURM's word. A job in its grace time, or short of its time limit, is still RUNNING.

    Raises:
        subprocess.SubprocessError: SLURM does not answer, which says nothing about the job.
    """
    asked = subprocess.run(
        ["squeue", "--noheader", "--jobs", job_id, "--format", "%T"], capture_output=True, text=True, timeout=60
    )
    if asked.returncode and "Invalid job id" not in asked.stderr:  # SLURM has forgotten a job of that id
        raise subprocess.SubprocessError(f"squeue: {one_line(asked.stderr)}")
    return asked.stdout.strip() or "gone"


def _reason(error: Exception) -> str:
    """Why the requeue failed, on one line."""
    if isinstance(error, FileNotFoundError):
        return f"there is no {error.filename} on this node"
    return one_line(error).removeprefix("Job not requeued because: ").rstrip(".")
