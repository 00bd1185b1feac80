"""What would be submitted, and whole jobs on this machine through submitit."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from app.scaffold import load
from app.vjepa.run_status import read_status
from src.config.sweep import Planned, Record
from src.datasets.embedded.generate import write_motion
from src.launch.cluster import Resources, Run, submit
from src.utils.errors import UserError
from tests.small_recipe import small_recipe

HERE = Path(__file__).parent


def run_of(folder, *overrides):
    name, config = load("configs/pretrain/vm_tiny.yaml", [f"logging.folder={folder}", *overrides])
    return Run(Planned(f"{folder}.yaml", {}), name, config)


def resources(tmp_path, cluster, **options):
    return Resources(
        cluster=cluster, folder=str(tmp_path / "jobs"), cpus_per_task=1, gpus_per_node=0, minutes=5, **options
    )


def test_what_is_asked_for(monkeypatch):
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
        "slurm_signal_delay_s": 90,
        "slurm_additional_parameters": {"requeue": True},
    }
    assert "gpus_per_node" not in Resources(cluster="slurm", folder="x", gpus_per_node=0).parameters(1, 1, "a")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "gpus_per_node" not in Resources(cluster="local", folder="x").parameters(1, 1, "a")


def test_sbatch_understands_it(tmp_path, targets, monkeypatch):
    """submitit refuses parameters that it does not know when they are set; a stand-in sbatch keeps the script."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name, text in {"sbatch": f'cp "$1" {tmp_path}/script; echo Submitted batch job 123', "srun": ""}.items():
        (bin_folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (bin_folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}:/usr/bin:/bin")
    asked = resources(
        tmp_path, "slurm", partition="low", account="a", qos="q", constraint="c", exclude="n7", parallel=1
    )
    runs = [run_of(tmp_path / name, "nodes=2", "tasks_per_node=3") for name in "ab"]
    assert submit(targets.job, runs, asked) == 0
    script = (tmp_path / "script").read_text()
    for line in ("nodes=2", "ntasks-per-node=3", "partition=low", "account=a", "qos=q", "constraint=c", "exclude=n7",
                 "cpus-per-task=1", "time=5", "array=0-1%1", "job-name=vjepa", "requeue",
                 "signal=USR2@90"):  # fmt: skip
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
    for cluster, key, has in (("local", "nodes", "one machine"), ("debug", "tasks_per_node", "one process")):
        with pytest.raises(UserError, match=f"{key}=2: --cluster {cluster} has {has}; pass {key}=1"):
            submit(targets.job, [run_of(tmp_path / "a", f"{key}=2")], resources(tmp_path, cluster))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="there is no SLURM here"):
        submit(targets.job, [run_of(tmp_path / "a")], resources(tmp_path, "slurm"))
    assert list(tmp_path.iterdir()) == []


def test_debug_runs_here(tmp_path, targets, monkeypatch):
    monkeypatch.delenv("SUBMITIT_DEBUG_JOB_ID", raising=False)
    assert submit(targets.job, [run_of(tmp_path / "a")], resources(tmp_path, "debug")) == 0
    assert json.loads((tmp_path / "a" / "job.json").read_text()) == {"name": "vjepa", "resume": False, "ranks": 0}


def test_local_job_of_two_processes(tmp_path, targets, capsys):
    """submitit starts both; one complains, and its complaint is the outcome."""
    run = run_of(tmp_path / "a", "tasks_per_node=2", "logging.write_tag=bad")
    assert submit(targets.job, [run], resources(tmp_path, "local")) == 2
    assert capsys.readouterr().err == "error: logging.write_tag is bad\n"
    assert json.loads((tmp_path / "a" / "job.json").read_text())["ranks"] == 0.5


def sweep_of(tmp_path, **tags):
    """A sweep whose runs have these names and write tags."""
    runs = []
    for label, tag in tags.items():
        run = run_of(tmp_path / "runs" / label, f"logging.write_tag={tag}")
        runs.append(run._replace(planned=Planned("s.yaml", {}, label, {"logging.write_tag": tag})))
    return runs, Record(tmp_path / "runs", "s.yaml", [(run.planned, run.config.output_folder()) for run in runs])


