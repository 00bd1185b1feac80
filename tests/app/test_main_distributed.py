"""Sweeps on the command line of a cluster: what is printed, and every mistake before anything is submitted."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

SWEEP = {"base": "configs/pretrain/vm_tiny.yaml", "folder": "runs/x", "grid": {"meta.seed": [0, 1]}}
EVAL_SWEEP = {"base": "configs/evals/vm_tiny_motion.yaml", "grid": {"pretrain.folder": ["runs/a", "runs/b"]}}


@pytest.fixture
def run(tmp_path):
    """A command line on a file of this content: exit code, stdout, stderr."""

    def call(content, *words, module="app.main_distributed"):
        path = tmp_path / f"{abs(hash(str((content, words, module))))}.yaml"
        path.write_text(yaml.safe_dump(content))
        fixed = ["--fname", str(path), "--folder", str(tmp_path / "jobs"), "--dry-run"]
        done = subprocess.run(
            [sys.executable, "-m", module, *fixed, *words], capture_output=True, text=True, timeout=600
        )
        return done.returncode, done.stdout, done.stderr.replace(str(path), "FILE")

    return call


def test_tables(run, tmp_path):
    calls = [(SWEEP, "app.main_distributed"), (EVAL_SWEEP, "evals.main_distributed")]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda call: run(call[0], "--batch-launch", module=call[1]), calls))
    assert [(code, err) for code, _, err in results] == [(0, ""), (0, "")]
    tables = [[line.split() for line in out.splitlines()] for _, out, _ in results]
    assert tables[0] == [
        ["run", "sets", "processes", "state", "folder"],
        ["seed=0", "meta.seed=0", "1", "x", "1", "new", "runs/x/seed=0"],
        ["seed=1", "meta.seed=1", "1", "x", "1", "new", "runs/x/seed=1"],
    ]
    assert tables[1][2][-1] == "runs/b/video_classification_frozen/motion"
    assert not (tmp_path / "jobs").exists()


def test_mistakes_end_with_one_line_and_2(run):
    """All that is wrong with a sweep itself is in tests/src/config/test_sweep.py."""
    typo = {**SWEEP, "grid": {"meta.sed": [1]}}
    cases = [
        (SWEEP, [], "command line: FILE is a sweep: pass --batch-launch (see --help)"),
        (typo, ["--batch-launch"], "FILE: run sed=1: unknown key meta.sed; did you mean meta.seed?"),
        (
            SWEEP,
            ["--batch-launch", "meta.seed=7"],
            "command line: meta.seed is what the runs of FILE differ in: change it there (see --help)",
        ),
        (
            SWEEP,
            ["--batch-launch", "logging.folder=runs/y"],
            "FILE: run seed=1 and FILE: run seed=0 both write to runs/y: give each its own folder",
        ),
        (
            SWEEP,
            ["--batch-launch", "--time", "1"],
            "command line: --signal-delay 90 leaves nothing of --time 1 (minutes) (see --help)",
        ),
        (
            SWEEP,
            ["--batch-launch", "--parallel", "0"],
            "command line: argument --parallel: a whole number above 0 is needed, not '0' (see --help)",
        ),
    ]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda case: run(case[0], *case[1]), cases))
    assert results == [(2, "", f"error: {message}\n") for _, _, message in cases]


def test_a_sweep_guards_its_keys_under_their_old_names_too(run):
    sweep = {**SWEEP, "grid": {"loss.clip_mean_weight": [0.5]}}
    code, out, err = run(sweep, "--batch-launch", "loss.target_pooled=0.5")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == (
        "error: command line: loss.target_pooled is what the runs of FILE differ in: change it there (see --help)"
    )
