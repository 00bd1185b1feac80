"""Lists of samples on disk: `path label` text files and V-JEPA's .npy arrays of paths."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from src.utils.errors import UserError


class PackedStrings(Sequence[str]):
    """A read-only list of strings in two arrays.

    A million Python strings are touched, and so copied, by every worker process that reads them; two arrays are not.
    """

    def __init__(self, strings: Iterable[str]) -> None:
        encoded = [s.encode("utf-8", "surrogateescape") for s in strings]
        self._ends = np.cumsum([len(s) for s in encoded], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = int(self._ends[index - 1]) if index else 0
        return self._bytes[start : int(self._ends[index])].tobytes().decode("utf-8", "surrogateescape")


def read_list(path: str | Path) -> tuple[list[str], list[int]]:
    """Paths and labels of one list. Raises UserError naming the file, and the line where one cannot be read.

    Relative paths mean the list's own folder, or the working directory where that does not have them (`resolve`).
    """
    path = Path(path)
    try:
        return _read_npy(path) if path.suffix == ".npy" else _read_text(path)
    except FileNotFoundError:
        raise UserError(f"data list {path} does not exist; set data.datasets to lists of `path label` lines") from None
    except OSError as error:
        raise UserError(f"data list {path} cannot be read: {error.strerror or error}") from None


def _read_text(path: Path) -> tuple[list[str], list[int]]:
    paths, labels = [], []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"data list {path} is not UTF-8 text") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        parts = line.strip().rsplit(maxsplit=1)
        if len(parts) != 2 or not parts[1].lstrip("-").isdecimal():
            raise UserError(
                f"{path}, line {number}: expected `path label` with an integer label, got {line.strip()[:120]!r}"
            )
        paths.append(parts[0])
        labels.append(int(parts[1]))
    if not paths:
        raise UserError(f"data list {path} is empty")
    return paths, labels


def _read_npy(path: Path) -> tuple[list[str], list[int]]:
    try:
        array = np.load(path, allow_pickle=False)
    except ValueError:
        raise UserError(
            f"{path} is not a plain array of paths (or holds pickled objects, which are never loaded); "
            "save it again as numpy.array(paths, dtype=str)"
        ) from None
    if array.ndim == 1 and array.dtype.kind in "US" and len(array):
        return [_text(p) for p in array], [0] * len(array)
    if array.ndim == 2 and array.shape[1] == 2 and array.dtype.kind in "US" and len(array):
        try:
            return [_text(p) for p in array[:, 0]], [int(label) for label in array[:, 1]]
        except ValueError:
            raise UserError(f"{path}: the second column must hold integer labels") from None
    raise UserError(
        f"{path}: expected an array of N paths, or of N x 2 paths and labels, got {array.shape} {array.dtype}"
    )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def resolve(path: str, folder: str) -> str:
    """A listed path as the file to open: absolute ones as they are, others from the list's folder, else as given."""
    if path.startswith("/"):
        return path
    beside = Path(folder) / path
    return str(beside) if beside.exists() or not Path(path).exists() else path
