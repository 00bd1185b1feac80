"""How long a report takes and how large it is, over the number of logged steps.

    python -m benchmarks.report_time [--steps 1000 10000 100000] [--out docs/results/report_time.csv]

A made-up run of VideoMamba-Tiny with everything a page shows: a log and diagnostics of random numbers, an evaluation, a
checkpoint as initialised, and clips of the embedded data. `seconds` is the command from start to end, `cpu_seconds` the
processor time it used, both the median of --repeats runs, each a process of its own.
"""

from __future__ import annotations

import argparse
import csv
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from app import scaffold
from app.vjepa.config import PretrainConfig
from app.vjepa.metrics import COLUMNS
from app.vjepa.utils import init_video_model
from evals.classification.results import Score, write_files
from src.config.loading import save_config
from src.datasets.embedded.generate import write_motion
from src.utils.checkpoint import save_atomic
from src.utils.csv_log import write_csv

EPOCH, DIAGNOSE = 500, 50  # steps of an epoch; steps between two diagnostics


def write_run(folder: Path, data: Path, steps: int) -> None:
    """A finished run of `steps` steps."""
    words = [f"logging.folder={folder}", f"data.datasets=[{data / 'train.csv'}]"]
    words += [f"optimization.ipe={EPOCH}", f"optimization.epochs={steps // EPOCH}"]
    config: PretrainConfig = scaffold.load("configs/pretrain/vm_tiny.yaml", words)[1]
    folder.mkdir(parents=True)
    save_config(config, folder / "params-pretrain.yaml")
    names = [name for _, name in COLUMNS]
    write_csv(folder / "jepa_r0.csv", names, rows(steps, 1, len(names)))
    parts = [*(f"encoder.layers.{i}" for i in range(24)), *(f"predictor.predictor_blocks.{i}" for i in range(4))]
    parts += ["encoder", "encoder.patch_embed", "predictor"]
    stats = ("feature_std", "between_clip_std", "effective_rank", "effective_rank_centered", "between_clip_cosine")
    diagnostics = ["epoch", "itr", *(f"{what}/{stat}" for what in ("target", "prediction") for stat in stats)]
    diagnostics += [f"error/time_{t}" for t in range(4)]
    diagnostics += [f"{kind}/{part}" for kind in ("update", "gradient") for part in parts]
    diagnostics += [f"{kind}/layers.{i}.mixer" for kind in ("dt", "A") for i in range(24)]
    write_csv(folder / "jepa-diagnostics.csv", diagnostics, rows(steps, DIAGNOSE, len(diagnostics)))
    encoder, predictor = (module.state_dict() for module in init_video_model(config))
    state = {
        "encoder": encoder,
        "predictor": predictor,
        "target_encoder": encoder,
        "opt": {},
        "epoch": 0,
        "step": steps,
    }
    save_atomic(state, folder / "jepa-latest.pth.tar")
    rng = np.random.default_rng(0)
    scores = [
        Score(row, probe, rng.integers(16, size=1024), rng.integers(16, size=1024))
        for row in ("pretrained", "random")
        for probe in ("attentive", "linear", "knn")
    ]
    (folder / "video_classification_frozen" / "motion").mkdir(parents=True)
    write_files(folder / "video_classification_frozen" / "motion", "jepa", scores, 1 / 16, 16, {})


def rows(steps: int, every: int, width: int) -> list[list[object]]:
    """epoch, itr and positive random numbers."""
    numbers = np.random.default_rng(0).lognormal(size=(-(-steps // every), width - 2))
    return [[*divmod(i * every, EPOCH), *(f"{x:.3e}" for x in row)] for i, row in enumerate(numbers)]


def measure(folder: Path) -> tuple[float, float, float]:
    """Seconds, seconds of processor time, and megabytes of one report."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-m", "tools.report", str(folder)], check=True, stderr=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, used, (folder / "report.html").stat().st_size / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--out", type=Path, default=Path("docs/results/report_time.csv"))
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as root, args.out.open("w", newline="") as file:
        data = Path(root, "motion")
        write_motion(data, train=64, val=1, workers=1)
        writer = csv.writer(file)
        writer.writerow(["steps", "seconds", "cpu_seconds", "mb", "cores", "repeats"])
        for steps in args.steps:
            folder = Path(root, f"steps{steps}")
            write_run(folder, data, steps)
            measured = zip(*(measure(folder) for _ in range(args.repeats)))
            seconds, used, size = (statistics.median(figures) for figures in measured)
            writer.writerow([steps, f"{seconds:.1f}", f"{used:.1f}", f"{size:.2f}", cores, args.repeats])
            file.flush()


if __name__ == "__main__":
    main()
