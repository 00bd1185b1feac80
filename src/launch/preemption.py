"""Asked to stop: a signal becomes a checkpoint at the next boundary between two steps, and an orderly end.

A loop that can stop runs inside `listening()`. Between two steps the processes tell each other what they `requested()`,
and so all stop at the same one: the main process saves, and all raise `Preempted`, which the launcher turns into an
exit code (src/launch/local.py) or a requeued job (src/launch/job.py). Outside of `listening()` there is nothing to
save, and the signals do what they always do.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]

_received: list[int] = []
_looked_at: list[int] = []  # of these


class Preempted(Exception):
    """The run was asked to stop, has saved, and can be started again from there.

    Attributes:
        signum: the signal.
    """

    def __init__(self, signum: int, saved: str) -> None:
        super().__init__(signum, saved)
        self.signum, self.saved = signum, saved

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.signum).name}: {self.saved}"

    @property
    def exitcode(self) -> int:
        """128 + signal, which shells and schedulers give to any process that a signal ends."""
        return 128 + self.signum


def _note(signum: int, _frame: object) -> None:
    _received.append(signum)


@contextmanager
def listening() -> Iterator[None]:
    """Take note of the signals instead of dying of them. May be nested; does nothing outside of the main thread.

    A first one that comes after the last call of `requested()` is sent on at the end, to the handlers from before.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(SIGNALS[0]) is _note:
        yield
        return
    _forget()
    previous = {number: signal.signal(number, _note) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        late = _received[:1] if not _looked_at else []
        _forget()
    for number in late:
        signal.raise_signal(number)


def _forget() -> None:
    _received.clear()
    _looked_at.clear()


def requested() -> int:
    """The first signal that this process has received inside `listening()`, or 0; see `distributed.all_reduce_max`."""
    _looked_at[:] = _received[:1]
    return _received[0] if _received else 0


def shield_worker() -> None:
    """Let a data worker outlive signals that are sent to all processes of a job: its trainer still needs it to save.

    What its trainer itself sends ends it. Call it in the worker, before it has threads.
    """
    for number in SIGNALS[1:]:
        signal.signal(number, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS: who has sent a signal cannot be told
        return
    trainer = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def watch() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer:
            pass
        os._exit(0)

    threading.Thread(target=watch, name="shield", daemon=True).start()
