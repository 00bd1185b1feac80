"""A one-time pass over a list of videos: small, quickly readable copies in webdataset shards.

    python -m src.datasets.prepare --list train.csv --out DIR [--short-side 256 --gop 16 --shards N --workers N]
    python -m src.datasets.prepare --check DIR

DIR gets `shard-000000.tar`, ... (an .mp4 per video, shuffled, and a .cls where it has a label), beside each a .jsonl
with a line for every video (path, label, frames, fps, size, checksum, or why it could not be read), `unreadable.csv`,
and last of all `manifest.json`. An interrupted pass goes on where it stopped (webdataset/shard_writer.py).
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from src.datasets.decoding.decode import DecodeError
from src.datasets.decoding.transcode import Recipe, transcode
from src.datasets.list_lines import NO_LABEL
from src.datasets.lists import list_folders, read_list, resolve
from src.datasets.webdataset.prepared_shards import MANIFEST, UNREADABLE, check, tar_file, write
from src.datasets.webdataset.shard_writer import Sample, claimed, write_shards
from src.utils.errors import UserError, run_cli
from src.utils.paths import path_argument

_VIDEOS_PER_SHARD = 500
_FORMAT = 2  # raised when the same settings would give other files than before


class Video(NamedTuple):
    """A line of the list."""

    number: int
    path: str
    label: int


def prepare(list_path: Path, out: Path, recipe: Recipe, shards: int | None, workers: int) -> dict:
    """Write the shards that are not there yet, then the manifest, which is returned.

    Raises:
        UserError: the list cannot be read, DIR holds something else, or nothing at all could be read.
    """
    paths, labels = read_list(list_path, labelled=False)  # shards are for pretraining, which needs none
    folders = list_folders(list_path)
    count = min(shards or -(-len(paths) // _VIDEOS_PER_SHARD), len(paths))
    plan = {
        "format": _FORMAT,
        "list": hashlib.sha256(list_path.read_bytes()).hexdigest(),
        "videos": len(paths),
        "shards": count,
        **recipe.as_dict(),
    }
    with claimed(out, plan):
        # Shuffled once, so that a stream that reads shard after shard is not sorted by class.
        groups = np.array_split(np.random.default_rng(0).permutation(len(paths)), count)
        jobs = {
            tar_file(out, number).stem: [Video(int(i), resolve(paths[i], folders), labels[i]) for i in group]
            for number, group in enumerate(groups)
        }
        rows = write_shards(out, jobs, partial(make_sample, recipe), workers, what="preparing", unit="videos")
        return _finish(out, plan, [row for shard in rows.values() for row in shard])


def make_sample(recipe: Recipe, video: Video) -> Sample:
    """A video as the files of a shard; only a row, which says why, for one that cannot be read."""
    key = f"{video.number:08d}"
    row: dict[str, Any] = {"key": key, "path": video.path, "label": video.label}
    try:
        made = transcode(video.path, recipe)
    except DecodeError as error:
        return Sample(key, {}, row | {"kind": error.kind, "reason": error.reason})
    row |= {
        "frames": made.frames,
        "fps": round(made.fps, 4),
        "width": made.width,
        "height": made.height,
        "bytes": len(made.data),
        "sha256": hashlib.sha256(made.data).hexdigest(),
    }
    label = {} if video.label == NO_LABEL else {"cls": str(video.label).encode()}
    return Sample(key, {"mp4": made.data} | label, row)


def _finish(out: Path, plan: dict, rows: list[dict]) -> dict:
    bad = sorted((row for row in rows if "kind" in row), key=lambda row: row["key"])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows((row["path"], row["kind"], row["reason"]) for row in bad)
    write(out / UNREADABLE, text.getvalue())
    good = [row for row in rows if "kind" not in row]
    manifest = {
        **plan,
        "written": len(good),
        "unreadable": len(bad),
        "frames": sum(row["frames"] for row in good),
        "bytes": sum(row["bytes"] for row in good),
    }
    write(out / MANIFEST, json.dumps(manifest, indent=1))
    if not good:
        raise UserError(f"none of {len(bad)} videos could be read; {out / UNREADABLE} says why")
    return manifest


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 1 when --check finds something wrong."""
    parser = argparse.ArgumentParser(prog="python -m src.datasets.prepare", description=(__doc__ or "").split("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--list", type=path_argument, help="videos to prepare, one `path label` per line")
    what.add_argument("--check", type=path_argument, metavar="DIR", help="verify a prepared set")
    parser.add_argument("--out", type=path_argument, metavar="DIR", help="where the shards go")
    parser.add_argument("--short-side", type=int, default=256, help="pixels (default: %(default)s)")
    parser.add_argument("--gop", type=int, default=16, help="frames between keyframes (default: %(default)s)")
    parser.add_argument("--crf", type=int, default=23, help="x264 quality, lower is better (default: %(default)s)")
    parser.add_argument("--shards", type=int, help=f"number of shards (default: one per {_VIDEOS_PER_SHARD} videos)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.check is not None:
        problems = check(args.check)
        print("\n".join(problems) or f"{args.check}: all shards are as they were written")
        return 1 if problems else 0
    if args.out is None:
        raise UserError("--list needs --out DIR")
    for name, least in (("short_side", 16), ("gop", 1), ("workers", 1), ("shards", 1), ("crf", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} must be at least {least}, not {value}")
    recipe = Recipe(args.short_side, args.gop, args.crf)
    made = prepare(args.list, args.out, recipe, args.shards, args.workers)
    print(
        f"{made['written']} videos, {made['frames']} frames, {made['bytes'] / 1e6:.1f} MB, "
        f"{made['shards']} shards; {made['unreadable']} unreadable ({args.out / UNREADABLE})\n"
        f"use: data.dataset_type=WebVideoDataset data.datasets=[{args.out}/shard-*.tar]"
    )
    return 0


if __name__ == "__main__":
    run_cli(main)
