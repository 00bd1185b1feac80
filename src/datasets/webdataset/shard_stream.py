"""The videos of one shard behind a URL, as they come."""

from __future__ import annotations

import lzma
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from src.datasets.decoding.suffixes import VIDEO_SUFFIXES
from src.datasets.system_errors import system_fault
from src.datasets.webdataset.layout import (
    Member,
    check_names,
    find_label,
    is_document,
    join,
    run_key,
    without_video,
)
from src.datasets.webdataset.tar_members import TarMembers, open_archive
from src.utils.errors import UserError, one_line

# Files whose names begin alike wait for one another, up to this many.
_WAITING = 64


@dataclass
class StreamedVideo:
    """The bytes of a video and its label; `name` is what messages call it."""

    url: str
    name: str
    data: bytes
    label: int


class ShardStream:
    """Iterates over the videos of a shard, once.

    The files of a sample have to lie together here: a video whose label comes later has none.

    Attributes:
        errors: what is wrong with the shard, as (name, kind, reason).
        strangers: names of files that belong to no sample.

    Raises:
        UserError: two files of one name, or, where labels are needed, a video without one.
    """

    def __init__(self, url: str, labelled: bool, label_key: str | None) -> None:
        self._url, self._labelled, self._key = url, labelled, label_key
        self._suffix = "cls" if label_key is None else "json"
        self.errors: list[tuple[str, str, str]] = []
        self.strangers: list[str] = []
        self._without: dict[str, str] = {}  # a video without a label, and why

    def __iter__(self) -> Iterator[StreamedVideo]:
        seen: list[Member] = []
        run: list[Member] = []
        try:
            with open_url(self._url) as stream, open_archive(stream, "r|*") as archive:
                members = TarMembers(archive, self._url)
                for info, one in members:
                    self._read(archive, info, one)
                    seen.append(replace(one, body=None))
                    if run and run_key(one.name) != run_key(run[-1].name):
                        yield from self._videos(run)
                        run = []
                    elif len(run) >= _WAITING:
                        yield from self._videos([m for m in run if m.stem != one.stem])
                        run = [m for m in run if m.stem == one.stem]
                    run.append(one)
                    if one.fault is not None and one.fault[0] == "truncated":
                        break
                self.strangers += members.strangers
                self.errors += [(self._url, *fault) for fault in members.faults]
        except UserError:
            raise
        except (OSError, EOFError, ValueError, ImportError, tarfile.TarError, zlib.error, lzma.LZMAError) as error:
            if system_fault(error):
                raise
            self.errors.append((self._url, "unreadable", one_line(error)[:200]))
        yield from self._videos(run)
        self._end(seen)

    def _read(self, archive: tarfile.TarFile, info: tarfile.TarInfo, one: Member) -> None:
        if one.fault is not None or not (one.suffix in VIDEO_SUFFIXES or one.suffix == self._suffix):
            return
        file = archive.extractfile(info)
        try:
            one.body = file.read() if file is not None else b""
        except tarfile.ReadError:
            one.fault = ("truncated", "the shard ends inside it")

    def _videos(self, run: list[Member]) -> Iterator[StreamedVideo]:
        for video, label in join(run, self._suffix)[0]:
            name = f"{self._url}::{video.name}"
            if video.fault is not None:
                self.errors.append((name, *video.fault))
                continue
            number, why = find_label(label, lambda one: one.body, self._suffix, self._key)
            if why:
                self._without[video.name] = why
            if not why or not self._labelled:
                yield StreamedVideo(self._url, name, video.body, number)

    def _end(self, seen: list[Member]) -> None:
        """What can be said of the shard as a whole."""
        check_names(seen, self._url)
        pairs, left = join(seen, self._suffix)
        for files in left:
            if is_document(files):
                self.strangers += [m.name for m in files]
            else:
                self.errors.append((f"{self._url}::{files[0].stem}", *without_video(files)))
        if not seen and not self.errors:
            self.errors.append((self._url, "empty", "no samples"))
        if self._without and self._labelled:
            apart = [
                v.name for v, label in pairs if label is not None and self._without.get(v.name, "").startswith("has")
            ]
            name, why = next(iter(self._without.items()))
            if apart:
                raise UserError(
                    f"shard {self._url}: {len(apart)} of {len(pairs)} videos lie apart from their labels (the first: "
                    f"{apart[0]}), which a stream cannot join: pack them side by side (tar --sort=name), or copy the "
                    "shard to a disk"
                )
            raise UserError(
                f"shard {self._url}: {len(self._without)} of {len(pairs)} videos have no label; "
                f"the first: {name}: {why}"
            )


def open_url(url: str) -> Any:
    """A shard as a stream of bytes. Raises OSError, and ValueError for a kind of URL that nobody reads."""
    from webdataset.gopen import gopen, gopen_schemes

    gopen_schemes.setdefault("s3", _open_s3)
    return gopen(url)


def _open_s3(url: str, mode: str = "rb", bufsize: int = 8192) -> Any:
    """An object as a stream, through the aws command, without a shell in between."""
    from webdataset.gopen import Pipe

    return Pipe(["aws", "s3", "cp", url, "-"], mode=mode, bufsize=bufsize, ignore_status=[141, 23])
