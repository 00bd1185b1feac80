"""Log lines, a run's progress, averages, and the folder for it all. Only rich imports slowly: it waits for a bar."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections import deque
from pathlib import Path
from typing import TextIO

from src.utils.csv_log import CSVLogger
from src.utils.errors import UserError

__all__ = [
    "AverageMeter",
    "CSVLogger",
    "Progress",
    "format_seconds",
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


class Progress:
    """How far a run is: one line that moves at a terminal, a log line now and then everywhere else.

    Use as a context manager. Numbers are shown as given: a caller whose losses lie on a GPU passes them only when it
    has read them anyway, and the line keeps the latest.

    Args:
        total: steps of the whole run.
        start: step at which this run begins, above 0 when resumed.
        log_every: steps between two log lines where there is no terminal.
        unit: what `count` counts.
        enabled: False, on every rank but 0, shows nothing.
        stream: where to; default stderr. A terminal or not is decided by it.
    """

    def __init__(
        self,
        total: int,
        start: int = 0,
        log_every: int = 10,
        unit: str = "clips",
        enabled: bool = True,
        stream: TextIO | None = None,
    ) -> None:
        self.total, self.step, self.log_every, self.unit, self.enabled = total, start, log_every, unit, enabled
        self._shown: dict[str, float] = {}
        self._marks: deque[tuple[float, int, int]] = deque(maxlen=50)  # (time, step, units so far): a moving average
        self._count = 0
        self._stream = stream or sys.stderr
        self._live: _LiveLine | None = None

    def __enter__(self) -> Progress:
        self._marks.append((time.monotonic(), self.step, 0))
        if self.enabled and self._stream.isatty():
            self._live = _LiveLine(self._stream)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.close()

    def advance(self, count: int, **values: float) -> None:
        """One step is done.

        Args:
            count: clips (or what `unit` says) of this step, over all processes.
            values: the latest known numbers, as loss=0.41; names not given keep their last value.
        """
        self.step += 1
        self._count += count
        self._shown.update(values)
        self._marks.append((time.monotonic(), self.step, self._count))
        if not self.enabled:
            return
        if self._live:
            self._live.show(self.step, self.total, self.text())
        elif self.step % self.log_every == 0 or self.step == self.total:
            get_logger(__name__).info(f"step {self.step}/{self.total}  {self.text()}")

    @property
    def rate(self) -> float:
        """Clips (or what `unit` says) per second over the last steps; 0 before the first."""
        (then, _, before), (now, _, count) = self._marks[0], self._marks[-1]
        return (count - before) / (now - then) if now > then else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Time to the end at the pace of the last steps; None before the first."""
        (then, before, _), (now, step, _) = self._marks[0], self._marks[-1]
        return (self.total - self.step) * (now - then) / (step - before) if step > before else None

    def text(self) -> str:
        """`loss 0.4123  35.1 clips/s  12:03 left`."""
        values = [f"{name} {value:.4g}" for name, value in self._shown.items()]
        left = self.seconds_left
        time_left = [f"{format_seconds(left)} left"] if left is not None else []
        return "  ".join([*values, f"{self.rate:.1f} {self.unit}/s", *time_left])


def format_seconds(seconds: float) -> str:
    """`0:07`, `12:03`, `3:25:00` or `2d 03:25`."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24}d {hours % 24:02d}:{m:02d}"
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


class _LiveLine:
    """A line with a bar at the bottom of a terminal; log lines and prints go above it."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(file=stream, force_terminal=True)
        self._live = Live(console=self._console, refresh_per_second=4, transient=False)
        self._live.start()

    def show(self, step: int, total: int, text: str) -> None:
        """Draw again; the bar takes what the text leaves of the terminal's width."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        count = f"{step}/{total}"
        width = self._console.width - len(count) - len(text) - 4
        line = Table.grid(padding=(0, 1))
        bar = [ProgressBar(total=max(total, 1), completed=step, width=min(width, 40))] if width >= 4 else []
        for _ in range(len(bar) + 2):
            line.add_column(no_wrap=True, overflow="ellipsis")
        line.add_row(*bar, count, text)
        self._live.update(line)

    def close(self) -> None:
        self._live.stop()
