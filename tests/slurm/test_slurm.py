"""Jobs on a real SLURM: preempted, out of time, cancelled, and a sweep as one array. Two nodes, one machine."""

import csv
import re
import subprocess
import sys
import time

import pytest
import yaml

pytestmark = pytest.mark.slurm


def launch(cluster, *words, module="app.main_distributed"):
    """A command line of ours on the cluster; its stdout."""
    env = {**cluster.env, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, words)], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def submit(cluster, recipe, folder, *words):
    """Submit one run; its job id."""
    options = ["--partition", "low", "--cpus-per-task", 1, "--gpus-per-node", 0, "--folder", folder / "jobs"]
    out = launch(cluster, "--fname", recipe, *options, f"logging.folder={folder / 'run'}", *words)
    return re.search(r"^job (\d+):", out, re.MULTILINE).group(1)


def steps(folder):
    """(epoch, itr) of the rows in the csv of a run."""
    path = folder / "run" / "jepa_r0.csv"
    if not path.exists():
        return []
    with path.open() as file:
        return [(int(row["epoch"]), int(row["itr"])) for row in csv.DictReader(file) if row["loss"]]


def wait_for(condition, seconds, what, folder):
    """Poll until `condition()` is true; what the job said is shown if it never is."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            logs = [f"{path.name}:\n{path.read_text()[-3000:]}" for path in sorted(folder.rglob("*_log.*"))]
            pytest.fail(f"{what}: not within {seconds} s\n" + "\n".join(logs))
        time.sleep(0.3)


def log(folder):
    """What the first process of the only job wrote to stderr."""
    return "".join(path.read_text() for path in folder.rglob("*_0_log.err"))


def test_preempted_mid_epoch(cluster, recipe, tmp_path):
    """Two nodes train; a job of a higher partition takes both; the run goes on exactly where it was."""
    job = submit(cluster, recipe, tmp_path, "nodes=2", "tasks_per_node=2")
    wait_for(lambda: len(steps(tmp_path)) >= 3, 120, "three steps", tmp_path)
    high = cluster.run("sbatch", "-p", "high", "-N", "2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")
    wait_for(lambda: cluster.state(job) == "PENDING", 60, "preempted and queued again", tmp_path)
    before = steps(tmp_path)
    assert 3 <= len(before) < 50, "the run was over before it was preempted"
    wait_for(lambda: cluster.state(high.split()[-1]) == "", 60, "the other job has had its turn", tmp_path)
    cluster.start_now(job)
    wait_for(lambda: cluster.state(job) == "", 150, "the run's end", tmp_path)
    resumed = re.search(r"resumed from .* at step (\d+)", log(tmp_path))
    assert resumed and int(resumed.group(1)) == len(before), log(tmp_path)
    assert steps(tmp_path) == [(0, itr) for itr in range(50)]


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
    out = launch(cluster, *words)
    jobs = re.findall(r"^job (\d+)_(\d):", out, re.MULTILINE)
    assert [index for _, index in jobs] == ["0", "1", "2", "3"]
    assert len({array for array, _ in jobs}) == 1
    assert launch(cluster, *words).count(" queued ") == 4  # none is submitted twice
    wait_for(lambda: cluster.state(jobs[0][0]) == "", 150, "the array's end", tmp_path)
    shown = launch(cluster, tmp_path / "runs", "--sort", "loss", module="tools.sweep_status")
    assert shown.count("finished  1/1    3/3") == 4, shown
    assert "nothing to submit" in launch(cluster, *words)


def test_out_of_time_and_cancelled(cluster, recipe, tmp_path):
    """A run longer than its time limit saves before it and is continued; cancelled, it saves and is not."""
    job = submit(cluster, recipe, tmp_path, "--time", 2, "--signal-delay", 80, "optimization.ipe=100000")

    def queued_again():
        if cluster.state(job) == "PENDING" and not steps(tmp_path):
            cluster.start_now(job)  # a busy machine: its time was up before the first step
        return cluster.state(job) == "PENDING" and steps(tmp_path)

    wait_for(queued_again, 200, "queued again before the time limit", tmp_path)
    before = steps(tmp_path)

    def going_on():
        if cluster.state(job) == "PENDING":
            cluster.start_now(job)  # on a busy machine more than once
        return len(steps(tmp_path)) > len(before) + 3

    wait_for(going_on, 120, "going on", tmp_path)
    assert f"at step {len(before)} (" in log(tmp_path)
    cluster.run("scancel", job)
    wait_for(lambda: cluster.state(job) == "", 30, "cancelled", tmp_path)
    after = steps(tmp_path)
    assert after == [(0, itr) for itr in range(len(after))]
    time.sleep(1)
    assert cluster.state(job) == ""
