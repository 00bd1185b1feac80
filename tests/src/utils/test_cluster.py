"""What would be submitted, what a job does, and a whole job on this machine through submitit."""

import json
import pickle
from pathlib import Path

import pytest
import submitit
import torch
import yaml

from app.scaffold import load
from src.utils.cluster import Job, Resources, _task_device, submit
from src.utils.errors import UserError

HERE = Path(__file__).parent


@pytest.fixture
def targets(monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.setenv("PYTHONPATH", f"{HERE}:{Path.cwd()}")
    import launch_targets

    return launch_targets


def run_of(folder, *overrides):
    name, config = load("configs/pretrain/vm_tiny.yaml", [f"logging.folder={folder}", *overrides])
    return (f"{folder}.yaml", name, config)


def resources(tmp_path, cluster, **options):
    return Resources(
        cluster=cluster, folder=str(tmp_path / "jobs"), cpus_per_task=1, gpus_per_node=0, minutes=5, **options
    )


def test_what_is_asked_for():
    asked = Resources(cluster="slurm", folder="x", partition="low", mem_per_gpu="55G").parameters(2, 4, "vjepa")
    assert asked == {
        "name": "vjepa",
        "timeout_min": 4300,
        "nodes": 2,
        "tasks_per_node": 4,
        "cpus_per_task": 10,
        "gpus_per_node": 4,
        "slurm_partition": "low",
        "slurm_mem_per_gpu": "55G",
    }
    assert "gpus_per_node" not in Resources(cluster="slurm", folder="x", gpus_per_node=0).parameters(1, 1, "a")


def test_sbatch_understands_it(tmp_path, targets, monkeypatch):
    """submitit refuses parameters that it does not know when they are set; a stand-in sbatch keeps the script."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name, text in {"sbatch": f'cp "$1" {tmp_path}/script; echo Submitted batch job 123', "srun": ""}.items():
        (bin_folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (bin_folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}:/usr/bin:/bin")
    asked = resources(tmp_path, "slurm", partition="low", account="a", qos="q", constraint="c", exclude="n7")
    runs = [run_of(tmp_path / name, "nodes=2", "tasks_per_node=3") for name in "ab"]
    assert submit(targets.job, runs, asked) == 0
    script = (tmp_path / "script").read_text()
    for line in ("nodes=2", "ntasks-per-node=3", "partition=low", "account=a", "qos=q", "constraint=c", "exclude=n7",
                 "cpus-per-task=1", "time=5", "array=0-1%2", "job-name=vjepa"):  # fmt: skip
        assert f"#SBATCH --{line}\n" in script
    assert "gpus" not in script


def test_dry_run_submits_nothing(tmp_path, targets, capsys):
    assert submit(targets.job, [run_of(tmp_path / "a")], resources(tmp_path, "slurm"), dry_run=True) == 0
    assert capsys.readouterr().out == f"{tmp_path}/a.yaml: vjepa, 1 x 1 processes -> {tmp_path}/a\n"
    assert not (tmp_path / "jobs").exists()


def test_refusals(tmp_path, targets, monkeypatch):
    same = [run_of(tmp_path / "a"), run_of(tmp_path / "b", f"logging.folder={tmp_path}/x/../a")]
    with pytest.raises(UserError, match="both write to"):
        submit(targets.job, same, resources(tmp_path, "debug"))
    with pytest.raises(UserError, match="nodes=2: --cluster local has one machine"):
        submit(targets.job, [run_of(tmp_path / "a", "nodes=2")], resources(tmp_path, "local"))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="there is no SLURM here"):
        submit(targets.job, [run_of(tmp_path / "a")], resources(tmp_path, "slurm"))


def test_debug_runs_here(tmp_path, targets, monkeypatch):
    monkeypatch.delenv("SUBMITIT_DEBUG_JOB_ID", raising=False)
    assert submit(targets.job, [run_of(tmp_path / "a")], resources(tmp_path, "debug")) == 0
    assert json.loads((tmp_path / "a" / "job.json").read_text()) == {"name": "vjepa", "resume": False, "ranks": 0}


def test_a_requeued_job_resumes(targets):
    job = Job(targets.job, "vjepa", run_of("a")[2], on_gpu=False)
    again = pickle.loads(pickle.dumps(job.checkpoint()))
    assert isinstance(again, submitit.helpers.DelayedSubmission)
    assert (job.resume, again.function.resume, again.function.name) == (False, True, "vjepa")


def test_local_job_of_two_processes(tmp_path, targets):
    """submitit starts both; one complains, and its complaint is the outcome."""
    run = run_of(tmp_path / "a", "tasks_per_node=2", "logging.write_tag=bad")
    with pytest.raises(UserError, match=r"^logging.write_tag is bad$"):
        submit(targets.job, [run], resources(tmp_path, "local"))
    assert json.loads((tmp_path / "a" / "job.json").read_text())["ranks"] == 0.5


def test_device_of_a_task(monkeypatch):
    assert _task_device(3, on_gpu=False) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for count, local_rank, expected in ((1, 5, "cuda:0"), (4, 2, "cuda:2")):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        assert _task_device(local_rank, on_gpu=True) == torch.device(expected)
    with pytest.raises(UserError, match="tasks_per_node is above the 4 GPUs there"):
        _task_device(4, on_gpu=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="the job asked for GPUs and sees none"):
        _task_device(0, on_gpu=True)


def test_list_of_configs(tmp_path):
    from src.utils.cli import config_list

    path = tmp_path / "list.yaml"
    path.write_text(yaml.safe_dump(["a.yaml", "b.yaml"]))
    assert config_list(str(path)) == ["a.yaml", "b.yaml"]
    path.write_text("a: 1")
    with pytest.raises(UserError, match="--batch-launch wants a YAML list of config files"):
        config_list(str(path))
