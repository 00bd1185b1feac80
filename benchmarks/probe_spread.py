"""How far a probe's accuracy can be trusted: the same seed several times, then several seeds.

    python -m benchmarks.probe_spread --fname configs/evals/vm_tiny_digits.yaml [--seeds 0 1 2 3 4] [key=value]

Runs the evaluation of the YAML through evals.main's own code, anew each time, with nothing cached from the run before:
--repeats times with the first seed, which must give the same confusion matrix, then once with each other seed. A seed
decides the probe's first weights, the order of its samples and which of them are drawn or held out; the encoder is the
checkpoint's in all of them. Writes a row for each run and probe, and prints mean, deviation and range over the seeds.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from evals import scaffold
from evals.video_classification_frozen import eval as video_eval

FIELDS = ("seed", "run", "encoder", "probe", "accuracy", "ci95_low", "ci95_high", "correct", "total")


def evaluate(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """The evaluation's json."""
    with tempfile.TemporaryDirectory() as folder:
        _, cfg = scaffold.load(args.fname, [*args.overrides, f"seed={seed}", f"folder={folder}"])
        return video_eval.main(cfg)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fname", required=True, help="YAML of a video_classification_frozen evaluation")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--repeats", type=int, default=3, help="runs with the first seed")
    parser.add_argument("--out", type=Path, default=Path("docs/results/probe_spread.csv"))
    args, args.overrides = parser.parse_known_args()
    plan = [(args.seeds[0], run) for run in range(1, args.repeats + 1)] + [(seed, 1) for seed in args.seeds[1:]]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    found: dict[tuple[str, str], dict[tuple[int, int], dict[str, Any]]] = {}
    with args.out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(FIELDS)
        for seed, run in plan:
            for score in evaluate(args, seed)["scores"]:
                found.setdefault((score["row"], score["probe"]), {})[seed, run] = score
                shares = [f"{share:.4f}" for share in (score["accuracy"], *score["ci95"])]
                writer.writerow([seed, run, score["row"], score["probe"], *shares, score["correct"], score["total"]])
            file.flush()
    same = True
    for (row, probe), scores in found.items():
        repeats = [score["confusion_matrix"] for (seed, _), score in scores.items() if seed == args.seeds[0]]
        same &= all(matrix == repeats[0] for matrix in repeats)
        values = [100 * scores[seed, 1]["accuracy"] for seed in args.seeds]
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        print(
            f"{row}, {probe}: {statistics.fmean(values):.1f} % on average over {len(values)} seeds, "
            f"deviation {deviation:.2f}, from {min(values):.1f} to {max(values):.1f}"
        )
    print(f"the same seed {args.repeats} times: {'the same' if same else 'NOT the same'} confusion matrix")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
