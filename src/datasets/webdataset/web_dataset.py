"""Videos in webdataset shards on a local disk.

A local tar file is random access once its members are known, so it is read as any other list: same order for any
number of workers, no sample lost or repeated, resumable. Shards behind a URL are streamed instead (web_stream.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from src.datasets.clip_reader import ClipReader, Sample
from src.datasets.decoding.decode import DecodeError
from src.datasets.lists import PackedStrings
from src.datasets.webdataset.shards import scan
from src.utils.errors import UserError


class WebVideoDataset:
    """Clips of the videos in local shards.

    Args:
        shards: files, one list per data set.
        reader: how the clips of a video are read.

    Attributes:
        errors: members that are not samples, as (name, kind, reason).

    Raises:
        UserError: a shard cannot be read, or a data set has no sample.
    """

    def __init__(
        self,
        shards: Sequence[Sequence[str]],
        reader: ClipReader,
    ) -> None:
        self._shards = [shard for group in shards for shard in group]
        self.errors: list[tuple[str, str, str]] = []
        self.sizes: list[int] = []
        keys: list[str] = []
        rows: list[tuple[int, int, int, int]] = []
        number = 0
        for group in shards:
            before = len(rows)
            for shard in group:
                entries, errors = scan(shard)
                self.errors.extend(errors)
                keys.extend(entry.key for entry in entries)
                rows.extend((number, entry.offset, entry.size, entry.label) for entry in entries)
                number += 1
            if len(rows) == before:
                raise UserError(f"no video with a label in {', '.join(group[:3])}")
            self.sizes.append(len(rows) - before)
        self._keys = PackedStrings(keys)
        self._rows = np.array(rows, dtype=np.int64)  # shard, offset, size, label
        self.labels = self._rows[:, 3]
        self._reader = reader

    def __len__(self) -> int:
        return len(self._rows)

    def path(self, index: int) -> str:
        """Shard and key of a sample."""
        return f"{self._shards[int(self._rows[index, 0])]}::{self._keys[index]}"

    def load(self, index: int, seed: int) -> Sample:
        """One sample; everything random about it comes from `seed`. Raises DecodeError."""
        shard, offset, size, label = (int(v) for v in self._rows[index])
        name = self.path(index)
        self._reader.check_size(name, size)
        try:
            with Path(self._shards[shard]).open("rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise DecodeError(name, "unreadable", error.strerror or str(error)) from None
        return self._reader.read(data, name, label, seed)
