"""Log lines, the csv of a run, averages, and the folder they go to. Only standard modules: this imports in no time."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from src.utils.errors import UserError, one_line

_FORMAT = "[%(levelname)-7s][%(asctime)s] %(message)s"


class _StderrHandler(logging.StreamHandler):
    """Writes to whatever sys.stderr is at that moment, so that a progress bar can keep lines above itself."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr


def get_logger(name: str = "", level: int = logging.INFO) -> logging.Logger:
    """A logger whose lines go to stderr; the handler is set up once, on the root, unless the root has one already."""
    root = logging.getLogger()
    if not root.handlers:
        handler = _StderrHandler()
        handler.setFormatter(logging.Formatter(_FORMAT, datefmt="%Y-%m-%d %H:%M:%S"))
        root.addHandler(handler)
    logger = logging.getLogger(name)
    logger.setLevel(level)
    return logger


def quiet_other_ranks(rank: int) -> None:
    """Let every rank but 0 log warnings and errors only, with its rank in front."""
    if rank == 0:
        return
    get_logger()
    for handler in logging.getLogger().handlers:
        handler.setLevel(logging.WARNING)
        handler.setFormatter(logging.Formatter(f"[rank {rank}]{_FORMAT}", datefmt="%Y-%m-%d %H:%M:%S"))


def prepare_folder(folder: str | Path, key: str = "logging.folder") -> Path:
    """Make a folder for output and prove that it can be written to, before hours of work depend on it.

    Raises:
        UserError: it cannot be made or written to; names `key`, the config key it came from.
    """
    folder = Path(folder)
    probe = folder / f".write-test-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise UserError(f"{key}: cannot write to {folder}: {error.strerror}; choose another with {key}=...") from None
    return folder


class CSVLogger:
    """A csv in V-JEPA's format: a header of names, then one row per call, each column with its own %-format.

    Args:
        path: the file.
        columns: (format, name) pairs, as in `("%d", "epoch"), ("%.5f", "loss")`.
        resume_at: None starts a new file; one that exists is kept beside it under a numbered name. Otherwise the
            leading columns, as in `(epoch, itr)`, of the first row still to come: rows from there on are dropped, as
            the steps behind them are about to be taken again, and so is a last line that a crash left unfinished.

    Raises:
        UserError: the file cannot be written, or has other columns than these.
    """

    def __init__(self, path: str | Path, *columns: tuple[str, str], resume_at: Sequence[int] | None = None) -> None:
        self.path = Path(path)
        self.formats = [fmt for fmt, _ in columns]
        self.names = [name for _, name in columns]
        try:
            rows = self._keep(resume_at) if self.path.exists() else []
            temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
            temporary.write_text("\n".join([",".join(self.names), *rows]) + "\n")
            temporary.replace(self.path)
            self._file = self.path.open("a")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror}") from None

    def _keep(self, resume_at: Sequence[int] | None) -> list[str]:
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
        if lines[0].split(",") != self.names:
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
        self._file.close()


class AverageMeter:
    """Running value, mean, minimum and maximum of a number."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.val = 0.0
        self.sum = 0.0
        self.count = 0
        self.max = -math.inf
        self.min = math.inf

    @property
    def avg(self) -> float:
        """Mean of all values so far, 0 before the first."""
        return self.sum / self.count if self.count else 0.0

    def update(self, val: float, n: int = 1) -> None:
        """Count `val` n times."""
        self.val = val
        self.sum += val * n
        self.count += n
        self.max = max(self.max, val)
        self.min = min(self.min, val)
