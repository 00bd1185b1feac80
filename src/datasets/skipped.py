"""Counting, reporting and bounding the videos that cannot be used."""

from __future__ import annotations

import csv
import io
import logging
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from src.datasets.batch import Batch
from src.utils.errors import UserError

logger = logging.getLogger(__name__)

# The first few videos of a run do not end it.
_MIN_ATTEMPTS = 20
# Of each kind of fault, this many are logged in full; the file has them all.
_LOGGED_PER_KIND = 3


class SkipReport:
    """What was skipped so far, in memory, in the log and in `<folder>/skipped.csv` (path, kind, reason)."""

    def __init__(self, max_fraction: float, folder: str | Path | None = None) -> None:
        self._max_fraction = max_fraction
        self._file = Path(folder) / "skipped.csv" if folder is not None else None
        self._seen = self._written_before()
        self.kinds: Counter[str] = Counter()
        self.attempts, self.failed = 0, 0
        self._last = ("", "")

    def _written_before(self) -> set[str]:
        """Paths in the file of the run that this one resumes."""
        if self._file is None or not self._file.is_file():
            return set()
        with self._file.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            return {row[0] for row in csv.reader(file) if row}

    def add(self, batch: Batch) -> None:
        """Take note of a batch. Raises UserError when too large a share of all attempts has failed."""
        self.attempts += batch.attempts
        self.failed += len(batch.skipped)
        self.note(batch.skipped)
        if batch.skipped and self.attempts >= _MIN_ATTEMPTS and self.failed > self._max_fraction * self.attempts:
            path, reason = self._last
            raise UserError(
                f"{self.failed} of {self.attempts} videos could not be used ({self.summary()}), more than "
                f"data.max_skip_fraction ({self._max_fraction:g}) allows; the last: {path}: {reason}"
            )

    def note(self, skipped: Iterable[tuple[str, str, str]]) -> None:
        """Count and write down errors (path, kind, reason), each path once, whatever their share."""
        for path, kind, reason in skipped:
            self.kinds[kind] += 1
            self._last = (path, reason)
            if path in self._seen:
                continue
            self._seen.add(path)
            if self.kinds[kind] <= _LOGGED_PER_KIND:
                logger.warning("skipped %s: %s: %s", path, kind, reason)
            self._write(path, kind, reason)

    def summary(self) -> str:
        """Counts by kind, most frequent first."""
        return ", ".join(f"{n} {kind}" for kind, n in self.kinds.most_common()) or "none"

    def none_usable(self) -> UserError:
        """What to raise where not one sample was left."""
        path, reason = self._last
        return UserError(
            f"none of the last videos could be used, {self.failed} of {self.attempts} so far ({self.summary()}); "
            f"the last: {path}: {reason}"
        )

    def log_summary(self) -> None:
        """One line, if anything was skipped."""
        if self.kinds:
            where = f"; see {self._file}" if self._file else ""
            logger.warning("skipped %d of %d videos: %s%s", self.failed, self.attempts, self.summary(), where)

    def _write(self, path: str, kind: str, reason: str) -> None:
        if self._file is None:
            return
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow((path, kind, reason))
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            # One write per line: several ranks append to the same file.
            handle = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(handle, line.getvalue().encode("utf-8", "surrogateescape"))
            finally:
                os.close(handle)
        except OSError as error:
            raise UserError(f"cannot write {self._file}: {error.strerror or error}") from None
