"""Kill short runs at random moments, start them again, and hold what they end with to a run that was never killed.

    python -m benchmarks.kill_soak --kills 200

Every run is 40 steps in two processes, killed by SIGKILL up to five times, one process up to 50 ms before the other. In
turn, runs save after every step, several times in an epoch, or at its end only. The processes are forked from this one,
which has imported everything, so that a start costs a fraction of a second; besides that they are the command line's.
Writes a line for each kill to docs/results/kill_soak.csv.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

from app.vjepa.config import PretrainConfig
from app.vjepa.train import main as train
from src.datasets.embedded.generate import write_motion
from src.models.registry import BACKBONES
from src.utils.checkpoint import load_newest
from src.utils.distributed import init_distributed, shutdown

EPOCHS, STEPS = 8, 5
KILLS_PER_RUN = 5
SAVES = {"step": 1e-9, "quarter second": 0.25 / 60, "epoch": None}
COLUMNS = (
    "run",
    "saved every",
    "kill",
    "after s",
    "first rank",
    "csv rows",
    "steps saved",
    "while saving",
    "lost steps",
    "repeated steps",
    "bits differ",
)


def config(videos: Path, folder: Path, minutes: float | None) -> PretrainConfig:
    """A run of 40 steps that takes a second or two."""
    return PretrainConfig.model_validate(
        {
            "data": {
                "datasets": [str(videos)],
                "batch_size": 2,
                "num_frames": 4,
                "sampling_rate": 1,
                "crop_size": 32,
                "patch_size": 8,
                "num_workers": 0,
            },
            "logging": {"folder": str(folder), "save_every_minutes": minutes},
            "mask": [{"num_blocks": 2, "spatial_scale": [0.15, 0.4]}, {"num_blocks": 1, "spatial_scale": [0.4, 0.6]}],
            "model": {
                "model_name": "videomamba_tiny",
                "pred_depth": 1,
                "pred_embed_dim": 24,
                "use_mask_tokens": True,
                "drop_path_rate": 0.2,
            },
            "optimization": {"ipe": STEPS, "epochs": EPOCHS, "warmup": 1, "start_lr": 1e-4, "lr": 1e-3},
        }
    )


def start(cfg: PretrainConfig, log: Path) -> tuple[list[int], dist.Store]:
    """Fork the two processes of a run. Returns their ids, and the store they meet at, to be kept until they end."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    pids = []
    for rank in range(2):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(out, 1)
                os.dup2(out, 2)
                init_distributed(rank, 2, store.port, "cpu", host_store=False)
                train(cfg, resume_preempt=True)
                shutdown()
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    return pids, store


def wait(pids: list[int], log: Path) -> None:
    """Until both have ended well."""
    for pid in pids:
        if os.waitpid(pid, 0)[1] != 0:
            sys.exit(f"a process failed by itself:\n{log.read_text()[-2000:]}")


def kill(pids: list[int], rng: random.Random, seconds: float) -> int | None:
    """Kill both after `seconds`. Returns the rank that was first; None if the run was over by then."""
    time.sleep(seconds)
    first = rng.randrange(2)
    if any(os.waitpid(pid, os.WNOHANG)[0] for pid in pids):
        for pid in pids:
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                continue
        return None
    os.kill(pids[first], signal.SIGKILL)
    time.sleep(rng.uniform(0, 0.05))
    os.kill(pids[1 - first], signal.SIGKILL)
    for pid in pids:
        os.waitpid(pid, 0)
    return first


def read(folder: Path) -> tuple[dict, list[str]]:
    """The newest whole checkpoint ({} if there is none) and the rows of the csv without their times."""
    paths = [path for path in (folder / "jepa-latest.pth.tar", folder / "jepa-previous.pth.tar") if path.exists()]
    file = folder / "jepa_r0.csv"
    lines = file.read_text().split("\n")[1:-1] if file.exists() else []
    return (load_newest(paths)[0] if paths else {}), [line.rsplit(",", 1)[0] for line in lines]


def differing(a: object, b: object) -> int:
    """Tensors and numbers that are not bit for bit the same."""
    if isinstance(a, torch.Tensor):
        return int(not torch.equal(a, b))
    if isinstance(a, dict):
        return sum(differing(a[key], b[key]) for key in a) if a.keys() == b.keys() else 1
    if isinstance(a, list):
        return sum(map(differing, a, b)) if len(a) == len(b) else 1
    return int(a != b)


def soak(run: int, videos: Path, root: Path, whole: Path, seconds: float, rng: random.Random) -> list[list[object]]:
    """One run, killed KILLS_PER_RUN times unless it ends before: its lines of the csv."""
    name = list(SAVES)[run % len(SAVES)]
    folder, log = root / f"run{run}", root / f"run{run}.log"
    cfg, lines, before = config(videos, folder, SAVES[name]), [], set()
    for number in range(KILLS_PER_RUN):
        pids, _store = start(cfg, log)
        after = rng.uniform(0, 0.3 * seconds)
        first = kill(pids, rng, after)
        if first is None:
            break
        state, rows = read(folder)
        left = set(folder.glob(".*.pth.tar.*.tmp"))  # what a process was writing stays until the next save
        writing = bool(left - before) or (bool(state) and not (folder / "jepa-latest.pth.tar").exists())
        before = left
        lines.append([run, name, number, f"{after:.3f}", first, len(rows), state.get("step", 0), int(writing)])
    pids, _store = start(cfg, log)
    wait(pids, log)
    (state, rows), (expected, expected_rows) = read(folder), read(whole)
    taken = max(int(x["step"]) for x in state["opt"]["state"].values())
    lost = max(expected["step"] - taken, 0) + len(set(expected_rows) - set(rows))
    repeated = max(taken - expected["step"], 0) + len(rows) - len(set(rows))
    differ = sum(differing(state[key], expected[key]) for key in expected.keys() - {"config"}) + (rows != expected_rows)
    return [[*line, lost, repeated, differ] for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=60, help="start no run after so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/results/kill_soak.csv"))
    args = parser.parse_args()
    torch.set_num_threads(1)  # threads do not survive a fork
    BACKBONES["videomamba_tiny"] = BACKBONES["videomamba_tiny"]._replace(depth=2)
    rng = random.Random(args.seed)
    began, lines, run = time.monotonic(), [], 0
    with tempfile.TemporaryDirectory() as temporary, args.out.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        root = Path(temporary)
        write_motion(root / "motion", train=15, val=1, workers=1)
        videos = root / "motion" / "train.csv"
        for name in ("first", "whole"):  # the second says how long a run takes: the first has operators to load
            started = time.monotonic()
            pids, _store = start(config(videos, root / name, None), root / f"{name}.log")
            wait(pids, root / f"{name}.log")
            seconds = time.monotonic() - started
        while len(lines) < args.kills and time.monotonic() - began < 60 * args.minutes:
            new = soak(run, videos, root, root / "whole", seconds, rng)
            writer.writerows(new)
            file.flush()
            lines, run = lines + new, run + 1
            print(f"\r{len(lines)} kills of {run} runs, {time.monotonic() - began:.0f} s", end="", flush=True)
    lost, repeated, differ = (sum(line[i] for line in lines) for i in (-3, -2, -1))
    saving = sum(line[7] for line in lines)
    print(f"\n{len(lines)} kills ({saving} while a checkpoint was written) of {run} runs of {EPOCHS * STEPS} steps:")
    print(f"lost steps {lost}, repeated steps {repeated}, tensors, numbers and rows that differ {differ}")


if __name__ == "__main__":
    main()
