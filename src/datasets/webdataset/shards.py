"""Names of webdataset shards, and what lies where inside local ones."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from src.utils.errors import UserError

VIDEO_SUFFIXES = ("mp4", "webm", "mkv", "avi", "mov", "mpg", "mpeg", "m4v", "ts")
_URL = re.compile(r"^[a-z][a-z0-9+.-]*:", re.IGNORECASE)


@dataclass(frozen=True)
class Entry:
    """One video inside a local shard: its bytes are [offset, offset + size) of the file."""

    key: str
    offset: int
    size: int
    label: int


def expand(patterns: Sequence[str | Path], allow_pipe: bool) -> list[list[str]]:
    """Shards of each pattern: `{000..099}` ranges, `*` wildcards in local file names, URLs.

    Raises:
        UserError: a `pipe:` command without allow_pipe, or a local pattern without files.
    """
    import braceexpand

    found = []
    for pattern in map(str, patterns):
        names: list[str] = []
        for name in braceexpand.braceexpand(pattern):
            if urlsplit(name).scheme == "pipe" and not allow_pipe:
                raise UserError(f"{name!r} would run a shell command; set data.allow_pipe: true if that is meant")
            if is_url(name):
                names.append(name)
            elif matches := sorted(str(p) for p in Path(name).parent.glob(Path(name).name)):
                names.extend(matches)
            else:
                raise UserError(f"shard {name} does not exist (data.datasets: {pattern})")
        found.append(names)
    return found


def is_url(name: str) -> bool:
    """Whether a shard has to be streamed: http:, s3:, pipe: and the like."""
    return bool(_URL.match(name))


def split_name(name: str) -> tuple[str, str]:
    """Key and suffix of a file in a shard: `a/b.c.mp4` is `a/b` and `c.mp4` (webdataset's rule)."""
    folder, _, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return (f"{folder}/{stem}" if folder else stem), suffix.lower()


def scan(path: str) -> tuple[list[Entry], list[tuple[str, str, str]]]:
    """Videos with labels in a local shard, and what is wrong with the rest as (name, kind, reason).

    Raises UserError where the shard cannot be read at all.
    """
    entries: list[Entry] = []
    errors: list[tuple[str, str, str]] = []
    try:
        with Path(path).open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            size = Path(path).stat().st_size
            group: dict[str, tarfile.TarInfo] = {}
            current = None
            for member in _members(archive, path, errors):
                key, suffix = split_name(member.name)
                if key != current:
                    _close(archive, path, current, group, entries, errors)
                    group, current = {}, key
                if member.offset_data + member.size > size:
                    errors.append((f"{path}::{member.name}", "truncated", "the shard ends inside it"))
                    group = {}
                    break
                group[suffix] = member
            _close(archive, path, current, group, entries, errors)
    except tarfile.TarError as error:
        raise UserError(f"shard {path} is not an uncompressed tar file: {error}") from None
    except OSError as error:
        raise UserError(f"shard {path} cannot be read: {error.strerror or error}") from None
    return entries, errors


def _members(archive: tarfile.TarFile, path: str, errors: list[tuple[str, str, str]]) -> Iterator[tarfile.TarInfo]:
    """Regular files, up to where the archive breaks off."""
    while True:
        try:
            member = archive.next()
        except tarfile.TarError as error:
            errors.append((path, "truncated", f"the shard breaks off: {error}"))
            return
        if member is None:
            return
        if member.isreg():
            yield member


def _close(
    archive: tarfile.TarFile,
    path: str,
    key: str | None,
    group: dict[str, tarfile.TarInfo],
    entries: list[Entry],
    errors: list[tuple[str, str, str]],
) -> None:
    """End of the files that share a key: an entry, or a fault."""
    if key is None or not group:
        return
    name = f"{path}::{key}"
    video = next((group[s] for s in VIDEO_SUFFIXES if s in group), None)
    if video is None:
        errors.append((name, "no_video", f"has {', '.join(sorted(group))} but no video"))
        return
    if "cls" not in group:
        errors.append((name, "no_label", "has no .cls file"))
        return
    label = archive.extractfile(group["cls"])
    text = label.read(32) if label is not None else b""
    if not text.strip().lstrip(b"-").isdigit():
        errors.append((name, "no_label", f"its .cls holds {text[:20]!r}, not a number"))
        return
    entries.append(Entry(key, video.offset_data, video.size, int(text)))
