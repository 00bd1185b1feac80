"""submitit's jobs on this machine, a few at a time: started, waited for, and never left behind."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from src.utils.errors import EXIT_USER_ERROR, UserError, report_user_error

_POLL_S = 0.2
_GRACE_S = 30.0  # for a job to save and end when it is asked to


def run_in_turn(starts: Sequence[tuple[str, Callable[[], Any]]], parallel: int) -> int:
    """Run jobs, `parallel` at a time, and wait for all. One that fails does not stop the others.

    Args:
        starts: title of each job, and what submits it and returns submitit's job.

    Returns:
        0, or the exit code of the first that failed, whose reason is then on stderr.
    """
    running: list[tuple[str, Any]] = []
    waiting, code = list(starts), 0
    with _stopping(running):
        while waiting or running:
            while waiting and len(running) < parallel:
                title, start = waiting.pop(0)
                running.append((title, start()))
            time.sleep(_POLL_S)
            for title, job in [pair for pair in running if pair[1].done()]:
                running.remove((title, job))
                failed = _outcome(job, title if len(starts) > 1 else "")
                code = code or failed
    return code


def _outcome(job: Any, title: str) -> int:
    """Show why a job failed, if it did. Returns its exit code."""
    failed = [task for task in (job.task(i) for i in range(job.num_tasks)) if task.exception() is not None]
    if not failed:
        print(f"job {job.job_id}: done", flush=True)
        return 0
    # Of the processes of a job one fails and the others lose their peer: show the one that ended first.
    first = min(failed, key=lambda task: _ended(task.paths.result_pickle))
    found = re.search(r"^src\.utils\.errors\.UserError: (.*)$", str(first.exception()), re.MULTILINE)
    where = f"{title}: " if title else ""
    if found:
        report_user_error(UserError(where + found.group(1)))
        return EXIT_USER_ERROR
    print(f"{where}{first.exception()}", file=sys.stderr, flush=True)
    return 1


def _ended(result: Path) -> float:
    """When a process of a job left its result; one that was killed left none and is a cause, not a consequence."""
    return result.stat().st_mtime if result.exists() else 0.0


@contextmanager
def _stopping(running: list[tuple[str, Any]]) -> Iterator[None]:
    """Ask the jobs to save and end when this process is told to, by Ctrl-C or SIGTERM; leave none."""

    def stop(signum: int, _frame: object) -> None:
        raise SystemExit(128 + signum)

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except BaseException:
        for _, job in running:
            if not job.done():
                os.kill(int(job.job_id), signal.SIGTERM)  # submitit's controller, which passes it on to its tasks
        deadline = time.monotonic() + _GRACE_S
        while time.monotonic() < deadline and not all(job.done() for _, job in running):
            time.sleep(_POLL_S)
        for _, job in running:
            if not job.done():
                job.cancel(check=False)
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)
