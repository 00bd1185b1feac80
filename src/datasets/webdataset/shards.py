"""Names of webdataset shards, and what lies where inside local ones."""

from __future__ import annotations

import glob
import io
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from src.datasets.webdataset.layout import (
    Member,
    check_names,
    find_label,
    is_document,
    join,
    member,
    without_video,
)
from src.datasets.webdataset.tar_members import TarMembers, open_archive
from src.utils.errors import UserError

_URL = re.compile(r"^[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_LARGEST_LABEL = 1 << 20


@dataclass(frozen=True)
class Entry:
    """One video inside a local shard: its bytes are [offset, offset + size) of the file.

    `unlabelled` says why label is NO_LABEL.
    """

    name: str
    offset: int
    size: int
    label: int
    unlabelled: str = ""

    @property
    def key(self) -> str:
        """The name without its suffix."""
        return member(self.name).stem


@dataclass
class Contents:
    """What a local shard holds: videos, what is wrong with the rest as (name, kind, reason), and strangers' names."""

    entries: list[Entry] = field(default_factory=list)
    errors: list[tuple[str, str, str]] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)


def expand(patterns: Sequence[str | Path], allow_pipe: bool, key: str = "data.datasets") -> list[list[str]]:
    """Shards of each pattern: `{000..099}` ranges, `*` wildcards in local names, URLs. A file of that very name counts.

    Raises:
        UserError: a `pipe:` command without allow_pipe, or a local pattern without files; names `key`.
    """
    import braceexpand

    found = []
    for pattern in map(str, patterns):
        names: list[str] = []
        try:
            spelled = [pattern] if Path(pattern).exists() else list(braceexpand.braceexpand(pattern))
        except ValueError:
            raise UserError(f"{key}: {pattern} has a brace without its other half") from None
        for name in spelled:
            if urlsplit(name).scheme == "pipe" and not allow_pipe:
                raise UserError(f"{name!r} would run a shell command; set data.allow_pipe: true if that is meant")
            if is_url(name):
                names.append(name)
            elif matches := _matches(name):
                names.extend(matches)
            else:
                raise UserError(f"shard {name} does not exist ({key}: {pattern})")
        found.append(names)
    return found


def _matches(name: str) -> list[str]:
    """Files of a name with wildcards; a part of it that exists as it stands is meant as it stands."""
    places = [Path(name[:1]) if name.startswith("/") else Path()]
    for part in Path(name).relative_to(places[0]).parts:
        places = [
            place / found
            for place in places
            for found in ([part] if (place / part).exists() else sorted(glob.glob(part, root_dir=place)))  # noqa: PTH207
        ]
    return [str(place) for place in dict.fromkeys(places)]


def is_url(name: str) -> bool:
    """Whether a shard has to be streamed: http:, s3:, pipe: and the like."""
    return bool(_URL.match(name)) and not Path(name).exists()


def shard_of(name: str) -> tuple[str, str]:
    """Shard and member in `shard::member`, as samples are called; a name that holds no shard comes back with ''."""
    at = name.find("::")
    while at >= 0:
        if Path(name[:at]).is_file():
            return name[:at], name[at + 2 :]
        at = name.find("::", at + 1)
    return name, ""


def scan(path: str, label_key: str | None = None) -> Contents:
    """Every video in a local shard. Labels are in .cls files, or under `label_key` in .json ones.

    Raises UserError where the shard cannot be read at all, or holds two files of one name.
    """
    try:
        with Path(path).open("rb") as file:
            return _scan(file, path, label_key)
    except IsADirectoryError:
        raise UserError(f"shard {path} is a folder: name the shards in it, as {path}/*.tar") from None
    except OSError as error:
        raise UserError(f"shard {path} cannot be read: {error.strerror or error}") from None


def _scan(file: io.BufferedReader, path: str, label_key: str | None) -> Contents:
    size = Path(path).stat().st_size
    found: list[Member] = []
    try:
        with open_archive(file, "r:") as archive:
            members = TarMembers(archive, path, size)
            for info, one in members:
                one.body = (info.offset_data, info.size)
                found.append(one)
    except tarfile.TarError as error:
        file.seek(0)
        start = file.read(8)
        for magic, name in _COMPRESSED.items():
            if start.startswith(magic):
                raise UserError(
                    f"shard {path} is compressed ({name}), which leaves no way to one video in it: unpack it to .tar "
                    "(videos hardly shrink), or stream it: 'pipe:cat FILE' with data.allow_pipe: true"
                ) from None
        raise UserError(f"shard {path} is not a tar file: {error}") from None
    check_names(found, path)
    contents = Contents([], [(path, *fault) for fault in members.faults], members.strangers)
    suffix = "cls" if label_key is None else "json"

    def read(label: Member) -> bytes:
        file.seek(label.body[0])
        return file.read(min(label.body[1], _LARGEST_LABEL))

    pairs, left = join(found, suffix)
    for video, label in pairs:
        if video.fault is not None:
            contents.errors.append((f"{path}::{video.name}", *video.fault))
            continue
        number, why = find_label(label, read, suffix, label_key)
        contents.entries.append(Entry(video.name, video.body[0], video.body[1], number, why))
    for files in left:
        if is_document(files):
            contents.strangers.extend(m.name for m in files)
        else:
            contents.errors.append((f"{path}::{files[0].stem}", *without_video(files)))
    if not found and not contents.errors:
        contents.errors.append((path, "empty", "no samples"))
    return contents
