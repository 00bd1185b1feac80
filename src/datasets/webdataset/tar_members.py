"""The files of a tar archive one after another, on a disk or as they come, with everything that is wrong with them."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import IO, Literal

from src.datasets.webdataset.layout import Member, is_stranger, member, tidy
from src.utils.errors import UserError, one_line

_BLOCK = 1 << 16


class _Header(tarfile.TarInfo):
    """Keeps what ended an archive. tarfile itself takes a damaged or cut header for the end, and says nothing."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _Header:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.HeaderError as error:
            vars(tarfile_)["ended_by"] = error
            raise


def open_archive(file: IO[bytes], mode: Literal["r:", "r|*"]) -> tarfile.TarFile:
    """An archive for TarMembers. Raises tarfile.TarError where there is none."""
    return tarfile.open(fileobj=file, mode=mode, tarinfo=_Header)


class TarMembers:
    """Iterates over the files of an archive; folders are left out.

    A file that is a link or breaks off comes with its fault and is not to be read.

    Attributes:
        strangers: names of files that belong to no sample, so far.
        faults: what is wrong with the archive itself, as (kind, reason).
    """

    def __init__(self, archive: tarfile.TarFile, shard: str, size: int | None = None) -> None:
        self._archive, self._shard, self._size = archive, shard, size
        self.strangers: list[str] = []
        self.faults: list[tuple[str, str]] = []

    def __iter__(self) -> Iterator[tuple[tarfile.TarInfo, Member]]:
        """Raises UserError where another archive follows the end of this one."""
        while True:
            try:
                info = self._archive.next()
                self._archive.members = []  # type: ignore[attr-defined]  # or it would keep all it has seen
                if info is None:
                    self._check_end()
                    return
            except tarfile.TarError as error:
                self.faults.append(("truncated", f"the shard breaks off: {one_line(error)}"))
                return
            name = tidy(info.name)
            if info.isdir():
                continue
            if is_stranger(name):
                self.strangers.append(name)
                continue
            found = member(name)
            if not info.isreg():
                found.fault = ("unreadable", "a link or device, not a file: use `tar --dereference --hard-dereference`")
            elif info.sparse is not None:
                found.fault = ("unreadable", "stored with gaps: pack it without `tar --sparse`")
            elif self._size is not None and info.offset_data + info.size > self._size:
                found.fault = ("truncated", "the shard ends inside it")
            yield info, found
            if found.fault is not None and found.fault[0] == "truncated":
                return

    def _check_end(self) -> None:
        """An archive ends with empty blocks; `cat a.tar b.tar` goes on behind them, where no reader looks."""
        ended_by = vars(self._archive).get("ended_by")
        if not isinstance(ended_by, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
            self.faults.append(("truncated", f"the shard has no end, it breaks off: {one_line(ended_by)}"))
            return
        file = self._archive.fileobj
        while file is not None and (block := file.read(_BLOCK)):
            if block.strip(b"\0"):
                raise UserError(
                    f"shard {self._shard} goes on behind its end (joined by cat?): "
                    "join archives with `tar --concatenate`, or keep them apart"
                )
