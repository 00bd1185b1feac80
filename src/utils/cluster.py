"""Jobs on a SLURM cluster through submitit: what app and evals share. Local processes are in src/utils/launch.py."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
import torch
from submitit.helpers import DelayedSubmission

from src.utils.config import Section
from src.utils.distributed import init_distributed, shutdown
from src.utils.errors import UserError
from src.utils.logging import prepare_folder

Run = tuple[str, str, Section]  # file, name of the app or eval, config

# Ports for the meeting of a job's processes, below the range that systems hand out to others.
_FIRST_PORT, _PORTS = 20000, 12000


@dataclass(frozen=True)
class Resources:
    """What is asked of the cluster; the flags of `main_distributed`."""

    cluster: str
    folder: str
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    minutes: int = 4300
    mem_per_gpu: str | None = None
    cpus_per_task: int = 10
    gpus_per_node: int | None = None  # None: one per task

    def parameters(self, nodes: int, tasks_per_node: int, name: str) -> dict[str, Any]:
        """The same in submitit's words; what is not set is left to the cluster."""
        gpus = tasks_per_node if self.gpus_per_node is None else self.gpus_per_node
        values = {
            "name": name,
            "timeout_min": self.minutes,
            "nodes": nodes,
            "tasks_per_node": tasks_per_node,
            "cpus_per_task": self.cpus_per_task,
            "gpus_per_node": gpus or None,
            "slurm_partition": self.partition,
            "slurm_account": self.account,
            "slurm_qos": self.qos,
            "slurm_constraint": self.constraint,
            "slurm_exclude": self.exclude,
            "slurm_mem_per_gpu": self.mem_per_gpu,
        }
        return {key: value for key, value in values.items() if value is not None}


class Job:
    """What runs in every process of a job. Requeued, it goes on from its latest checkpoint."""

    def __init__(
        self, target: Callable[..., None], name: str, config: Section, on_gpu: bool, resume: bool = False
    ) -> None:
        self.target, self.name, self.config = target, name, config
        self.on_gpu, self.resume = on_gpu, resume

    def __call__(self) -> None:
        job = submitit.JobEnvironment()
        init_distributed(
            job.global_rank,
            job.num_tasks,
            port=int(os.environ.get("MASTER_PORT", _FIRST_PORT + int(re.sub(r"\D", "", job.raw_job_id)) % _PORTS)),
            device=_task_device(job.local_rank, self.on_gpu),
            address="127.0.0.1" if job.num_nodes == 1 else _address(job.hostnames[0]),
        )
        # SLURM itself restarts a job whose node failed; that job too has checkpoints to go on from.
        restarted = int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0
        self.target(self.name, self.config, resume_preempt=self.resume or restarted)
        shutdown()

    def checkpoint(self) -> DelayedSubmission:
        """What submitit queues when the job is preempted or out of time."""
        return DelayedSubmission(Job(self.target, self.name, self.config, self.on_gpu, resume=True))


def _task_device(local_rank: int, on_gpu: bool) -> torch.device:
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


def _address(host: str) -> str:
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


def submit(target: Callable[..., None], runs: Sequence[Run], resources: Resources, dry_run: bool = False) -> int:
    """Submit one job per run; runs of one size become one job array.

    Args:
        target: called in every process as target(name, config, resume_preempt=...).
        runs: the checked configs.
        resources: what to ask for.
        dry_run: say what would be submitted, and stop.

    Returns:
        The exit code. On SLURM that is the submission's; the other clusters wait for their jobs.

    Raises:
        UserError: two runs write to one place, no SLURM here, or (local, debug) a job failed with one.
    """
    _check_places(runs)
    sizes: dict[tuple[int, int], list[Run]] = {}
    for run in runs:
        sizes.setdefault((run[2].nodes, run[2].tasks_per_node), []).append(run)
    for (nodes, tasks), group in sizes.items():
        for file, name, config in group:
            print(f"{file}: {name}, {nodes} x {tasks} processes -> {config.output_folder()}")
    if dry_run:
        return 0
    if resources.cluster == "slurm" and shutil.which("sbatch") is None:
        raise UserError("there is no SLURM here (no sbatch): run this where jobs are submitted, or try --cluster local")
    folder = prepare_folder(resources.folder, "--folder")
    jobs = []
    for (nodes, tasks), group in sizes.items():
        if resources.cluster != "slurm" and nodes > 1:
            raise UserError(
                f"{group[0][0]}: nodes={nodes}: --cluster {resources.cluster} has one machine; pass nodes=1"
            )
        executor = submitit.AutoExecutor(folder=folder / "%j", cluster=resources.cluster)
        parameters = resources.parameters(nodes, tasks, name=group[0][1])
        executor.update_parameters(**parameters)
        calls = [Job(target, name, config, "gpus_per_node" in parameters) for _, name, config in group]
        jobs += executor.submit_array(calls) if len(calls) > 1 else [executor.submit(calls[0])]
    for job in jobs:
        print(f"job {job.job_id}: logs in {job.paths.folder}", flush=True)
    if resources.cluster == "debug":
        for job in jobs:
            os.environ["SUBMITIT_DEBUG_JOB_ID"] = job.job_id
            job.submission().result()
    elif resources.cluster == "local":
        return _wait_local(jobs)
    return 0


def _check_places(runs: Sequence[Run]) -> None:
    """Refuse two runs that would overwrite each other's files."""
    places: dict[Path, str] = {}
    for file, _, config in runs:
        place = config.output_folder().resolve()
        if place in places:
            raise UserError(
                f"{file} and {places[place]} both write to {config.output_folder()}: give each its own folder"
            )
        places[place] = file


def _wait_local(jobs: Sequence[Any]) -> int:
    """Wait for jobs on this machine; the first that failed decides the outcome."""
    code = 0
    try:
        for job in jobs:
            tasks = [job.task(i) for i in range(job.num_tasks)]
            job.wait()
            failed = [task for task in tasks if task.exception() is not None]
            if not failed:
                continue
            # Of the processes of a job one fails and the others lose their peer: show the one that ended first.
            first = min(failed, key=lambda task: _ended(task.paths.result_pickle))
            found = re.search(r"^src\.utils\.errors\.UserError: (.*)$", str(first.exception()), re.MULTILINE)
            if found:
                raise UserError(found.group(1))
            print(first.exception(), file=sys.stderr)
            code = 1
    except BaseException:
        for job in jobs:
            job.cancel(check=False)
        raise
    return code


def _ended(result: Path) -> float:
    """When a process of a job left its result; one that was killed left none and is a cause, not a consequence."""
    return result.stat().st_mtime if result.exists() else 0.0
