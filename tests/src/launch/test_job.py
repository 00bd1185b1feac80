"""What a job does in each of its processes: device, port, and its end when it is asked to stop."""

import json
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import submitit
import torch
from submitit.core.utils import DelayedSubmission

from app.scaffold import load
from src.launch.job import Job, job_port, task_device
from src.utils.errors import UserError


def config_of(folder, *overrides):
    return load("configs/pretrain/vm_tiny.yaml", [f"logging.folder={folder}", *overrides])[1].model_dump()


def test_a_requeued_job_resumes(targets):
    job = Job(targets.job, "vjepa", config_of("a"), on_gpu=False)
    again = pickle.loads(pickle.dumps(job.checkpoint()))
    assert isinstance(again, submitit.helpers.DelayedSubmission)
    assert (job.resume, again.function.resume, again.function.name) == (False, True, "vjepa")


def test_a_job_of_an_earlier_version_is_found(targets):
    job = pickle.dumps(Job(targets.job, "vjepa", config_of("a"), on_gpu=False), protocol=0)
    before = job.replace(b"src.launch.job", b"src.utils.job")
    assert before != job
    assert type(pickle.loads(before)) is Job


def test_ports(monkeypatch):
    monkeypatch.delenv("MASTER_PORT", raising=False)
    ports = {job_port(str(job)) for job in range(1_000_000, 1_012_000)}
    assert len(ports) == 12_000, "jobs that may share a node differ"
    assert min(ports) >= 20_000 and max(ports) < 32_768, "outside of what systems hand out"
    monkeypatch.setenv("MASTER_PORT", "4242")
    assert job_port("7") == 4242


def test_device_of_a_task(monkeypatch):
    assert task_device(3, on_gpu=False) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for count, local_rank, expected in ((1, 5, "cuda:0"), (4, 2, "cuda:2")):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        assert task_device(local_rank, on_gpu=True) == torch.device(expected)
    with pytest.raises(UserError, match="tasks_per_node is above the 4 GPUs there"):
        task_device(4, on_gpu=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="the job asked for GPUs and sees none"):
        task_device(0, on_gpu=True)


def run_as_slurm(folder, targets, signal_name, state, scontrol, restarts=0):
    """A job in a process that submitit takes for SLURM's, with stand-ins for the two commands that it calls."""
    (folder / "bin").mkdir(parents=True)
    commands = {"squeue": f"echo {state}", "scontrol": f'echo "$@" >> {folder}/scontrol; {scontrol}'}
    for name, text in commands.items():
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / "bin" / name).chmod(0o755)
    job = Job(targets.until_signalled, "vjepa", config_of(folder / "run", f"logging.write_tag={signal_name}"), False)
    submission = DelayedSubmission(job)
    submission.set_timeout(4300, 10)
    submission.dump(folder / "77_submitted.pkl")
    env = {**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}", "SUBMITIT_EXECUTOR": "slurm"}
    env |= {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "n0"}
    env |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_CPUS_PER_TASK": "1"}
    env["SLURM_RESTART_COUNT"] = str(restarts)
    words = [sys.executable, "-m", "submitit.core._submit", str(folder)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=600)
    asked = (folder / "scontrol").read_text() if (folder / "scontrol").exists() else ""
    with (folder / "77_submitted.pkl").open("rb") as file:
        return done, asked, pickle.load(file).function.resume


def test_who_queues_a_job_again(tmp_path, targets):
    """SIGTERM or the signal before the end: submitit's way, unless SLURM has decided; a refusal is an error."""
    cases = {
        "asked": ("SIGUSR2", "RUNNING", "true"),
        "term": ("SIGTERM", "RUNNING", "true"),
        "cancelled": ("SIGTERM", "COMPLETING", "true"),
        "refused": ("SIGTERM", "RUNNING", "exit 1"),
        "silent": ("SIGTERM", "Socket timed out >&2; exit 1", "true"),
    }
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda name: run_as_slurm(tmp_path / name, targets, *cases[name]), cases))
    for (done, asked, resumes), name in zip(results, cases):
        assert asked == ("" if name in ("cancelled", "silent") else "requeue 77\n"), (name, done.stderr)
        assert resumes == (name not in ("cancelled", "silent"))
    cancelled, refused, silent = (done for done, _, _ in results[2:])
    assert cancelled.returncode == 0
    assert "job 77 is COMPLETING: SLURM decides what becomes of it" in cancelled.stderr
    assert refused.returncode == 1
    assert not (tmp_path / "cancelled" / "run").exists(), "none of them went on"
    assert "job 77 cannot be queued again: Command '['scontrol', 'requeue', '77']' returned" in refused.stderr
    assert silent.returncode == 1, "that SLURM does not answer is no answer"
    assert "job 77 cannot be queued again: squeue: Socket timed out; submit it again to go on" in silent.stderr


def test_a_job_that_slurm_itself_restarts_resumes(tmp_path, targets):
    """After a node was lost nobody could tell the stored job to resume."""
    done, asked, _ = run_as_slurm(tmp_path, targets, "SIGTERM", "RUNNING", "true", restarts=1)
    assert (done.returncode, asked) == (0, ""), done.stderr
    assert json.loads((tmp_path / "run" / "job.json").read_text())["resume"] is True


def test_local_job_out_of_time(tmp_path, targets):
    """submitit's local cluster starts both processes again, and they are told to go on from what is there."""
    executor = submitit.AutoExecutor(folder=tmp_path / "jobs", cluster="local")
    executor.update_parameters(timeout_min=5, tasks_per_node=2)
    config = config_of(tmp_path / "run", "logging.write_tag=SIGUSR2")
    job = executor.submit(Job(targets.until_signalled, "vjepa", config, on_gpu=False))
    assert job.exception() is None
    assert json.loads((tmp_path / "run" / "job.json").read_text()) == {"name": "vjepa", "resume": True, "ranks": 0.5}
