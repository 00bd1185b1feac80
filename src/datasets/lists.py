"""Lists of samples on disk: `path label` text files and V-JEPA's .npy arrays of paths."""

from __future__ import annotations

import codecs
import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from src.datasets.list_lines import (
    NO_LABEL,
    LineError,
    read_column_line,
    read_header,
    read_label,
    read_line,
    split_lines,
)
from src.utils.errors import UserError

logger = logging.getLogger(__name__)


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


def list_folders(path: str | Path) -> tuple[str, ...]:
    """Where relative paths in a list may start: the folder it is named in, that of its real file, the working one."""
    named = Path(path).absolute().parent
    return tuple(dict.fromkeys((str(named), str(Path(path).resolve().parent), "")))


def resolve(path: str, folders: Sequence[str]) -> str:
    """A listed path as the file to open: an absolute one as it is, else in the first of `folders` that has it.

    Where none has it, it is named in the first one. `~` is the home folder.
    """
    if path.startswith("~"):
        path = os.path.expanduser(path)  # noqa: PTH111 (a file may well be called ~x, and pathlib raises for it)
    if path.startswith("/"):
        return path
    beside = [os.path.join(folder, path) for folder in folders]  # noqa: PTH118 (keeps `./x` and is called per clip)
    return next(filter(os.path.exists, beside), beside[0])


def read_list(path: str | Path, labelled: bool = True) -> tuple[list[str], list[int]]:
    """Paths and labels of one list, in the forms of src/datasets/list_lines.py; relative paths as `resolve` has them.

    Args:
        labelled: every path needs an integer label; False: NO_LABEL stands for words and for none.

    Raises:
        UserError: names the file, and the line where one cannot be read.
    """
    path = Path(path)
    try:
        paths, labels = _read_npy(path) if path.suffix == ".npy" else _read_text(path, labelled)
    except FileNotFoundError:
        raise UserError(f"data list {path} does not exist; set data.datasets to lists of `path label` lines") from None
    except OSError as error:
        raise UserError(f"data list {path} cannot be read: {error.strerror or error}") from None
    if not paths:
        raise UserError(f"data list {path} is empty")
    missing = labels.count(None)
    if missing and labelled:
        raise UserError(
            f"{path}: {missing} of {len(paths)} paths have no integer labels: save an array of N x 2 paths and labels"
        )
    if missing:
        logger.info("%s: %d of %d paths have no integer label; pretraining needs none", path, missing, len(paths))
    return paths, [NO_LABEL if label is None else label for label in labels]


def _read_text(path: Path, labelled: bool) -> tuple[list[str], list[int | None]]:
    folders = list_folders(path)

    def exists(name: str) -> bool:
        return name != "" and os.path.exists(resolve(name, folders))  # noqa: PTH110 (False, not an error, for a name too long)

    paths: list[str] = []
    labels: list[int | None] = []
    columns: tuple[str, list[str]] | None = None
    form = "`path label` with an integer label" if labelled else "a path, or `path label`"
    for place, (number, line) in enumerate(split_lines(_text_of(path))):
        try:
            header = read_header(line) if place == 0 else None
            if header and not exists(re.split(r"[ \t,;]", line)[0]):
                columns = None if header in ((" ", ["path", "label"]), (" ", ["path"])) else header
                continue
            one, label = read_column_line(line, *columns) if columns else read_line(line, exists)
            if label is None and labelled:
                raise LineError("no integer label")
        except LineError as error:
            hint = " (a header names its columns path and label)" if place == 0 and not re.search(r"\d", line) else ""
            raise UserError(f"{path}, line {number}: expected {form}, got {line[:120]!r}: {error}{hint}") from None
        paths.append(one)
        labels.append(label)
    return paths, labels


def _text_of(path: Path) -> str:
    """A list's text. What is not UTF-8 in it comes back when the path is used, as in all names that Python is given."""
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"data list {path} is UTF-16, not UTF-8 text: save it as UTF-8")
    if b"\0" in data:
        line = data[: data.index(b"\0")].count(b"\n") + 1
        raise UserError(f"data list {path}, line {line}: holds a zero byte, so this is not UTF-8 text")
    return data.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")


def _read_npy(path: Path) -> tuple[list[str], list[int | None]]:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError):
        raise UserError(
            f"{path} is not a plain array of paths (or holds pickled objects, which are never loaded); "
            "save it again as numpy.array(paths, dtype=str)"
        ) from None
    text = isinstance(array, np.ndarray) and array.dtype.kind in "US"
    if text and (broken := next((p for p in map(_text, array.flat) if not _is_name(p)), None)) is not None:
        raise UserError(f"{path}: {broken[:120]!r} is no file name: it holds a zero byte or half a character")
    if text and array.ndim == 1:
        return [_text(p) for p in array], [None] * len(array)
    if text and array.ndim == 2 and array.shape[1] == 2:
        try:
            return [_text(p) for p in array[:, 0]], [read_label([_text(label)]) for label in array[:, 1]]
        except LineError as error:
            raise UserError(f"{path}: the second column must hold integer labels: {error}") from None
    found = f"{array.shape} {array.dtype}" if isinstance(array, np.ndarray) else "an archive of several"
    raise UserError(f"{path}: expected an array of N paths, or of N x 2 paths and labels, got {found}")


def _is_name(text: str) -> bool:
    """Whether a text can be the name of a file."""
    try:
        return b"\0" not in text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)
