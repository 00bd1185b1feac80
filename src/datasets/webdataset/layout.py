"""What a sample of a shard is, from the names of its files. Shards on a disk and streams both ask here.

Every video is a sample. Its label is the .cls or .json file of the same name, or of the longest beginning of that name
that ends before a dot: `v_Foo.g01.mp4` has `v_Foo.g01.cls`, and `000.video.mp4` has `000.cls`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from src.datasets.decoding.suffixes import VIDEO_SUFFIXES
from src.datasets.list_lines import NO_LABEL
from src.utils.errors import UserError

# What file systems, archivers and webdataset itself leave between samples.
_STRANGER = re.compile(
    r"(^|/)(__macosx|\.appledouble|@eadir)/|(^|/)(\.[^/]*|thumbs\.db|desktop\.ini|__[^/]*__|(readme|licen[sc]e)(\.(md|txt|rst))?)$",
    re.IGNORECASE,
)
# Files about the whole shard, where no video has their name.
_DOCUMENTS = frozenset({"md", "rst", "html", "pdf", "yaml", "yml", "log", "sh", "py", "idx", "csv", "tsv", "parquet"})
_DOCUMENTS |= {"md5", "sha1", "sha256"}
# Pictures and sound that may lie beside a video of the same name.
_BESIDE = frozenset({"gif", "apng", "ogg"})
_NUMBER = re.compile(r"-?[0-9]{1,18}")


@dataclass
class Member:
    """One file of a shard.

    Attributes:
        name: without `./`.
        stem, suffix: the name up to its last dot, and what follows it, in lower case.
        body: the bytes of the file, or where they lie.
        fault: kind and reason where it cannot be used.
    """

    name: str
    stem: str
    suffix: str
    body: Any = None
    fault: tuple[str, str] | None = None


def tidy(name: str) -> str:
    """A name without `./`, `../` and the like."""
    return "/".join(part for part in name.split("/") if part not in ("", ".", ".."))


def is_stranger(name: str) -> bool:
    """Whether a file belongs to no sample: `._x` and `__MACOSX/` of a Mac, `.DS_Store`, README and the like."""
    return bool(_STRANGER.search(name))


def member(name: str, body: Any = None, fault: tuple[str, str] | None = None) -> Member:
    """A file by its tidy name."""
    folder, slash, base = name.rpartition("/")
    stem, dot, suffix = base.rpartition(".")
    return Member(name, folder + slash + (stem if dot else base), suffix.lower() if dot else "", body, fault)


def run_key(name: str) -> str:
    """What the names of all files of a sample have in common: the name up to its first dot (webdataset's key)."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def join(
    members: Sequence[Member], label_suffix: str = "cls"
) -> tuple[list[tuple[Member, Member | None]], list[list[Member]]]:
    """Videos, each with its label's file, and the files that are left without a video, by stem.

    The files of a sample may lie anywhere among `members`.
    """
    videos = [m for m in members if m.suffix in VIDEO_SUFFIXES]
    plain = {m.stem for m in videos if m.suffix not in _BESIDE}
    videos = [m for m in videos if m.suffix not in _BESIDE or m.stem not in plain]
    stems = {video.stem for video in videos}
    parts = {beginning for stem in stems for beginning in _beginnings(stem)}
    labels = {m.stem: m for m in members if m.suffix == label_suffix}
    longer: dict[str, list[Member]] = {}  # 000.label.cls of 000.mp4
    for stem, label in labels.items():
        for beginning in _beginnings(stem):
            longer.setdefault(beginning, []).append(label)
    pairs: list[tuple[Member, Member | None]] = []
    for video in videos:
        found = next((labels[stem] for stem in _beginnings(video.stem) if stem in labels), None)
        if found is None and len(candidates := longer.get(video.stem, [])) == 1:
            found = candidates[0]
        pairs.append((video, found))
    left: dict[str, list[Member]] = {}
    for m in members:
        if m.stem not in parts and stems.isdisjoint(_beginnings(m.stem)):
            left.setdefault(m.stem, []).append(m)
    return pairs, list(left.values())


def _beginnings(stem: str) -> Iterator[str]:
    """`a/b.c.d`, `a/b.c`, `a/b`."""
    folder, slash, base = stem.rpartition("/")
    while True:
        yield folder + slash + base
        base, dot, _ = base.rpartition(".")
        if not dot or not base:
            return


def check_names(members: Sequence[Member], shard: str) -> None:
    """Raise UserError where a shard holds files of one name, of which only one could count."""
    counts = Counter((m.stem, m.suffix) for m in members)
    twice = [f"{stem}.{suffix}" for (stem, suffix), count in counts.items() if count > 1]
    if twice:
        raise UserError(
            f"shard {shard} holds {len(twice)} file names more than once (the first: {twice[0]}), "
            "and which of their files count is not known: write it anew"
        )


def is_document(files: Sequence[Member]) -> bool:
    """Whether files that share a stem and have no video are no sample that has lost its video."""
    return all(m.suffix in _DOCUMENTS for m in files)


def without_video(files: Sequence[Member]) -> tuple[str, str]:
    """Kind and reason for files that share a stem and have no video."""
    return "no_video", f"has {', '.join(sorted(m.suffix or m.name for m in files))} but no video"


def find_label(label: Member | None, data: Callable[[Member], bytes], suffix: str, key: str | None) -> tuple[int, str]:
    """The label of a video and '', or NO_LABEL and why it has none; `data` reads the label's file."""
    if label is None:
        return NO_LABEL, f"has no .{suffix} file"
    try:
        return read_label(label, data(label), key), ""
    except ValueError as error:
        return NO_LABEL, str(error)


def read_label(label: Member, data: bytes, key: str | None) -> int:
    """The number in a .cls file, or under `key` in a .json file. Raises ValueError that says why there is none."""
    if label.fault is not None:
        raise ValueError(f"its {label.name} is {label.fault[1]}")
    if key is None:
        value: object = data[:40].decode(errors="replace").strip()
    else:
        try:
            fields = json.loads(data)
        except ValueError:
            raise ValueError(f"its {label.name} is not JSON") from None
        if not isinstance(fields, dict) or key not in fields:
            raise ValueError(f"its {label.name} has no field {key!r}")
        value = fields[key]
    if isinstance(value, bool) or not _NUMBER.fullmatch(str(value).strip()):
        raise ValueError(f"its {label.name} has {str(value)[:20]!r}{f' under {key!r}' if key else ''}, not a number")
    return int(str(value))
