"""How a motion data set lies on disk: its manifest, its checksums, and how it comes to its place whole or not at all.

A set is written into a temporary folder beside its place and renamed. The folder is locked while its writer lives, so
what a dead one left behind is known for what it is, whoever reused its process id, and removed by the next writer.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from src.utils.errors import UserError

KIND = "motion-digits"
SPLITS = ("train", "val")


def _differences(found: dict, wanted: dict) -> list[str]:
    def flat(spec: dict) -> dict:
        return {
            **{k: v for k, v in spec.items() if k != "scene"},
            **{f"scene.{k}": v for k, v in spec["scene"].items()},
        }

    a, b = flat(found), flat(wanted)
    return [
        f"{key} {a.get(key)} there, {b.get(key)} asked"
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    ]


def read_manifest(root: Path) -> dict | None:
    """The manifest of the set at `root`, None where nothing is, UserError where something is that is not ours."""
    try:
        data = (root / "manifest.json").read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        if not root.exists() or (root.is_dir() and not any(root.iterdir())):
            return None
        raise UserError(f"{root} exists and is not a motion data set: choose another folder, or move it away") from None
    try:
        manifest = json.loads(data)
        ours = (
            manifest["kind"] == KIND
            and isinstance(manifest["files"], dict)
            and isinstance(manifest["spec"]["scene"], dict)
        )
    except (ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise UserError(
            f"{root / 'manifest.json'} is not a motion data set's manifest: remove {root}, or choose another folder"
        )
    return manifest


def is_complete(root: Path, manifest: dict) -> bool:
    """Whether every file is there with its size (`check_motion` reads them too)."""
    sizes = {}
    for folder in ("", *(f"videos/{split}/" for split in SPLITS)):
        if not (root / folder).is_dir():
            return False
        with os.scandir(root / folder) as entries:
            sizes.update({folder + entry.name: entry.stat().st_size for entry in entries if entry.is_file()})
    return all(sizes.get(name) == size for name, (size, _) in manifest["files"].items())


def digest_of(path: Path) -> tuple[int, str]:
    """Size in bytes and hex SHA-256 of a file."""
    data = path.read_bytes()
    return len(data), hashlib.sha256(data).hexdigest()


def check_motion(root: str | Path) -> int:
    """Verify every checksum of the set at `root`: the number of files, or UserError naming the first bad one."""
    root = Path(root)
    manifest = read_manifest(root)
    if manifest is None:
        raise UserError(
            f"{root} holds no motion data set: write it with python -m src.datasets.embedded.generate --out {root}"
        )
    for name, (size, digest) in sorted(manifest["files"].items()):
        path = root / name
        if not path.is_file():
            raise UserError(f"{path} is missing: remove {root} and write it again")
        if digest_of(path) != (size, digest):
            raise UserError(
                f"{path} is not what was written (size or sha256 differs): remove {root} and write it again"
            )
    return len(manifest["files"])


@contextlib.contextmanager
def temporary_sibling(root: Path) -> Iterator[Path]:
    """A folder beside `root`, locked while this process lives and removed at the end, as those of the dead are."""
    prefix = f".{root.name}.tmp-"
    root.parent.mkdir(parents=True, exist_ok=True)
    for stale in root.parent.glob(prefix + "*"):
        with _locked(stale / "lock", create=False) as held:
            if held:
                shutil.rmtree(stale, ignore_errors=True)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=root.parent))
        with _locked(folder / "lock", create=True) as held:
            if not held:  # another writer took it for a stale one just as it was made
                continue
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            return


@contextlib.contextmanager
def _locked(path: Path, create: bool) -> Iterator[bool]:
    """Whether this process got the lock; the system drops it when the process ends, however it ends."""
    try:
        handle = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o644)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = path.exists() and os.path.samestat(os.fstat(handle), path.stat())
    except (BlockingIOError, FileNotFoundError):
        held = False
    try:
        yield held
    finally:
        os.close(handle)


def settled(root: Path, spec: dict) -> bool:
    """True where the complete set of this spec is; UserError where something else is; False where it can be written."""
    manifest = read_manifest(root)
    if manifest is None:
        return False
    if manifest["spec"] != spec:
        what = "; ".join(_differences(manifest["spec"], spec)[:3])
        raise UserError(
            f"{root} holds a motion data set with other settings ({what}): remove it, or choose another folder"
        )
    return is_complete(root, manifest)


def put_in_place(whole: Path, root: Path, spec: dict, aside: Path) -> bool:
    """Rename a whole set to its place: False if another writer was first. A damaged set of ours there goes `aside`."""
    for attempt in range(8):
        try:
            whole.rename(root)
            return True
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if settled(root, spec):
            return False
        with contextlib.suppress(FileNotFoundError):  # another writer moved it first
            root.rename(f"{aside}-{attempt}")
    raise RuntimeError(f"{root} keeps changing while it is being written")