def test_local_sweep_two_at_a_time(tmp_path, targets, capsys):
    """Two jobs share this machine; a run that fails is named and stops none of the others."""
    runs, record = sweep_of(tmp_path, a="x", b="bad", c="y")
    assert submit(targets.job, runs, resources(tmp_path, "local", parallel=2), sweep=record) == 2
    out, err = capsys.readouterr()
    assert [line.split() for line in out.splitlines()[:2]] == [
        ["run", "sets", "processes", "state", "folder"],
        ["a", "logging.write_tag=x", "1", "x", "1", "new", str(tmp_path / "runs" / "a")],
    ]
    assert err == "error: b: logging.write_tag is bad\n"
    for label in "abc":
        assert json.loads((tmp_path / "runs" / label / "job.json").read_text())["resume"] is True
    assert all(record.jobs().values())


def test_finished_runs_are_left_out(tmp_path, targets, monkeypatch, capsys):
    runs, record = sweep_of(tmp_path, a="x", b="y")
    monkeypatch.setattr(type(runs[0].config), "finished", lambda self: self.logging.write_tag == "x")
    monkeypatch.delenv("SUBMITIT_DEBUG_JOB_ID", raising=False)
    assert submit(targets.job, runs, resources(tmp_path, "debug"), sweep=record) == 0
    assert "finished" in capsys.readouterr().out.splitlines()[1]
    assert not (tmp_path / "runs" / "a").exists()
    assert (tmp_path / "runs" / "b" / "job.json").exists()
    assert record.jobs()["a"] is None


def test_a_queue_that_does_not_answer_is_not_an_empty_one(tmp_path, targets, monkeypatch):
    runs, record = sweep_of(tmp_path, a="x")
    record.note("a", "17_0", tmp_path / "logs")  # of an earlier call: is it still queued?
    (tmp_path / "bin").mkdir()
    for name, text in {"squeue": "echo error: Socket timed out >&2; exit 1", "sbatch": "exit 1"}.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    with pytest.raises(UserError, match=r"squeue does not say which jobs are queued: .*Socket timed out; try again"):
        submit(targets.job, runs, resources(tmp_path, "slurm"), sweep=record)
    assert not (tmp_path / "jobs").exists()


def test_a_stopped_local_sweep_goes_on(tmp_path, wait_for):
    """SIGTERM reaches the run, which saves; no process stays, nothing else starts; the same command does the rest."""
    write_motion(tmp_path / "motion", train=16, val=16, workers=1)
    base = small_recipe(tmp_path / "motion", "unused", ipe=25)
    sweep = {"base": f"{tmp_path}/base.yaml", "folder": f"{tmp_path}/runs", "grid": {"meta.seed": [0, 1]}}
    for name, content in {"base": base, "sweep": sweep}.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    words = ["--fname", f"{tmp_path}/sweep.yaml", "--batch-launch", "--cluster", "local"]
    words += ["--folder", f"{tmp_path}/jobs"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    line = [sys.executable, HERE.parents[1] / "app" / "held_main.py", *words]
    launcher = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    csv = tmp_path / "runs" / "seed=0" / "jepa_r0.csv"
    stepped = lambda: csv.exists() and csv.read_text().count("\n") > 3  # noqa: E731
    wait_for(lambda: stepped() or launcher.poll() is not None, "three steps")
    launcher.send_signal(signal.SIGTERM)
    out, err = launcher.communicate(timeout=300)
    assert launcher.returncode == 128 + signal.SIGTERM, err
    with pytest.raises(ProcessLookupError):
        os.kill(int(out.split("job ")[1].split(":")[0]), 0)
    done = csv.read_text().count("\n") - 1
    assert 3 <= done < 25
    assert not (tmp_path / "runs" / "seed=1").exists()

    line = [sys.executable, "-m", "app.main_distributed", *words]
    again = subprocess.run(line, capture_output=True, text=True, env=env, timeout=600)
    assert again.returncode == 0, again.stderr
    for seed in (0, 1):
        rows = (tmp_path / "runs" / f"seed={seed}" / "jepa_r0.csv").read_text().splitlines()[1:]
        assert [row.split(",")[:2] for row in rows] == [["0", str(itr)] for itr in range(25)]
    logs = "".join(path.read_text() for path in (tmp_path / "jobs").rglob("*.err"))
    assert f"at step {done} " in logs
    assert [read_status(tmp_path / "runs" / f"seed={seed}").state for seed in (0, 1)] == ["finished"] * 2
