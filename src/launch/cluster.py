"""Submit runs through submitit, to a SLURM cluster or for trying it on this machine. What a job does is in job.py."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import submitit
import torch

from src.config.sweep import Planned, Record
from src.launch.job import Job
from src.launch.local_jobs import run_in_turn
from src.utils.errors import UserError, one_line
from src.utils.logging import prepare_folder
from src.utils.table import print_table

# submitit ends a job for good after so many time-outs (3 by default): a run ends by itself, when its epochs are done.
_MOST_TIMEOUTS = 1000


class Run(NamedTuple):
    """One checked config on its way to the cluster."""

    planned: Planned
    name: str  # of the app or eval
    config: Any  # a Section of a whole file, with nodes and tasks_per_node

    @property
    def title(self) -> str:
        """How messages call it."""
        return self.planned.label or self.planned.source


@dataclass(frozen=True)
class Resources:
    """What is asked of the cluster; the flags of `main_distributed`."""

    cluster: str
    folder: str | Path
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    minutes: int = 4300
    signal_delay_s: int = 90
    mem_per_gpu: str | None = None
    cpus_per_task: int = 10
    gpus_per_node: int | None = None  # None: one per task; on this machine, if it has any
    parallel: int | None = None  # runs at the same time; None: all on SLURM, one on this machine

    def parameters(self, nodes: int, tasks_per_node: int, name: str) -> dict[str, Any]:
        """The same in submitit's words; what is not set is left to the cluster."""
        gpus = self.gpus_per_node
        if gpus is None:
            gpus = tasks_per_node if self.cluster == "slurm" or torch.cuda.is_available() else 0
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
            "slurm_signal_delay_s": self.signal_delay_s,
            "slurm_array_parallelism": self.parallel,
            "slurm_additional_parameters": {"requeue": True},  # some clusters forbid it unless the job says so
        }
        return {key: value for key, value in values.items() if value is not None}

    def executor(self, folder: Path, run: Run) -> tuple[submitit.AutoExecutor, bool]:
        """What submits runs of the size of `run`, and whether they compute on GPUs."""
        options = {"slurm_max_num_timeout": _MOST_TIMEOUTS, "local_max_num_timeout": _MOST_TIMEOUTS}
        executor = submitit.AutoExecutor(folder=folder / "%j", cluster=self.cluster, **options)
        parameters = self.parameters(run.config.nodes, run.config.tasks_per_node, run.name)
        executor.update_parameters(**parameters)
        return executor, "gpus_per_node" in parameters


def submit(
    target: Callable[..., None],
    runs: Sequence[Run],
    resources: Resources,
    dry_run: bool = False,
    sweep: Record | None = None,
) -> int:
    """Submit one job per run; runs of one size become one job array. Finished runs of a sweep are left out.

    Args:
        target: called in every process as target(name, config as plain values, resume_preempt=...).
        runs: the checked configs.
        resources: what to ask for.
        dry_run: say what would be submitted, and stop.
        sweep: where a sweep notes its jobs.

    Returns:
        The exit code. On SLURM that is the submission's; the other clusters wait for their jobs.

    Raises:
        UserError: two runs write to one place, or what is asked for is not to be had here.
    """
    _check_places(runs)
    states = _states(runs, resources, sweep)
    _show(runs, states)
    if dry_run:
        return 0
    _check_cluster(runs, resources)
    runs = [run for run, state in zip(runs, states) if state == "new"]
    if not runs:
        print("nothing to submit")
        return 0
    folder = prepare_folder(resources.folder, "--folder")
    if sweep:
        sweep.write()
    if resources.cluster == "slurm":
        return _submit_arrays(target, runs, resources, folder, sweep)
    return _run_here(target, runs, resources, folder, sweep)


def _check_places(runs: Sequence[Run]) -> None:
    """Refuse two runs that would overwrite each other's files."""
    places: dict[Path, str] = {}
    for run in runs:
        place, source = run.config.output_folder().resolve(), run.planned.source
        if place in places:
            raise UserError(
                f"{source} and {places[place]} both write to {run.config.output_folder()}: give each its own folder"
            )
        places[place] = source


