"""The demo over several seeds, VideoMamba-Tiny and ViT-Tiny: probe accuracies, pretrained and random, as a csv.

    python -m benchmarks.demo_seeds --recipes vm_tiny vit_tiny --seeds 234 235 236

Each recipe and seed pretrains and probes through the demo's own commands, in its own folder; a finished one is not run
again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from src.utils.csv_log import write_csv

COLUMNS = ("recipe", "seed", "encoder", "probe", "accuracy", "low", "high", "chance", "minutes")


def run(recipe: str, seed: int, runs: Path) -> tuple[dict, str]:
    """Pretrain and probe with one seed. Returns the evaluation's json and the minutes it took, "" if begun before."""
    folder = runs / f"{recipe}_seed{seed}"
    begun = folder.exists()
    commands = (
        ["app.main", "--fname", f"configs/pretrain/{recipe}.yaml", f"meta.seed={seed}", f"logging.folder={folder}"],
        ["evals.main", "--fname", f"configs/evals/{recipe}_motion.yaml", f"pretrain.folder={folder}"],
    )
    start = time.monotonic()
    for command in commands:
        subprocess.run([sys.executable, "-m", *command], check=True)
    (results,) = folder.glob("video_classification_frozen/motion/*-results.json")
    return json.loads(results.read_text()), "" if begun else f"{(time.monotonic() - start) / 60:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", nargs="+", default=["vm_tiny"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[234, 235, 236])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/demo_seeds.csv"))
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for recipe in args.recipes:
        for seed in args.seeds:
            results, minutes = run(recipe, seed, args.runs)
            for score in results["scores"]:
                row = [recipe, seed, score["row"], score["probe"], score["accuracy"], *score["ci95"], results["chance"]]
                rows.append([f"{x:.4f}" if isinstance(x, float) else x for x in row] + [minutes])
            write_csv(args.out, COLUMNS, rows)


if __name__ == "__main__":
    main()
