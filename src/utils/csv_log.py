"""The csv of a run. It survives a crash: rows are whole, in order, and none is there twice."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from src.utils.errors import UserError, one_line


def write_csv(path: str | Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a whole table at once: whoever reads it meanwhile, or after a crash, finds the old one or the new one.

    Raises:
        UserError: the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            csv.writer(file, lineterminator="\n").writerows([columns, *rows])
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


class CSVLogger:
    """A csv in V-JEPA's format: a header of names, then one row per call, each column with its own %-format.

    Args:
        path: the file.
        columns: (format, name) pairs, as in `("%d", "epoch"), ("%.5f", "loss")`.
        resume_at: None starts a new file; one that exists is kept beside it under a numbered name. Otherwise the
            leading columns, as in `(epoch, itr)`, of the first row still to come: rows from there on are dropped, as
            the steps behind them are about to be taken again, and so is a last line that a crash left unfinished.
        renamed: names of columns in files of earlier versions -> their names now.

    Raises:
        UserError: the file cannot be written, or has other columns than these.
    """

    def __init__(
        self,
        path: str | Path,
        *columns: tuple[str, str],
        resume_at: Sequence[int] | None = None,
        renamed: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.path = Path(path)
        self.formats = [fmt for fmt, _ in columns]
        self.names = [name for _, name in columns]
        try:
            rows = self._keep(resume_at, renamed) if self.path.exists() else []
            temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
            temporary.write_text("\n".join([",".join(self.names), *rows]) + "\n")
            temporary.replace(self.path)
            self._file = self.path.open("a")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror}") from None

    def _keep(self, resume_at: Sequence[int] | None, renamed: Mapping[str, str]) -> list[str]:
        """The rows of the existing file that stay."""
        if resume_at is None:
            number = 1
            while (backup := self.path.with_name(f"{self.path.stem}.{number}{self.path.suffix}")).exists():
                number += 1
            self.path.rename(backup)
            return []
        text = self.path.read_text()
        lines = text.split("\n")[:-1]  # what follows the last newline is empty, or a line that was cut short
        if not lines:
            return []
        if [renamed.get(name, name) for name in lines[0].split(",")] != self.names:
            raise UserError(
                f"{self.path}: its columns ({lines[0]}) are not this run's ({','.join(self.names)}); "
                "resume with the config that wrote it, or choose another logging.folder"
            )
        kept = []
        for number, line in enumerate(lines[1:], start=2):
            fields = line.split(",")
            try:
                position = tuple(int(field) for field in fields[: len(resume_at)])
            except ValueError:
                raise UserError(f"{self.path}: line {number} is not a row of this log: {one_line(line)[:60]}") from None
            if len(fields) == len(self.names) and position < tuple(resume_at):
                kept.append(line)
        return kept

    def log(self, *values: float) -> None:
        """Append one row and hand it to the operating system.

        Raises:
            UserError: the disk is full or gone.
        """
        row = ",".join(fmt % value for fmt, value in zip(self.formats, values, strict=True))
        try:
            self._file.write(row + "\n")
            self._file.flush()
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror}") from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()
