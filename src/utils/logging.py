"""Log lines, averages, and the folder for it all."""

from __future__ import annotations

import logging
import math
import os
import sys
from pathlib import Path
from typing import TextIO

from src.utils.csv_log import CSVLogger
from src.utils.errors import UserError

__all__ = [
    "AverageMeter",
    "CSVLogger",
    "get_logger",
    "prepare_folder",
    "quiet_other_ranks",
]

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
        logging.getLogger("src").setLevel(level)  # src/ops and src/datasets log by the standard library alone
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
        probe.unlink(missing_ok=True)  # on another node a process of the same number may have been quicker
    except OSError as error:
        raise UserError(f"{key}: cannot write to {folder}: {error.strerror}; choose another with {key}=...") from None
    return folder


class AverageMeter:
    """Running value, mean, minimum and maximum of a number."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all values."""
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
