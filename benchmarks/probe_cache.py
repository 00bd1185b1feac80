"""What cached features save: one probe trained on features that are encoded once, and on ones encoded in every epoch.

    python -m benchmarks.probe_cache --checkpoint runs/vm_tiny/jepa-latest.pth.tar [--data data/motion --epochs 20]

Both are evaluations of configs/evals/vm_tiny_digits.yaml with one head, on the same clips of the embedded data, without
augmentation, validated at the end: `cached` runs the encoder once on every clip and counts that time too, `recomputed`
in every epoch. Seconds of whole evaluations, one after the other in one process that reads its data itself, on the
clock and of the processor: where other programs compute beside it, trust the second. Recomputing visits the clips in
the order of their list, so the two end with other probes.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from evals import scaffold
from evals.classification.evaluation import Evaluation
from evals.video_classification_frozen.eval import build_task
from src.datasets.data_manager import Loader
from src.probes.sample_list import SampleList

CONFIG = "configs/evals/vm_tiny_digits.yaml"
FIELDS = ("features", "train_clips", "val_clips", "epochs", "wall_s", "cpu_s", "wall_ratio", "cpu_ratio", "accuracy")


def evaluate(args: argparse.Namespace, cached: bool, folder: str) -> dict[str, Any]:
    """The evaluation's json."""
    overrides = {
        "pretrain.folder": args.checkpoint.resolve().parent,
        "pretrain.checkpoint": args.checkpoint.name,
        "folder": folder,
        "probes": "[attentive]",
        "random_baseline": "false",
        "data.dataset_train": args.data / "train.csv",
        "data.dataset_val": args.data / "val.csv",
        "data.max_train_samples": args.samples,
        "data.max_val_samples": args.samples // 4,
        "data.cache_features": str(cached).lower(),
        "data.num_workers": 0,
        "optimization.lrs": "null",
        "optimization.num_epochs": args.epochs,
        "optimization.val_every": args.epochs,
    }
    _, cfg = scaffold.load(CONFIG, [f"{key}={value}" for key, value in overrides.items()])
    task = build_task(cfg)

    def plain(samples: SampleList, mode: str, seed: int) -> Loader:
        """No augmentation, which no cache can have, and which would make recomputing slower still."""
        return task.make_loader(samples, "plain" if mode == "augment" else mode, seed)

    return Evaluation(cfg, replace(task, make_loader=plain), resume=False).run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("data/motion"))
    parser.add_argument("--samples", type=int, default=1024, help="training clips; a quarter as many for validation")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("docs/results/probe_cache.csv"))
    args = parser.parse_args()
    rows = []
    for name in ("cached", "recomputed"):
        wall, cpu = time.perf_counter(), time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            results = evaluate(args, name == "cached", folder)
        (score,) = results["scores"]
        rows.append(
            {
                "features": name,
                "train_clips": results["train"]["samples"],
                "val_clips": results["val"]["samples"],
                "epochs": args.epochs,
                "wall_s": time.perf_counter() - wall,
                "cpu_s": time.process_time() - cpu,
                "accuracy": score["accuracy"],
            }
        )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        for row in rows:
            ratios = {f"{kind}_ratio": rows[-1][f"{kind}_s"] / row[f"{kind}_s"] for kind in ("wall", "cpu")}
            shown = {**row, **ratios}
            writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in shown.items()})
    wall, cpu = (rows[1][key] / rows[0][key] for key in ("wall_s", "cpu_s"))
    print(f"over {args.epochs} epochs, cached features are {wall:.1f} times as fast, {cpu:.1f} times in processor time")


if __name__ == "__main__":
    main()
