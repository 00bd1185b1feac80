"""Shards written by several processes, so that a run that was interrupted goes on: shard by shard, whole or not at all.

A folder holds `plan.json` (what was asked for), and for every shard NAME.tar and NAME.jsonl, a row for each sample. The
rows are renamed last: where they are, the shard is whole.
"""

from __future__ import annotations

import fcntl
import io
import json
import multiprocessing
import os
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from src.datasets.webdataset.prepared_shards import PLAN, read_rows, sync, write
from src.utils.errors import UserError
from src.utils.progress import Progress

Item = TypeVar("Item")


class Sample(NamedTuple):
    """What becomes of an item: files of a shard by their suffix, none for one that cannot be made, and its row."""

    key: str
    files: dict[str, bytes]
    row: dict[str, Any]


_done: Synchronized | None = None  # samples made by all processes, in a worker


def write_shards(
    out: Path, shards: Mapping[str, Sequence[Item]], make: Callable[[Item], Sample], workers: int, what: str, unit: str
) -> dict[str, list[dict]]:
    """Make every item's sample and write the shards that are missing. Call it within `claimed`.

    Args:
        shards: name -> items, in their order.
        make: a function of a module, called in other processes.
        what, unit: for the progress line.

    Returns:
        name -> rows

    Raises:
        UserError: a worker was killed; or what `make` raises.
    """
    jobs = {name: items for name, items in shards.items() if not _whole(out, name)}
    total = sum(map(len, shards.values()))
    with Progress(total, total - sum(map(len, jobs.values())), unit=unit, what=what) as progress:
        _run(jobs, out, make, workers, progress)
    return {name: read_rows(out / f"{name}.jsonl") for name in shards}


@contextmanager
def claimed(out: Path, plan: Mapping[str, Any]) -> Iterator[None]:
    """The folder, locked against a second run, and known to hold this plan or nothing.

    Raises UserError where it holds something else, or cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with (out / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"another run is writing to {out}") from None
            if (out / PLAN).exists():
                before = json.loads((out / PLAN).read_text())
                if changed := sorted(key for key in {*plan, *before} if before.get(key) != plan.get(key)):
                    raise UserError(
                        f"{out} was begun with another {', '.join(changed)}: use a new folder, or delete it"
                    )
            elif any(out.glob("*.tar")):
                raise UserError(f"{out} holds shards that were not written by this tool: use a new folder")
            else:
                write(out / PLAN, json.dumps(plan, indent=1))
            yield
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror or error}") from None


def _whole(out: Path, name: str) -> bool:
    return (out / f"{name}.jsonl").exists() and (out / f"{name}.tar").exists()


def _run(jobs: Mapping[str, Sequence], out: Path, make: Callable, workers: int, progress: Progress) -> None:
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    start = progress.step
    if not jobs:
        return
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=_start_worker, initargs=(counter,))
    try:
        waiting = {pool.submit(_write_shard, out, name, items, make) for name, items in jobs.items()}
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


def _write_shard(out: Path, name: str, items: Sequence[Item], make: Callable[[Item], Sample]) -> None:
    part = out / f"{name}.part"
    rows = []
    with tarfile.open(part, "w") as archive:
        for item in items:
            sample = make(item)
            for suffix, data in sample.files.items():
                info = tarfile.TarInfo(f"{sample.key}.{suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
            rows.append(sample.row)
            if _done is not None:
                with _done.get_lock():
                    _done.value += 1
    sync(part)
    part.replace(out / f"{name}.tar")
    write(out / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
