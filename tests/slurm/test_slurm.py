"""Jobs on a real SLURM: preempted, out of time, cancelled, and a sweep as one array. Two nodes, one machine."""

import csv
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from src.utils.checkpoint import load

pytestmark = pytest.mark.slurm

HELD = Path(__file__).parents[1] / "app" / "held_main.py"
PATIENCE_S = 600.0  # for what takes moments on an idle machine


def launch(cluster, *words, command=("-m", "app.main_distributed")):
    """A command line of ours on the cluster; its stdout."""
    env = {**cluster.env, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    line = [sys.executable, *map(str, (*command, *words))]
    done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


def submit(cluster, recipe, folder, *words, **how):
    """Submit one run; its job id."""
    options = ["--partition", "low", "--cpus-per-task", 1, "--gpus-per-node", 0, "--folder", folder / "jobs"]
    out = launch(cluster, "--fname", recipe, *options, f"logging.folder={folder / 'run'}", *words, **how)
    return re.search(r"^job (\d+):", out, re.MULTILINE).group(1)


def steps(folder):
    """(epoch, itr) of the rows in the csv of a run."""
    path = folder / "run" / "jepa_r0.csv"
    if not path.exists():
        return []
    with path.open() as file:
        return [(int(row["epoch"]), int(row["itr"])) for row in csv.DictReader(file) if row["loss"]]


def wait_for(condition, what, folder):
    """Poll until `condition()` is true; what the job said is shown if it never is."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            logs = [f"{path.name}:\n{path.read_text()[-3000:]}" for path in sorted(folder.rglob("*_log.*"))]
            pytest.fail(f"{what}: not within {PATIENCE_S:g} s\n" + "\n".join(logs))
        time.sleep(0.3)


def log(folder):
    """What the first process of the only job wrote to stderr."""
    return "".join(path.read_text() for path in folder.rglob("*_0_log.err"))


def checkpoint_at_step_2(cluster, recipe, folder):
    """Of a run of another folder, as it would be in the middle of an epoch."""
    words = [f"logging.folder={folder}", "optimization.ipe=2", "--devices", "cpu"]
    launch(cluster, "--fname", recipe, *words, command=("-m", "app.main"))
    path = folder / "jepa-latest.pth.tar"
    torch.save(load(path) | {"epoch": 0, "itr": 2, "steps_per_epoch": 50}, path)
    return path


def test_preempted_mid_epoch(cluster, recipe, tmp_path):
    """Two nodes train; a job of a higher partition takes both; it goes on where it was, not where it began."""
    start = checkpoint_at_step_2(cluster, recipe, tmp_path / "first")
    words = ["nodes=2", "tasks_per_node=2", f"meta.read_checkpoint={start}"]
    job = submit(cluster, recipe, tmp_path, *words, command=[HELD])
    wait_for(lambda: len(steps(tmp_path)) >= 3, "three steps", tmp_path)
    high = cluster.run("sbatch", "-p", "high", "-N", "2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")
    wait_for(lambda: cluster.state(job) == "PENDING", "preempted and queued again", tmp_path)
    before = steps(tmp_path)
    assert 3 <= len(before) < 50, "the run was over before it was preempted"
    wait_for(lambda: cluster.state(high.split()[-1]) == "", "the other job has had its turn", tmp_path)
    cluster.start_now(job)
    wait_for(lambda: cluster.state(job) == "", "the run's end", tmp_path)
    resumed = re.findall(r"resumed from .* at step (\d+)", log(tmp_path))
    assert [int(step) for step in resumed] == [2, 2 + len(before)], log(tmp_path)
    assert steps(tmp_path) == [(0, itr) for itr in range(2, 50)]


def test_sweep_is_one_array(cluster, recipe, tmp_path):
    """Four runs of two processes each, on two nodes that are one machine: none meets another's processes."""
    sweep = {
        "base": str(recipe),
        "folder": str(tmp_path / "runs"),
        "grid": {"optimization.lr": [1e-4, 3e-4], "meta.seed": [0, 1]},
    }
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(sweep))
    words = ["--fname", path, "--batch-launch", "--folder", tmp_path / "jobs", "--partition", "low"]
    words += ["--cpus-per-task", 1, "--gpus-per-node", 0, "tasks_per_node=2", "optimization.epochs=1"]
    words += ["optimization.ipe=3"]
    with cluster.queueing_only("low"):  # else the first could be done when the second call asks
        out = launch(cluster, *words)
        jobs = re.findall(r"^job (\d+)_(\d):", out, re.MULTILINE)
        assert [index for _, index in jobs] == ["0", "1", "2", "3"]
        assert len({array for array, _ in jobs}) == 1
        assert launch(cluster, *words).count(" queued ") == 4  # none is submitted twice
    wait_for(lambda: cluster.state(jobs[0][0]) == "", "the array's end", tmp_path)
    shown = launch(cluster, tmp_path / "runs", "--sort", "loss", command=("-m", "tools.sweep_status"))
    assert shown.count("finished  1/1    3/3") == 4, shown
    assert "nothing to submit" in launch(cluster, *words)


def test_out_of_time_and_cancelled(cluster, recipe, tmp_path):
    """A run longer than its time limit saves before it and is continued; cancelled, it saves and is not."""
    job = submit(cluster, recipe, tmp_path, "--time", 60, "--signal-delay", 80, "optimization.ipe=100000")
    wait_for(lambda: len(steps(tmp_path)) >= 3, "three steps", tmp_path)
    # Its time is nearly up once it trains, which on a busy machine may be late: between one and two minutes are left.
    cluster.run("scontrol", "update", f"JobId={job}", f"TimeLimit={cluster.minutes_run(job) + 2}")
    wait_for(lambda: cluster.state(job) == "PENDING", "queued again before the time limit", tmp_path)
    before = steps(tmp_path)
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    cluster.start_now(job)
    wait_for(lambda: len(steps(tmp_path)) > len(before) + 3, "going on", tmp_path)
    assert f"at step {len(before)} (" in log(tmp_path)
    cluster.run("scancel", job)
    wait_for(lambda: cluster.state(job) == "", "cancelled", tmp_path)
    after = steps(tmp_path)
    assert after == [(0, itr) for itr in range(len(after))]
    # Its processes are gone, so none of them can queue it again any more.
    assert cluster.show(job)["JobState"] == "CANCELLED"
