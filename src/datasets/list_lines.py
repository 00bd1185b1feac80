"""One line of a list: where its path ends, and which number is the label.

The form is `path label`. Lists made for other programs are read where they can mean one thing only:

    "a path" label        quotes as pandas and V-JEPA read them: a quote in it is doubled
    path,label            also `, `, `;` and tabs
    path frames label     VideoMAE's; the number of frames is the video's to say
    path text             a label in words, for pretraining, which needs none
    path                  no label, for pretraining

A path may hold blanks, commas and every character but a line's end (in quotes, that too). What it ends with decides
where it ends: `a b.mp4 120 3` has a known suffix before two numbers. A file is looked for only where that says nothing.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator

from src.datasets.decoding.suffixes import IMAGE_SUFFIXES, VIDEO_SUFFIXES

NO_LABEL = -1
_BLANKS = " \t\r"
_SUFFIXES = frozenset({*VIDEO_SUFFIXES, *IMAGE_SUFFIXES})
_SUFFIX = "|".join(re.escape(s) for s in sorted(_SUFFIXES, key=len, reverse=True))
_UP_TO_SUFFIX = re.compile(rf"(.*\.(?:{_SUFFIX}))(?=[ \t,;])", re.IGNORECASE | re.DOTALL)
_QUOTED = re.compile(r'"((?:[^"]|"")*)"(?=[ \t,;]|$)')
_LAST_FIELD = re.compile(r"[ \t]*[ \t,;][ \t]*(?=[^ \t,;]*$)")
_SEVERAL_LABELS = re.compile(r"[ \t]+[+-]?\d+(?:,[+-]?\d+)+")
_INTEGER = re.compile(r"[+-]?[0-9]+")
_NUMBER_LIKE = re.compile(r"[+-]*\.?\d[\d.,_eE+-]*|[+-]+|nan", re.IGNORECASE)
_PATH_NAMES = {"path", "paths", "file", "files", "filename", "file_name", "filepath", "file_path", "video", "videos"}
_PATH_NAMES |= {"video_path", "video_name", "videopath", "image", "images", "image_path", "img", "img_path", "clip"}
_LABEL_NAMES = {"label", "labels", "class", "class_id", "label_id", "target", "targets", "category", "cls", "class_idx"}

Line = tuple[str, int | None]  # path, label


class LineError(ValueError):
    """A line that cannot be read, or could mean two things."""


def read_line(line: str, exists: Callable[[str], bool]) -> Line:
    """Path and label of a line; None where it has no number for one. `exists` tells whether a path names a file.

    Raises LineError, which says what the line looks like.
    """
    text = line.strip(_BLANKS)
    path, label = _read_quoted(text) if text.startswith('"') else _read_plain(text, exists)
    if not path:
        raise LineError("no path")
    return path, label


def _read_quoted(text: str) -> Line:
    quoted = _QUOTED.match(text)
    rest = text[quoted.end() :] if quoted else ""
    if quoted is None or "\n" in rest:
        raise LineError("a quote that is not closed, or not before a blank or comma")
    return quoted[1].replace('""', '"'), read_label(_fields(rest))


def _read_plain(text: str, exists: Callable[[str], bool]) -> Line:
    end = _LAST_FIELD.search(text)
    if end is None or _has_suffix(text):
        return text, None
    head, last = text[: end.start()], _unquoted(text[end.end() :])
    if _INTEGER.fullmatch(last):
        if _has_suffix(head):
            return head, _number(last)
        if before := _UP_TO_SUFFIX.match(head):
            if _SEVERAL_LABELS.fullmatch(text[before.end() :]):
                raise LineError("several labels: a video has one")
            between = _fields(head[before.end() :])
            if all(map(_INTEGER.fullmatch, between)) or not exists(head):
                return before[1], read_label([*between, last])
        if not exists(head):
            if exists(text):
                return text, None
            head = _without_frames(head, exists)
        return head, _number(last)
    if before := _UP_TO_SUFFIX.match(text):
        return before[1], read_label(_fields(text[before.end() :]))
    if exists(text):
        return text, None
    _check_number(last)
    if exists(head):
        return head, None
    raise LineError("where its path ends cannot be told, as no such file is there: put the path in quotes")


def _has_suffix(path: str) -> bool:
    return path.rpartition(".")[2].lower() in _SUFFIXES


def _without_frames(head: str, exists: Callable[[str], bool]) -> str:
    """A path without a known suffix, less the number of frames behind it, if that leaves one that exists."""
    end = _LAST_FIELD.search(head)
    if end and _INTEGER.fullmatch(head[end.end() :]) and exists(head[: end.start()]):
        return head[: end.start()]
    return head


def read_label(fields: list[str]) -> int | None:
    """The label among what stands behind a path; None for words and for nothing."""
    numbers = [field for field in fields if _INTEGER.fullmatch(field)]
    if fields and len(numbers) == len(fields) <= 2:
        return _number(fields[-1])
    if len(numbers) > 2:
        raise LineError(f"{len(numbers)} numbers behind the path: a list of parts of videos is not read")
    if numbers and _INTEGER.fullmatch(fields[-1]):
        raise LineError("words and a number behind the path, which could be part of it: put the path in quotes")
    if len(fields) == 1:
        _check_number(fields[0])
    return None


def _fields(text: str) -> list[str]:
    return [_unquoted(field) for field in re.split(r"[ \t,;]+", text.strip(_BLANKS + ",;")) if field]


def _unquoted(field: str) -> str:
    return field[1:-1] if len(field) > 1 and field[0] == field[-1] == '"' else field


def _check_number(field: str) -> None:
    if _NUMBER_LIKE.fullmatch(field):
        raise LineError(f"its label {field[:40]!r} is not a whole number")


def _number(field: str) -> int:
    digits = field.lstrip("+-").lstrip("0")  # int() itself refuses very many of them
    if len(digits) > 19 or not -(2**63) <= (number := int(digits or "0") * (-1 if field[0] == "-" else 1)) < 2**63:
        raise LineError(f"its label {field[:40]!r} does not fit into 64 bits")
    return number


def read_header(line: str) -> tuple[str, list[str]] | None:
    """Separator and names, in lower case, of a line that names the columns path and label; else None."""
    separator = next((s for s in ",;\t" if s in line), " ")
    names = [name.strip(_BLANKS).lower() for name in _columns(line, separator)]
    paths, labels = (sum(name in known for name in names) for known in (_PATH_NAMES, _LABEL_NAMES))
    if paths == 1 and labels > 1:
        several = ", ".join(name for name in names if name in _LABEL_NAMES)
        raise LineError(f"its header has {labels} columns of labels ({several}), of which one must stay")
    return (separator, names) if paths == 1 and labels <= 1 and paths + labels == min(len(names), 2) else None


def read_column_line(line: str, separator: str, names: list[str]) -> Line:
    """Path and label of a line below a header of columns. Raises LineError."""
    fields = [field.strip(_BLANKS) for field in _columns(line, separator)]
    if len(fields) != len(names):
        raise LineError(f"{len(fields)} columns under a header of {len(names)}")
    label = next((field for name, field in zip(names, fields) if name in _LABEL_NAMES), "")
    path = next(field for name, field in zip(names, fields) if name in _PATH_NAMES)
    if not path:
        raise LineError("no path")
    return path, read_label([label] if label else [])


def _columns(line: str, separator: str) -> list[str]:
    try:
        return next(csv.reader([line.strip("\r")], delimiter=separator, skipinitialspace=True), [])
    except csv.Error:
        raise LineError("a line end within the line, or a quote that is not closed") from None


def split_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers. Lines end with \\n, \\r\\n or, in a file without \\n, with \\r; a
    path in quotes may hold ends of lines.
    """
    lines = text.split("\n" if "\n" in text else "\r")
    number = 0
    while number < len(lines):
        first, part = number, [lines[number]]
        if part[0].lstrip(_BLANKS).startswith('"'):
            quotes = part[0].count('"')
            while quotes % 2 and number + 1 < len(lines):
                number += 1
                part.append(lines[number])
                quotes += lines[number].count('"')
        number += 1
        line = "\n".join(part)
        if line.strip(_BLANKS):
            yield first + 1, line


def format_line(path: str, label: int) -> str:
    """A line that `read_line`, pandas and V-JEPA read back as this path and label."""
    plain = _has_suffix(path) and not re.search(r'[\s",;\ufeff]', path)
    return f"{path} {label}\n" if plain else '"' + path.replace('"', '""') + f'" {label}\n'
