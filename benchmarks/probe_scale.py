"""What kNN and the linear probe cost on many samples, on made-up features: python -m benchmarks.probe_scale

Writes a row for each number of training samples. Of kNN the time is over the pairs of a query and a training sample: it
is the same for every pair.
"""

from __future__ import annotations

import argparse
import csv
import resource
import sys
import time
from pathlib import Path

import numpy as np

from src.probes.linear_knn import MAX_LOO_SAMPLES, knn_probe, linear_probe

FIELDS = ("train", "val", "width", "classes", "knn_s", "knn_pairs", "knn_ns_per_pair", "linear_s", "peak_mib")


def measure(train: int, val: int, width: int, classes: int) -> dict[str, float]:
    """Seconds of both probes, and the peak of the process's memory, MiB."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((train + val, width), dtype=np.float32)
    labels = rng.integers(0, classes, train)
    times = []
    for probe in (lambda *sets: knn_probe(*sets, classes), linear_probe):
        begun = time.perf_counter()
        probe(x[:train], labels, x[train:])
        times.append(time.perf_counter() - begun)
    pairs = train * (val + min(train, MAX_LOO_SAMPLES))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    row = (train, val, width, classes, round(times[0], 1), pairs, round(1e9 * times[0] / pairs, 1), round(times[1], 1))
    return dict(zip(FIELDS, (*row, round(peak))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=int, nargs="+", default=[50_000, 100_000, 200_000])
    parser.add_argument("--val", type=int, default=2000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("docs/results/probe_scale.csv"))
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        for train in args.train:
            writer.writerow(measure(train, args.val, args.width, args.classes))
            file.flush()


if __name__ == "__main__":
    sys.exit(main())
