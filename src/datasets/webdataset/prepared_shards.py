"""What a prepared set of videos consists of on disk, and whether it still does (see prepare.py)."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from src.datasets.decoding.decode import DecodeError, open_video
from src.datasets.webdataset.shards import scan
from src.utils.errors import UserError

MANIFEST, PLAN, UNREADABLE = "manifest.json", "plan.json", "unreadable.csv"


def tar_file(out: Path, number: int) -> Path:
    """A shard."""
    return out / f"shard-{number:06d}.tar"


def rows_file(out: Path, number: int) -> Path:
    """What is in a shard, or could not be, a JSON object per line."""
    return out / f"shard-{number:06d}.jsonl"


def read_rows(path: Path) -> list[dict]:
    """The rows of a shard."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, text: str) -> None:
    """A file that is there whole or not at all."""
    part = path.with_name(path.name + ".tmp")
    part.write_text(text, encoding="utf-8", errors="surrogateescape")
    sync(part)
    part.replace(path)


def sync(path: Path) -> None:
    """Wait until a file is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def check(out: Path) -> list[str]:
    """What is wrong with a prepared set, one line each: missing shards, samples, wrong bytes or numbers of frames.

    Raises UserError where there is no prepared set.
    """
    try:
        plan = json.loads((out / MANIFEST).read_text())
    except FileNotFoundError:
        raise UserError(f"{out} has no {MANIFEST}: not a prepared set, or an unfinished one") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{out / MANIFEST} cannot be read: {error}") from None
    problems = []
    for number in range(plan["shards"]):
        tar = tar_file(out, number)
        if not tar.exists() or not rows_file(out, number).exists():
            problems.append(f"{tar.name}: missing")
            continue
        try:
            contents = scan(str(tar))
        except UserError as error:
            problems.append(str(error))
            continue
        # A shard of videos that could not be read is empty, and was made so.
        problems.extend(f"{name}: {reason}" for name, kind, reason in contents.errors if kind != "empty")
        found = {entry.key: entry for entry in contents.entries}
        with tar.open("rb") as file:
            for row in read_rows(rows_file(out, number)):
                if "kind" in row:
                    continue
                entry = found.get(row["key"])
                file.seek(entry.offset if entry else 0)
                problem = _check_row(row, entry.label if entry else None, file.read(entry.size) if entry else b"")
                problems.extend([f"{tar.name}::{row['key']}: {problem}"] if problem else [])
    return problems


def _check_row(row: dict, label: int | None, data: bytes) -> str:
    if label is None:
        return "missing"
    if label != row["label"]:
        return f"label {label}, the manifest has {row['label']}"
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        return "other bytes than were written"
    try:
        video = open_video(data, "pyav", row["key"])
    except DecodeError as error:
        return error.reason
    frames = video.n_frames
    video.close()
    return "" if frames == row["frames"] else f"{frames} frames, the manifest has {row['frames']}"
