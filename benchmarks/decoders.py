"""How often decord and our own reader return the wrong frames: the formats of the tests, read by both.

    python -m benchmarks.decoders [--out docs/results/decoders.csv]

Each file has 48 numbered frames; each read asks for some of them. A read is wrong when any of its frames shows another
number than the one asked for, or when it fails.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/src/datasets"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests/src/datasets/decoding"))

from conftest import Media
from test_decode import FORMATS, READS

from src.datasets.decoding.decode import DecodeError, read_frames


def wrong_reads(path: Path, decoder: str) -> int:
    wrong = 0
    for indices in READS:
        try:
            wrong += Media.frame_numbers(read_frames(path, indices, decoder=decoder)) != list(indices)
        except DecodeError:
            wrong += 1
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/results/decoders.csv"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, args.out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "reads", "wrong_decord", "wrong_auto"])
        for name, how in FORMATS.items():
            path = Media.write_video(Path(folder) / name, **how)
            row = [name, len(READS), wrong_reads(path, "decord"), wrong_reads(path, "auto")]
            writer.writerow(row)
            print("{:<20} {} reads, wrong: decord {}, auto {}".format(*row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
