"""A one-time pass over a list of videos: small, quickly readable copies in webdataset shards.

    python -m src.datasets.prepare --list train.csv --out DIR [--short-side 256 --gop 16 --shards N --workers N]
    python -m src.datasets.prepare --check DIR

DIR gets `shard-000000.tar`, ... (an .mp4 and a .cls per video, in a shuffled order), beside each a .jsonl with a line
for every video (path, label, frames, fps, size, checksum, or why it could not be read), `unreadable.csv`, and last of
all `manifest.json`. A shard is written under another name and renamed, so an interrupted pass goes on where it
stopped.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import hashlib
import io
import json
import multiprocessing
import os
import tarfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import numpy as np

from src.datasets.decoding.decode import DecodeError
from src.datasets.decoding.transcode import Recipe, transcode
from src.datasets.lists import list_folders, read_list, resolve
from src.datasets.webdataset.prepared_shards import (
    MANIFEST,
    PLAN,
    UNREADABLE,
    check,
    read_rows,
    rows_file,
    sync,
    tar_file,
    write,
)
from src.utils.errors import UserError, run_cli
from src.utils.paths import path_argument
from src.utils.progress import Progress

_VIDEOS_PER_SHARD = 500
_done: Synchronized | None = None  # videos finished by all workers, set in each


def prepare(list_path: Path, out: Path, recipe: Recipe, shards: int | None, workers: int) -> dict:
    """Write the shards that are not there yet, then the manifest, which is returned.

    Raises:
        UserError: the list cannot be read, DIR holds something else, or nothing at all could be read.
    """
    paths, labels = read_list(list_path, labelled=False)  # shards are for pretraining, which needs none
    folders = list_folders(list_path)
    count = min(shards or -(-len(paths) // _VIDEOS_PER_SHARD), len(paths))
    plan = {
        "list": hashlib.sha256(list_path.read_bytes()).hexdigest(),
        "videos": len(paths),
        "shards": count,
        **recipe.as_dict(),
    }
    with _claimed(out, plan):
        # Shuffled once, so that a stream that reads shard after shard is not sorted by class.
        groups = np.array_split(np.random.default_rng(0).permutation(len(paths)), count)
        jobs = []
        for number, group in enumerate(groups):
            if not (rows_file(out, number).exists() and tar_file(out, number).exists()):
                jobs.append((number, [(int(i), resolve(paths[i], folders), labels[i]) for i in group]))
        finished = len(paths) - sum(len(job) for _, job in jobs)
        with Progress(len(paths), finished, unit="videos", what="preparing") as progress:
            _run(jobs, out, recipe, workers, progress)
        return _finish(out, plan, count)


@contextmanager
def _claimed(out: Path, plan: dict) -> Iterator[None]:
    """The folder, locked against a second run, and known to hold this plan or nothing."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with (out / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"another run is writing to {out}") from None
            if (out / PLAN).exists():
                before = json.loads((out / PLAN).read_text())
                if changed := sorted(key for key in plan if before.get(key) != plan[key]):
                    raise UserError(
                        f"{out} was begun with another {', '.join(changed)}: use a new folder, or delete it"
                    )
            elif any(out.glob("shard-*")):
                raise UserError(f"{out} holds shards that were not written by this tool: use a new folder")
            else:
                write(out / PLAN, json.dumps(plan, indent=1))
            yield
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror or error}") from None


def _run(jobs: list, out: Path, recipe: Recipe, workers: int, progress: Progress) -> None:
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    start = progress.step
    if not jobs:
        return
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=_start_worker, initargs=(counter,))
    try:
        futures = [pool.submit(_write_shard, out, number, job, recipe) for number, job in jobs]
        waiting = set(futures)
        while waiting:
            try:
                for future in as_completed(waiting, timeout=1.0):
                    waiting.discard(future)
                    future.result()
            except TimeoutError:
                pass
            new = start + counter.value - progress.step
            progress.advance(new, new)
    except BrokenProcessPool:
        raise UserError(
            "a worker was killed (out of memory?); run the same command again, with fewer --workers"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(counter: Synchronized) -> None:
    global _done
    _done = counter
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A pool's worker whose parent was killed would wait for its next job for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _write_shard(out: Path, number: int, job: Sequence[tuple[int, str, int]], recipe: Recipe) -> None:
    """One shard and its rows; the rows are renamed last, so where they are, the shard is whole."""
    final = tar_file(out, number)
    part = final.with_suffix(".part")
    rows = []
    with tarfile.open(part, "w") as archive:
        for index, path, label in job:
            row: dict[str, Any] = {"key": f"{index:08d}", "path": path, "label": label}
            try:
                video = transcode(path, recipe)
            except DecodeError as error:
                row |= {"kind": error.kind, "reason": error.reason}
            else:
                _add(archive, f"{row['key']}.mp4", video.data)
                _add(archive, f"{row['key']}.cls", str(label).encode())
                row |= {
                    "frames": video.frames,
                    "fps": round(video.fps, 4),
                    "width": video.width,
                    "height": video.height,
                    "bytes": len(video.data),
                    "sha256": hashlib.sha256(video.data).hexdigest(),
                }
            rows.append(row)
            if _done is not None:
                with _done.get_lock():
                    _done.value += 1
    sync(part)
    part.replace(final)
    write(rows_file(out, number), "".join(json.dumps(row) + "\n" for row in rows))


def _finish(out: Path, plan: dict, shards: int) -> dict:
    rows = [row for number in range(shards) for row in read_rows(rows_file(out, number))]
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


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


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
