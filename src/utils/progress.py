"""How far a run is: one line that moves at a terminal, a log line now and then everywhere else.

Only rich imports slowly: it waits for a terminal.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TextIO, TypeVar

from src.utils.logging import get_logger

LOG_SECONDS = 15.0  # between two log lines, where they are not counted in steps
Item = TypeVar("Item")
_WINDOW = 50  # the last steps, whose pace is shown


class _Mark(NamedTuple):
    """What was done by a time, in seconds of a clock that only goes forward."""

    time: float
    step: int
    units: int
    waited: float


class Progress:
    """A line for the run; use as a context manager.

    Numbers are shown as given: a caller whose losses lie on a GPU passes them only when it has read them anyway, and
    the line keeps the latest.

    Args:
        total: steps of the whole run. May change on the way.
        start: step at which this run begins, above 0 when resumed.
        log_every: steps between two log lines where there is no terminal; None: a line every LOG_SECONDS.
        unit: what `count` counts.
        what: name of the work, in front of log lines and, where there is room, at the end of a terminal's.
        enabled: False, on every rank but 0, shows nothing.
        stream: where to; default stderr. A terminal or not is decided by it.
    """

    def __init__(
        self,
        total: int,
        start: int = 0,
        log_every: int | None = None,
        unit: str = "clips",
        what: str = "",
        enabled: bool = True,
        stream: TextIO | None = None,
    ) -> None:
        self.total, self.step, self.log_every = total, start, log_every
        self.unit, self.what, self.enabled = unit, what, enabled
        self.waited = 0.0  # seconds in `waiting_for`
        self._shown: dict[str, float] = {}
        self._alarms: list[str] = []
        self._marks: deque[_Mark] = deque(maxlen=_WINDOW)
        self._count, self._logged = 0, -math.inf
        self._stream = stream or sys.stderr
        self._live: _LiveLine | None = None

    def __enter__(self) -> Progress:
        self._marks.append(_Mark(time.monotonic(), self.step, 0, 0.0))
        self._logged = self._marks[0].time
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.close()

    def waiting_for(self, items: Iterable[Item]) -> Iterator[Item]:
        """Hand `items` on; the line then shows which share of the time is spent waiting for them, as for data."""
        source = iter(items)
        while True:
            start = time.monotonic()
            try:
                item = next(source)
            except StopIteration:
                return
            self.waited += time.monotonic() - start
            yield item

    def advance(self, count: int = 1, steps: int = 1, alarms: Iterable[str] = (), **values: float) -> None:
        """So many steps are done.

        Args:
            count: clips (or what `unit` says) of these steps, over all processes.
            alarms: what is wrong with the run at present, in a word or two each; shown first while it is.
            values: the latest known numbers, as loss=0.41; names not given keep their last value.
        """
        before, self.step = self.step, self.step + steps
        self._count += count
        self._alarms = list(alarms)
        self._shown.update(values)
        self._marks.append(_Mark(time.monotonic(), self.step, self._count, self.waited))
        if not self.enabled:
            return
        # A terminal that cannot move its cursor gets log lines.
        if self._stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
            self._live = self._live or _LiveLine(self._stream)
            self._live.show(self.step, self.total, [*self.parts(), self.what])
        elif self._due(before):
            self._logged = self._marks[-1].time
            get_logger(__name__).info(f"{self.what or 'step'} {self.step}/{self.total}  {'  '.join(self.parts())}")

    def _due(self, before: int) -> bool:
        """Whether it is time for a log line."""
        if before < self.step == self.total:
            return True
        if self.log_every is None:
            return self._marks[-1].time - self._logged >= LOG_SECONDS
        return self.step // self.log_every > before // self.log_every

    def _lately(self) -> _Mark:
        """What the last steps took."""
        then, now = self._marks[0], self._marks[-1]
        return _Mark(now.time - then.time, now.step - then.step, now.units - then.units, now.waited - then.waited)

    @property
    def rate(self) -> float:
        """Clips (or what `unit` says) per second over the last steps; 0 before the first."""
        lately = self._lately()
        return lately.units / lately.time if lately.time > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Time to the end at the pace of the last steps; None before the first."""
        lately = self._lately()
        return (self.total - self.step) * lately.time / lately.step if lately.step else None

    @property
    def waiting_share(self) -> float | None:
        """Share of the time of the last steps spent in `waiting_for`; None where nothing is waited for."""
        lately = self._lately()
        return lately.waited / lately.time if self.waited and lately.time > 0 else None

    def parts(self) -> list[str]:
        """`loss 0.4123`, `12:03 left`, `35.1 clips/s`, `data 3 %`: what matters most comes first."""
        parts = ["! " + ", ".join(self._alarms)] if self._alarms else []
        parts += [
            f"{name} {value if isinstance(value, int) else f'{value:.4g}'}"
            for name, value in self._shown.items()
            if not math.isnan(value)
        ]
        if self.seconds_left is not None:
            parts.append(f"{format_seconds(self.seconds_left)} left")
        parts.append(f"{self.rate:.1f} {self.unit}/s")
        if self.waiting_share is not None:
            parts.append(f"data {100 * self.waiting_share:.0f} %")
        return parts


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

    def show(self, step: int, total: int, parts: list[str]) -> None:
        """Draw again. Parts that find no room behind those before them are left out; a bar takes what is left."""
        from rich.cells import cell_len
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        count = f"{step}/{total}"
        room = self._console.width - len(count) - 1
        shown: list[str] = []
        for part in parts:
            if part and cell_len("  ".join([*shown, part])) <= room:
                shown.append(part)
        text = Text("  ".join(shown))
        if parts[0].startswith("!"):
            text.stylize("bold red", 0, len(parts[0]))
        width = room - text.cell_len - 1
        line = Table.grid(padding=(0, 1))
        bar = [ProgressBar(total=max(total, 1), completed=step, width=min(width, 40))] if width >= 4 else []
        for _ in range(len(bar) + 2):
            line.add_column(no_wrap=True, overflow="ellipsis")
        line.add_row(*bar, count, text)
        self._live.update(line)

    def close(self) -> None:
        self._live.stop()
