"""The demo over several seeds: probe accuracies of the pretrained encoder and of its random twin, as a csv.

    python -m benchmarks.demo_seeds --seeds 234 235 236 --out docs/results/demo_seeds.csv

Each seed pretrains and probes through the demo's own commands, in its own folder; a finished one is not run again.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time
from pathlib import Path


def run(seed: int, runs: Path) -> tuple[dict, str]:
    """Pretrain and probe with one seed. Returns the evaluation's json and the minutes it took, "" if begun before."""
    folder = runs / f"vm_tiny_seed{seed}"
    begun = folder.exists()
    commands = (
        ["app.main", "--fname", "configs/pretrain/vm_tiny.yaml", f"meta.seed={seed}", f"logging.folder={folder}"],
        ["evals.main", "--fname", "configs/evals/vm_tiny_motion.yaml", f"pretrain.folder={folder}"],
    )
    start = time.monotonic()
    for command in commands:
        subprocess.run([sys.executable, "-m", *command], check=True)
    (results,) = folder.glob("video_classification_frozen/motion/*-results.json")
    return json.loads(results.read_text()), "" if begun else f"{(time.monotonic() - start) / 60:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[234, 235, 236])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/demo_seeds.csv"))
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["seed", "encoder", "probe", "accuracy", "low", "high", "chance", "minutes"])
        for seed in args.seeds:
            results, minutes = run(seed, args.runs)
            for score in results["scores"]:
                row = [seed, score["row"], score["probe"], score["accuracy"], *score["ci95"], results["chance"]]
                writer.writerow([f"{x:.4f}" if isinstance(x, float) else x for x in row] + [minutes])
            file.flush()


if __name__ == "__main__":
    main()
