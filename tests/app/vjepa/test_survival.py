"""Runs of two processes that are killed, stopped, or lose a process, as their user meets them: on the CPU."""

import csv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from src.utils.checkpoint import load


def same(a, b):
    """Whether two states are bit for bit the same."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def assert_same_runs(one, other, rows):
    states = [load(folder / "jepa-latest.pth.tar") for folder in (one, other)]
    for key in states[0].keys() - {"config"}:
        assert same(states[0][key], states[1][key]), key
    assert rows(one) == rows(other)


def test_killed_and_stopped_runs_end_as_one_that_never_was(small, start, rows, tmp_path):
    """Killed in the second epoch, stopped under torchrun in the third; at the same time one that was not."""
    _, whole = small("whole")
    _, parts = small("parts")
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")

    def in_parts():
        # These minutes are over at once: a checkpoint after every step.
        yield start(parts, "SIGKILL 0 5", words=("--devices", "cpu", "cpu", "logging.save_every_minutes=1e-9"))
        yield start(parts, "SIGUSR1 1 9", words=(), launcher=torchrun)
        yield start(parts)

    with ThreadPoolExecutor(1) as pool:
        uninterrupted = pool.submit(start, whole)
        killed, stopped, finished = in_parts()
    assert uninterrupted.result()[0] == 0, uninterrupted.result()[1]
    assert killed[0] == 128 + 9
    assert killed[1].endswith("error: rank 0 of 2 (cpu) was killed by SIGKILL; the system may have run out of memory\n")
    path = tmp_path / "parts" / "jepa-latest.pth.tar"
    assert f"resumed from {path} at step 5 (epoch 2, step 1 of 4)" in stopped[1]
    assert f"stopped by SIGUSR1: {path} has all 10 steps so far\n" in stopped[1]
    assert "exitcode  : 138" in stopped[1]  # what torchrun says of its processes; its own code is 1
    assert finished[0] == 0, finished[1]
    assert_same_runs(tmp_path / "whole", tmp_path / "parts", rows)
    assert len(rows(tmp_path / "parts")) == 12
    assert load(path)["opt"]["state"][0]["step"] == 12


def test_a_stopped_run_ends_with_the_signal_s_code(small, start, tmp_path):
    _, config = small("run")
    path = tmp_path / "run" / "jepa-latest.pth.tar"
    code, shown = start(config, "SIGTERM 0 2", words=("--devices", "cpu"))
    assert code == 128 + 15
    assert shown.endswith(f"stopped by SIGTERM: {path} has all 3 steps so far\n")
    assert load(path)["step"] == 3


def test_a_process_that_hangs_ends_the_run_and_is_named(small, start):
    _, config = small("run")
    code, shown = start(config, "hang 1 2")
    assert code == 1
    assert "error: rank 1 of 2 hangs: rank 0 waited for it in vain\n" in shown
    assert "Traceback" not in shown
    assert "small_main.py" in shown.split("Fatal Python error: Aborted")[1]  # where it hangs


def test_a_loss_that_breaks_in_one_process_is_skipped_by_all_until_it_stops_them(small, start, tmp_path, videos):
    """It is not finite in steps 2, 5 and 6, although its gradient would be; two in a row are one too many."""
    _, config = small("run", optimization={"max_skipped_steps": 1})
    code, shown = start(config, "inf 1 2,5,6")
    assert code == 2
    folder = tmp_path / "run"
    target, latest = folder / "bad_batch.csv", folder / "jepa-latest.pth.tar"
    guilty = f"(loss inf), in process 1 of 2, whose files are in {target}; "
    assert f"epoch 0, step 2 is skipped: its gradient is not finite {guilty}1 in a row, 1 in all" in shown
    assert f"epoch 1, step 1 is skipped: its gradient is not finite {guilty}1 in a row, 2 in all" in shown
    assert shown.splitlines()[-1] == (
        f"error: the gradient is not finite at epoch 1, step 2 {guilty}2 in a row were skipped, more than "
        "optimization.max_skipped_steps=1: lower optimization.lr, or compute in meta.dtype=float32; "
        f"{latest} is from before (step 4)"
    )
    ours, theirs = ((folder / f"rank{rank}.txt").read_text().split() for rank in (0, 1))
    assert ours == theirs and len(ours) == 7  # of weights, optimizer and EMA after each step
    same_as_before = [step for step in range(1, 7) if ours[step] == ours[step - 1]]
    assert same_as_before == [2, 5, 6]
    state = load(latest)
    assert (state["step"], state["skipped"], state["skipped_in_a_row"]) == (4, 1, 0)
    with target.open() as file:
        found = list(csv.DictReader(file))
    assert len(found) == 2
    listed = {line.rsplit(" ", 1)[0] for line in videos.read_text().splitlines()}
    for row in found:
        assert row["rank"] == "1"
        assert str(Path(row["path"]).relative_to(videos.parent)) in listed


def test_a_folder_deleted_under_a_run_stops_it_in_one_line(small, start, tmp_path):
    _, config = small("run")
    code, shown = start(config, "folder 0 5", words=("--devices", "cpu"))
    assert code == 2
    path = tmp_path / "run" / "jepa-latest.pth.tar"
    assert shown.splitlines()[-1] == f"error: {path}: checkpoint not saved: No such file or directory"
    assert not (tmp_path / "run").exists()
