"""The embedded data sets: H.264 clips in motion, written once, the same for the same seed.

    python -m src.datasets.embedded.generate [--scene NAME] [--out FOLDER] [--train N] [--val N] [--seed S] [--check]

What the clips show is in scenes.py. A set is a folder: `videos/<split>/000000.mp4 ...`, the lists `train.csv` and
`val.csv` (`path label`, the label being the motion), of digits also `train_digit.csv` and `val_digit.csv` (the label
being the digit), and `manifest.json` (what was asked for, versions, size and sha256 of every file). It is written in a
temporary folder beside it and renamed when whole, so a set that exists is complete whatever interrupted an earlier
writer.
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import importlib.metadata
import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from src.datasets.embedded.digit_scene import SceneConfig
from src.datasets.embedded.scenes import EMBEDDED, SCENES, Scene, label_lists, render_index, scene_classes
from src.datasets.embedded.store import (
    KIND,
    SPLITS,
    check_motion,
    digest_of,
    put_in_place,
    settled,
    temporary_sibling,
)
from src.utils.errors import UserError, run_cli
from src.utils.paths import path_argument
from src.utils.progress import Progress

logger = logging.getLogger(__name__)

FORMAT = 2  # raised when the same settings would give other clips than before
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EBUSY, errno.EXDEV}


# Every frame an intra frame of one quality: no frame's artefacts depend on its neighbours, and a single frame stays as
# uninformative as it was rendered.
INTRA: Mapping[str, str] = {"qp": "22", "g": "1", "preset": "veryfast", "threads": "1"}


def encode(target: Path | BinaryIO, clip: np.ndarray, fps: int, options: Mapping[str, str] = INTRA) -> None:
    """Write a uint8 clip (T, H, W, 3) as H.264 mp4, with x264's `options`."""
    import av

    file = str(target) if isinstance(target, Path) else target
    with av.open(file, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        stream.options = dict(options)
        for frame in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def _spec(scene: Scene, train: int, val: int, seed: int) -> dict:
    spec = {"format": FORMAT, "train": train, "val": val, "seed": seed, "scene": dataclasses.asdict(scene)}
    return json.loads(json.dumps(spec))  # tuples become lists, as they will be when read back


def _write_share(folder: Path, jobs: list[tuple[str, int]], seed: int, scene: Scene, send: Callable) -> None:
    for split, index in jobs:
        clip, labels = render_index(split, index, seed, scene)
        name = f"videos/{split}/{index:06d}.mp4"
        encode(folder / name, clip, scene.fps)
        send((split, index, name, labels, digest_of(folder / name)))


def _worker(folder: Path, jobs: list, seed: int, scene: Scene, pipe: multiprocessing.connection.Connection) -> None:
    try:
        _write_share(folder, jobs, seed, scene, pipe.send)
    except (BrokenPipeError, KeyboardInterrupt):  # the parent is gone or going, and this share is of no use to anyone
        sys.exit(1)
    except OSError as error:
        pipe.send(OSError(error.errno, error.strerror, error.filename))


def _write_clips(folder: Path, jobs: list, seed: int, scene: Scene, workers: int) -> Iterator[tuple]:
    """Write the clips `jobs` and yield one row for each as it is done, from `workers` processes (1: this process)."""
    if workers <= 1:
        rows: list[tuple] = []
        for job in jobs:
            _write_share(folder, [job], seed, scene, rows.append)
            yield rows.pop()
        return
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    try:
        for worker in range(workers):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(
                target=_worker, args=(folder, jobs[worker::workers], seed, scene, sender), daemon=True
            )
            process.start()
            sender.close()
            pipes.append(receiver)
            processes.append(process)
        left, done = list(pipes), 0
        while left:
            ready = multiprocessing.connection.wait(left)
            for pipe in [pipe for pipe in left if pipe in ready]:
                try:
                    row = pipe.recv()
                except EOFError:
                    left.remove(pipe)
                    continue
                if isinstance(row, OSError):
                    raise row
                yield row
                done += 1
        if done != len(jobs):
            raise RuntimeError(
                f"a process writing {folder} ended early: {done} of {len(jobs)} clips (its error is above)"
            )
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _fill(folder: Path, spec: dict, scene: Scene, workers: int, progress: Callable[[], None] | None) -> None:
    """Write a whole set into an empty folder."""
    counts = {split: spec[split] for split in SPLITS}
    for split in SPLITS:
        (folder / "videos" / split).mkdir(parents=True)
    rows, files = [], {}
    for row in _write_clips(folder, [(s, i) for s in SPLITS for i in range(counts[s])], spec["seed"], scene, workers):
        rows.append(row[:4])
        files[row[2]] = row[4]
        if progress is not None:
            progress()
    rows.sort()
    for split in SPLITS:
        for which, what in enumerate(label_lists(scene)):
            name = f"{split}{what}.csv"
            (folder / name).write_text("".join(f"{row[2]} {row[3][which]}\n" for row in rows if row[0] == split))
            files[name] = digest_of(folder / name)
    manifest = {
        "kind": KIND,
        "spec": spec,
        "classes": scene_classes(scene),
        "versions": {name: importlib.metadata.version(name) for name in ("av", "numpy", "scikit-learn")},
        "files": {name: list(files[name]) for name in sorted(files)},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def write_motion(
    root: str | Path,
    scene: Scene = SceneConfig(),  # noqa: B008 (frozen)
    train: int = 4096,
    val: int = 1024,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[], None] | None = None,
) -> bool:
    """Make sure that `root` holds this data set, whole: True if it was written now, False if it was there.

    A folder with anything else in it is refused with UserError and left as it is. `workers` processes write (None: one
    per core, at most 8; started by spawn, so a script that calls this needs the usual `__main__` guard), or this
    process alone if 1. `progress` is called once per clip. Any number of processes may do this at once.
    """
    root = Path(root)
    if root.is_symlink():  # a folder cannot be renamed onto a link
        root = root.resolve()
    if train < 1 or val < 1:
        raise UserError(f"an embedded data set needs at least one clip in each split, got train={train}, val={val}")
    if seed < 0:
        raise UserError(f"a motion data set's seed is 0 or more, got {seed}")
    spec = _spec(scene, train, val, seed)
    if workers is None:
        workers = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    if multiprocessing.current_process().daemon:  # such a process may have no children
        workers = 1
    try:
        if settled(root, spec):
            return False
        with temporary_sibling(root) as folder:
            whole = folder / "set"
            whole.mkdir()
            _fill(whole, spec, scene, workers, progress)
            return put_in_place(whole, root, spec, folder / "damaged")
    except OSError as error:
        if error.errno not in _DISK_FULL | _NOT_WRITABLE:
            raise
        raise UserError(f"cannot write {error.filename or root}: {error.strerror}; choose another folder") from error


def ensure_embedded(list_path: str | Path, dataset_type: str) -> bool:
    """`write_motion` for a list that a config names and that is mostly there already; `dataset_type` is of EMBEDDED.

    A mistyped path must not fill a disk, so a set is made only below the working folder, in a folder that exists, or
    where the folder that its own lies in exists and is not the root of the disk.

    Raises:
        UserError: as `write_motion`, and where the path is none that a set could have.
    """
    path, scene = Path(list_path), SCENES[EMBEDDED[dataset_type]]
    root = path.parent
    if not path.exists():
        lists = [f"{split}{what}.csv" for split in SPLITS for what in label_lists(scene)]
        if path.name not in lists:
            raise UserError(f"{path} does not exist, and {dataset_type} has only the lists {', '.join(lists)}")
        home, place = Path.cwd(), Path(os.path.abspath(root))  # noqa: PTH100 (resolve() would follow links)
        # Everything is below the root of a disk: there an absolute path says no more than any other.
        below = place.is_relative_to(home) and not (home == home.parent and root.is_absolute())
        welcome = place.is_dir() or (place.parent.is_dir() and place.parent != place.parent.parent)
        if not below and not welcome:
            raise UserError(
                f"{path} does not exist, and {dataset_type} is not written there, as {place.parent} "
                f"{'is the root of the disk' if place.parent.is_dir() else 'does not exist either'}: mend the path, or "
                "make its folder"
            )
        logger.info("%s: writing the embedded set to %s", dataset_type, root)
    return write_motion(root, scene)


def main(argv: list[str] | None = None) -> None:
    """The command line; raises UserError for what `run_cli` then prints as one line."""
    parser = argparse.ArgumentParser(
        prog="python -m src.datasets.embedded.generate", description="Write or check the embedded data set."
    )
    parser.add_argument("--scene", choices=SCENES, default="digits", help="what is to be seen (default: %(default)s)")
    parser.add_argument(
        "--out", type=path_argument, help="its folder (default: data/motion for digits, else data/SCENE)"
    )
    parser.add_argument("--train", type=int, default=4096, help="training clips (default: %(default)s)")
    parser.add_argument("--val", type=int, default=1024, help="validation clips (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which set (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=None, help="processes (default: one per core, at most 8)")
    parser.add_argument("--check", action="store_true", help="verify the checksums of the set at --out, write nothing")
    args = parser.parse_args(argv)
    args.out = args.out or Path("data", {"digits": "motion"}.get(args.scene, args.scene))
    if args.check:
        print(f"{args.out}: {check_motion(args.out)} files, all as written")
        return
    settings = {
        "scene": SCENES[args.scene],
        "train": args.train,
        "val": args.val,
        "seed": args.seed,
        "workers": args.workers,
    }
    with Progress(args.train + args.val, what=f"writing {args.out}") as progress:
        written = write_motion(args.out, **settings, progress=progress.advance)
    print(f"{args.out}: {args.train} + {args.val} clips {'written' if written else 'were there already'}")


if __name__ == "__main__":
    run_cli(main)