def _check_cluster(runs: Sequence[Run], resources: Resources) -> None:
    """Refuse what this cluster cannot do, before anything is written."""
    if resources.cluster == "slurm":
        if shutil.which("sbatch") is None:
            raise UserError(
                "there is no SLURM here (no sbatch): run this where jobs are submitted, or try --cluster local"
            )
        return
    for run in runs:
        for key, most in (("nodes", 1), ("tasks_per_node", 1 if resources.cluster == "debug" else None)):
            value = getattr(run.config, key)
            if most and value > most:
                has = "one machine" if key == "nodes" else "one process"
                raise UserError(
                    f"{run.planned.source}: {key}={value}: --cluster {resources.cluster} has {has}; pass {key}={most}"
                )


def _states(runs: Sequence[Run], resources: Resources, sweep: Record | None) -> list[str]:
    """For each run: new, or why it is not submitted: finished, or a job of an earlier call still has it."""
    if not runs[0].planned.label:
        return ["new"] * len(runs)  # a config by itself is the user's decision
    jobs = sweep.jobs() if sweep else {}
    queued = _queued() if any(jobs.values()) and resources.cluster == "slurm" else set()
    return [
        "finished" if run.config.finished() else "queued" if jobs.get(run.planned.label) in queued else "new"
        for run in runs
    ]


def _queued() -> set[str]:
    """Ids of the jobs that this user has in SLURM's queue, each of an array's for itself.

    Raises:
        UserError: SLURM does not answer: what it has queued would be submitted a second time, to the same folders.
    """
    if shutil.which("squeue") is None:
        return set()
    asked = subprocess.run(
        ["squeue", "--noheader", "--array", "--me", "--format", "%i"], capture_output=True, text=True
    )
    if asked.returncode:
        raise UserError(f"squeue does not say which jobs are queued: {one_line(asked.stderr)}; try again")
    return set(asked.stdout.split())


def _show(runs: Sequence[Run], states: Sequence[str]) -> None:
    """Print what is about to be submitted: a line for each file, a table for a sweep."""
    if not runs[0].planned.label:
        for run in runs:
            size = f"{run.config.nodes} x {run.config.tasks_per_node}"
            print(f"{run.planned.source}: {run.name}, {size} processes -> {run.config.output_folder()}")
        return
    rows = []
    for run, state in zip(runs, states):
        settings = " ".join(f"{key}={value}" for key, value in run.planned.settings.items())
        size = f"{run.config.nodes} x {run.config.tasks_per_node}"
        rows.append([run.planned.label, settings, size, state, str(run.config.output_folder())])
    print_table(["run", "sets", "processes", "state", "folder"], rows)


def _submit_arrays(
    target: Callable[..., None], runs: Sequence[Run], resources: Resources, folder: Path, sweep: Record | None
) -> int:
    """One array for each size of job."""
    sizes: dict[tuple[int, int], list[Run]] = {}
    for run in runs:
        sizes.setdefault((run.config.nodes, run.config.tasks_per_node), []).append(run)
    for group in sizes.values():
        executor, on_gpu = resources.executor(folder, group[0])
        calls = [_job(target, run, on_gpu) for run in group]
        jobs = executor.submit_array(calls) if len(calls) > 1 else [executor.submit(calls[0])]
        for run, job in zip(group, jobs):
            _tell(run, job, sweep)
    return 0


def _job(target: Callable[..., None], run: Run, on_gpu: bool) -> Job:
    # A sweep that is submitted again goes on where its runs stopped, whatever the base says of load_checkpoint.
    return Job(target, run.name, run.config.model_dump(), on_gpu, resume=bool(run.planned.label))


def _run_here(
    target: Callable[..., None], runs: Sequence[Run], resources: Resources, folder: Path, sweep: Record | None
) -> int:
    """Run on this machine and wait. Returns the exit code."""

    def start(run: Run) -> Any:
        executor, on_gpu = resources.executor(folder, run)
        job = executor.submit(_job(target, run, on_gpu))
        _tell(run, job, sweep)
        return job

    if resources.cluster == "local":
        return run_in_turn([(run.title, functools.partial(start, run)) for run in runs], resources.parallel or 1)
    for run in runs:  # debug: what a run raises is shown as it is, and ends the others
        job = start(run)
        os.environ["SUBMITIT_DEBUG_JOB_ID"] = job.job_id
        job.submission().result()
    return 0


def _tell(run: Run, job: Any, sweep: Record | None) -> None:
    """Say which job has a run, and note it."""
    print(f"job {job.job_id}: {run.title}, logs in {job.paths.folder}", flush=True)
    if sweep:
        sweep.note(run.planned.label, job.job_id, job.paths.folder)
