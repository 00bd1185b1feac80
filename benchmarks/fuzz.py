"""Damage 2,000 small files of every kind that users give, and hold the readers to one answer: right, or one line.

    python -m benchmarks.fuzz --cases 2000

Videos, images, lists, shards, YAMLs and checkpoints are made, then flipped, cut, joined, blanked, stretched and
shuffled, and read as a run reads them, in a process that is ended after 20 seconds. Reading may refuse a file, by a
UserError or by leaving it out and counting it. It may not hang, end with another exception or a signal, or give a
sample of another shape or weights of other values. Writes a row for each kind and damage to docs/results/fuzz.csv, and
prints what failed; --keep DIR keeps those files.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import app.scaffold
import evals.scaffold
from benchmarks.fuzz_files import BYTES, shuffle_lines, write_originals
from src.datasets.augmentation import make_transforms
from src.datasets.data_manager import init_data
from src.datasets.decoding.decode import DecodeError, open_stream
from src.models.loading import load_encoder
from src.utils.errors import UserError
from src.utils.progress import Progress

HANG_SECONDS = 20.0
CROP, CLIP = 32, 8
OUTCOMES = ("read", "refused", "traceback", "signal", "hang", "wrong")
COLUMNS = ("kind", "damage", "cases", *OUTCOMES, "slowest s", "peak MiB")
SHARE = {"video": 0.35, "list": 0.15, "shard": 0.2, "yaml": 0.15, "checkpoint": 0.1, "image": 0.05}


def samples(dataset_type: str, source: Path | str, clip: int, **more: Any) -> str:
    """Every sample of a data set: its shape is right, or the set is refused."""
    transform = make_transforms(CROP, random_resize_scale=[0.5, 1.0])
    how: dict[str, Any] = {"num_frames": clip, "sampling_rate": 2, "batch_size": 2, "training": False}
    how["max_skip_fraction"] = 1.0
    count = 0
    for batch in init_data(dataset_type=dataset_type, datasets=[source], transform=transform, **how, **more):
        for clips in batch.clips:
            if clips.shape[1:] != (3, clip, CROP, CROP) or clips.dtype != torch.uint8:
                return f"wrong: {tuple(clips.shape)} {clips.dtype}"
        count += len(batch)
    return "read" if count else "refused"


def read_video(path: Path, _: Path) -> str:
    listed = path.with_name("list.csv")
    listed.write_text(f"{path.name} 0\n")
    outcome = samples("VideoDataset", listed, CLIP)
    try:
        stream = open_stream(path)
        shapes = {stream.rgb(frame).shape[2:] for frame in stream}
        stream.close()
    except DecodeError as error:
        return outcome if "\n" not in str(error) else f"traceback: more than one line: {error}"
    return outcome if shapes == {(3,)} else f"wrong: {shapes}"


def read_image(path: Path, _: Path) -> str:
    folder = path.with_name("classes") / "one"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    shutil.copy(path, folder / path.name)
    return samples("ImageDataset", folder.parent, 1)


def read_list(path: Path, original: Path) -> str:
    beside = original.with_name(f"damaged-{os.getpid()}.csv")  # its relative paths are those of its folder
    shutil.copy(path, beside)
    try:
        return samples("VideoDataset", beside, CLIP)
    finally:
        beside.unlink()


def read_shard(path: Path, _: Path) -> str:
    local = samples("WebVideoDataset", path, CLIP)
    try:
        streamed = samples("WebVideoDataset", f"pipe:cat {path}", CLIP, allow_pipe=True)
    except UserError:
        streamed = "refused"
    return max(local, streamed)  # "wrong" is behind "read" and "refused" in the alphabet


def read_yaml(path: Path, original: Path) -> str:
    (evals.scaffold.load if original.parent.name == "evals" else app.scaffold.load)(path)
    return "read"


@cache
def _weights(path: Path) -> list[torch.Tensor]:
    return [p.detach() for p in load_encoder(path).parameters()]


def read_checkpoint(path: Path, original: Path) -> str:
    named = path.with_name("damaged.pth.tar")
    shutil.copy(path, named)
    weights = [p.detach() for p in load_encoder(named).parameters()]
    same = len(weights) == len(_weights(original)) and all(map(torch.equal, weights, _weights(original)))
    return "read" if same else "wrong: other weights"


READERS = {
    "video": read_video,
    "image": read_image,
    "list": read_list,
    "shard": read_shard,
    "yaml": read_yaml,
    "checkpoint": read_checkpoint,
}


class Case(NamedTuple):
    """A damaged file and what it was."""

    kind: str
    damage: str
    path: Path
    original: Path


def work(pipe: Connection) -> None:
    """Read one case after another, and say how it went."""
    torch.set_num_threads(1)
    while True:
        case: Case = pipe.recv()
        try:
            outcome = READERS[case.kind](case.path, case.original)
        except (UserError, DecodeError) as error:
            outcome = "refused" if "\n" not in str(error) else f"traceback: more than one line: {error}"
        except Exception:  # noqa: BLE001  # whatever it is, it is what is looked for
            outcome = f"traceback: {traceback.format_exc()}"
        pipe.send((outcome, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


class Reader:
    """A process that reads, and is replaced when it dies or hangs."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._start()

    def _start(self) -> None:
        self._pipe, theirs = self._context.Pipe()
        self._process = self._context.Process(target=work, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def read(self, case: Case) -> tuple[str, float]:
        """(outcome, the process's peak memory in MiB)"""
        self._pipe.send(case)
        try:
            if self._pipe.poll(HANG_SECONDS):
                return self._pipe.recv()
            outcome = "hang"
        except EOFError:
            self._process.join()
            outcome = f"signal: {self._process.exitcode}"
        self.close()
        self._start()
        return outcome, 0.0

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.join()


def make_cases(originals: dict[str, list[Path]], folder: Path, count: int, seed: int) -> list[Case]:
    """Damaged files in the shares of SHARE, each a function of the seed and its number."""
    cases: list[Case] = []
    for kind, share in SHARE.items():
        damages = (*BYTES, shuffle_lines) if kind in ("list", "yaml") else BYTES
        for i in range(round(count * share)):
            rng = np.random.default_rng([seed, len(cases)])
            damage = damages[i % len(damages)]
            original, other = (originals[kind][j] for j in rng.integers(0, len(originals[kind]), 2))
            place = folder / f"{len(cases):05d}"
            place.mkdir()
            path = place / original.name
            path.write_bytes(damage(original.read_bytes(), other.read_bytes(), rng))
            cases.append(Case(kind, damage.__name__, path, original))
    return cases


def write_table(path: Path, results: dict[tuple[str, str], Counter[str]], slowest: dict, peak: dict) -> None:
    """A row for each kind and damage, and the sum."""
    total: Counter[str] = Counter()
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for key, counts in results.items():
            total += counts
            numbers = [counts[outcome] for outcome in OUTCOMES]
            writer.writerow([*key, counts.total(), *numbers, f"{slowest[key]:.1f}", round(peak[key])])
        numbers = [total[outcome] for outcome in OUTCOMES]
        seconds, memory = max(slowest.values()), max(peak.values())
        writer.writerow(["all", "all", total.total(), *numbers, f"{seconds:.1f}", round(memory)])


def main() -> int:
    """The command line; returns 1 when a case failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the files that failed")
    parser.add_argument("--out", type=Path, default=Path("docs/results/fuzz.csv"))
    args = parser.parse_args()
    results: dict[tuple[str, str], Counter[str]] = {}
    slowest: dict[tuple[str, str], float] = {}
    peak: dict[tuple[str, str], float] = {}
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        originals = write_originals(Path(name))
        (Path(name) / "cases").mkdir()
        cases = make_cases(originals, Path(name) / "cases", args.cases, args.seed)
        reader = Reader()
        for original in [file for kind in originals for file in originals[kind]]:  # nothing is wrong with these
            kind = next(kind for kind in originals if original in originals[kind])
            outcome, _ = reader.read(Case(kind, "none", original, original))
            if outcome != "read":
                print(f"{original} is whole: {outcome}")
                return 1
        with Progress(len(cases), 0, unit="files", what="reading") as progress:
            for case in cases:
                start = time.perf_counter()
                outcome, memory = reader.read(case)
                key, short = (case.kind, case.damage), outcome.split(":")[0]
                results.setdefault(key, Counter())[short] += 1
                slowest[key] = max(slowest.get(key, 0.0), time.perf_counter() - start)
                peak[key] = max(peak.get(key, 0.0), memory)
                if short not in ("read", "refused"):
                    failed += 1
                    print(f"{case.kind}, {case.damage}, {case.path.parent.name}/{case.path.name}: {outcome}")
                    if args.keep is not None:
                        args.keep.mkdir(parents=True, exist_ok=True)
                        shutil.copy(case.path, args.keep / f"{case.path.parent.name}-{case.path.name}")
                progress.advance(1, 1)
        reader.close()
    write_table(args.out, results, slowest, peak)
    print(f"{len(cases)} files, {failed} failed; {args.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
