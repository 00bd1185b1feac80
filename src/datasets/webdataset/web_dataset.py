"""Videos in webdataset shards on a local disk.

A local tar file is random access once its members are known, so it is read as any other list: same order for any
number of workers, no sample lost or repeated, resumable. Shards behind a URL are streamed instead (web_stream.py).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from src.datasets.clip_reader import ClipReader, Sample
from src.datasets.decoding.decode import DecodeError
from src.datasets.lists import PackedStrings, read_list
from src.datasets.webdataset.shards import Contents, Entry, expand, is_url, scan, shard_of
from src.utils.errors import UserError

logger = logging.getLogger(__name__)


class WebVideoDataset:
    """Clips of the videos in local shards.

    Args:
        shards: files, one list per data set; among them lists (.csv) of `shard::video label` lines, as a probe writes
            for a part of its samples.
        reader: how the clips of a video are read.
        labelled: whether every video needs a label; where not, NO_LABEL stands for none.
        label_key: the field of a video's .json that is its label; None: it is in a .cls file.

    Attributes:
        errors: members that are not samples, as (name, kind, reason).

    Raises:
        UserError: a shard cannot be read, a data set has no sample, or a video no label though it needs one.
    """

    def __init__(
        self,
        shards: Sequence[Sequence[str]],
        reader: ClipReader,
        labelled: bool = True,
        label_key: str | None = None,
    ) -> None:
        files = _Files(label_key)
        self.sizes: list[int] = []
        numbers: dict[str, int] = {}
        names: list[str] = []
        rows: list[tuple[int, int, int, int]] = []
        for group in shards:
            before = len(rows)
            for shard, entries in files.read(group):
                number = numbers.setdefault(shard, len(numbers))
                names.extend(entry.name for entry in entries)
                rows.extend((number, entry.offset, entry.size, entry.label) for entry in entries)
            if len(rows) == before:
                raise UserError(f"no video in {', '.join(group[:3])}{files.why_none()}")
            self.sizes.append(len(rows) - before)
        self.errors = files.errors()
        files.say_strangers()
        if labelled:
            files.check_labels()
        self._shards, self._names = list(numbers), PackedStrings(names)
        self._rows = np.array(rows, dtype=np.int64)  # shard, offset, size, label
        self.labels = self._rows[:, 3]
        self._reader = reader

    def __len__(self) -> int:
        return len(self._rows)

    def path(self, index: int) -> str:
        """Shard and video of a sample."""
        return f"{self._shards[int(self._rows[index, 0])]}::{self._names[index]}"

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


def shard_samples(
    pattern: str, key: str, labelled: bool = True, label_key: str | None = None
) -> tuple[list[str], list[int]]:
    """Names (`shard::video`) and labels of the videos in the local shards of a pattern, which the config has at `key`.

    Raises UserError as WebVideoDataset does, and where the shards are behind URLs.
    """
    (names,) = expand([pattern], allow_pipe=True, key=key)
    if urls := [name for name in names if is_url(name)]:
        raise UserError(f"{key}: {urls[0]} would be streamed, in an order of its own: an evaluation needs files here")
    files = _Files(label_key)
    found = [(f"{shard}::{entry.name}", entry.label) for shard, entries in files.read(names) for entry in entries]
    if not found:
        raise UserError(f"{key}: no video in {pattern}{files.why_none()}")
    if labelled:
        files.check_labels()
    return [name for name, _ in found], [label for _, label in found]


class _Files:
    """Shards, each scanned once, and what was found in them so far."""

    def __init__(self, label_key: str | None) -> None:
        self._label_key = label_key
        self._contents: dict[str, Contents] = {}
        self._videos, self._unlabelled = 0, 0
        self._first = ""

    def read(self, group: Sequence[str]) -> Iterator[tuple[str, list[Entry]]]:
        """Shards with those of their videos that are wanted."""
        for name in group:
            for shard, entries in self._of_list(name) if name.endswith(".csv") else [(name, self._scan(name).entries)]:
                self._videos += len(entries)
                bad = [entry for entry in entries if entry.unlabelled]
                self._unlabelled += len(bad)
                if bad and not self._first:
                    self._first = f"{shard}::{bad[0].name}: {bad[0].unlabelled}"
                yield shard, entries

    def errors(self) -> list[tuple[str, str, str]]:
        """What is wrong with the shards, as (name, kind, reason)."""
        return [error for contents in self._contents.values() for error in contents.errors]

    def why_none(self) -> str:
        """What to add to the news that there is no video."""
        errors = self.errors()
        return f" ({errors[0][0]}: {errors[0][2]})" if errors else ""

    def check_labels(self) -> None:
        """Raise UserError unless every video has a label."""
        if self._unlabelled:
            raise UserError(
                f"{self._unlabelled} of {self._videos} videos have no label: it is a number in a .cls file, or in "
                f"a .json file under data.label_key; the first: {self._first}"
            )

    def say_strangers(self) -> None:
        """One line in the log, if there are files that belong to no sample."""
        names = [f"{shard}::{name}" for shard, contents in self._contents.items() for name in contents.strangers]
        if names:
            logger.info("shards: passed over %d files that belong to no sample, as %s", len(names), names[0])

    def _scan(self, shard: str) -> Contents:
        if shard not in self._contents:
            self._contents[shard] = scan(shard, self._label_key)
        return self._contents[shard]

    def _of_list(self, path: str) -> Iterator[tuple[str, list[Entry]]]:
        found: dict[str, dict[str, Entry]] = {}
        for name, label in zip(*read_list(path)):
            shard, video = shard_of(name)
            if video and shard not in found:
                found[shard] = {entry.name: entry for entry in self._scan(shard).entries}
            entry = found.get(shard, {}).get(video)
            if entry is None:
                raise UserError(f"{path}: there is no video {name}")
            yield shard, [replace(entry, label=label, unlabelled="")]
