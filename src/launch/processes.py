"""One process per device of this machine: started, watched, ended together; the first failure is the one shown."""

from __future__ import annotations

import faulthandler
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist

from src.launch.devices import share_cores
from src.launch.preemption import Preempted
from src.utils.distributed import LostError, init_distributed, naming_the_lost, shutdown
from src.utils.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, UserError

_SETTLE_S = 0.3  # after a first failure, time for the others to report theirs, so that the earliest can be told
_GRACE_S = 10.0  # between asking a process to end and killing it
_DUMP_S = 2.0  # for a process that does not end to write where it is
_MOST_TEXT = 10_000  # characters of a report: a pipe holds 64 KiB, and the parent reads it once its writer has ended
_FORWARDED = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")


class _Report(NamedTuple):
    """What a failing process tells its parent."""

    when: float  # time.monotonic() is one clock for all processes of a machine
    exitcode: int
    text: str
    kind: Literal["bug", "user", "stopped", "lost"] = "bug"


class _Failure(NamedTuple):
    """A process that ended badly, as the parent sees it."""

    rank: int
    when: float
    exitcode: int
    report: _Report | None


def _process_main(
    rank: int,
    devices: list[torch.device],
    port: int,
    target: Callable[..., None],
    args: Sequence[Any],
    to_parent: multiprocessing.connection.Connection,
) -> None:
    """Body of a started process: join the others, run, and tell the parent what went wrong."""
    _end_with_parent()
    faulthandler.enable()  # see _stop
    try:
        try:
            share_cores(devices[rank], len(devices))
            init_distributed(rank, len(devices), port, devices[rank], host_store=False)
            code = _call(target, args, to_parent)
            shutdown()
        except BaseException as error:
            # The parent shows it: shown here, it would mix with its consequences in the other processes.
            to_parent.send(_report(error))
            raise SystemExit(_report(error).exitcode) from error
    except SystemExit as end:
        # Not the interpreter's own way out: threads of a broken process group can hang it or make it abort.
        for worker in multiprocessing.active_children():
            worker.kill()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(end.code or 0))
    sys.exit(code)


def _call(target: Callable[..., None], args: Sequence[Any], to_parent: multiprocessing.connection.Connection) -> int:
    """Run. Returns 0, or the exit code of a run that was asked to stop: no failure, its processes are all well."""
    try:
        with naming_the_lost():
            target(*args)
    except Preempted as stop:
        to_parent.send(_report(stop))
        return stop.exitcode
    return 0


def _report(error: BaseException) -> _Report:
    """What to tell the parent about an exception that ended this process."""
    now = time.monotonic()
    if isinstance(error, UserError):
        return _Report(now, EXIT_USER_ERROR, _shortened(str(error)), "user")
    if isinstance(error, Preempted):
        return _Report(now, error.exitcode, str(error), "stopped")
    if isinstance(error, LostError):
        return _Report(now, 1, str(error), "lost")
    if isinstance(error, KeyboardInterrupt):
        return _Report(now, EXIT_INTERRUPTED, "")
    if isinstance(error, SystemExit):
        return _Report(now, error.code if isinstance(error.code, int) else int(error.code is not None), "")
    return _Report(now, 1, _shortened("".join(traceback.format_exception(error))))


def _shortened(text: str) -> str:
    """The beginning and the end of a text that is too long for a report."""
    half = _MOST_TEXT // 2
    return text if len(text) <= _MOST_TEXT else f"{text[:half]}\n[...]\n{text[-half:]}"


def _end_with_parent() -> None:
    """End this process at once when its parent is gone, however that came about."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def run_processes(target: Callable[..., None], devices: list[torch.device], args: Sequence[Any]) -> int:
    """Start one process per device and wait; see `run_local`."""
    # The parent holds the meeting point, on a port that the system chooses: none to collide with, none to race for.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("spawn")
    processes, receivers = [], []
    for rank in range(len(devices)):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(
            target=_process_main, args=(rank, devices, store.port, target, args, sender), name=f"rank {rank}"
        )
        processes.append(process)
        receivers.append((receiver, sender))
    with _forward_signals(processes) as received:
        try:
            for process in processes:
                process.start()
            failure = _wait(processes, receivers)
        finally:
            _stop(processes, explain=not received)
    if failure is None:
        return 0
    return _explain(failure, devices, received)


def _wait(processes: list[Any], receivers: list[tuple[Any, Any]]) -> _Failure | None:
    """Wait until all processes have ended well (None) or one has not: then which was the first, and why."""
    running = {process.sentinel: rank for rank, process in enumerate(processes)}
    failures: list[_Failure] = []
    deadline = None
    while running:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        ended = multiprocessing.connection.wait(list(running), timeout=left)
        if not ended:
            break
        for sentinel in ended:
            rank = running.pop(sentinel)
            processes[rank].join()
            if processes[rank].exitcode:
                receiver = receivers[rank][0]
                report = receiver.recv() if receiver.poll() else None
                now = report.when if report else time.monotonic()
                failures.append(_Failure(rank, now, processes[rank].exitcode, report))
                deadline = deadline or time.monotonic() + _SETTLE_S
    # A process that was killed can only be a cause. Abort is how NCCL ends a process whose peer is gone: a consequence.
    return min(failures, key=lambda f: (f.exitcode >= 0 or f.exitcode == -signal.SIGABRT, f.when), default=None)


def _explain(failure: _Failure, devices: list[torch.device], received: list[int]) -> int:
    """Show the first failure. Returns the exit code; raises UserError if it was one."""
    report = failure.report
    if report and report.kind == "user":
        raise UserError(report.text)
    if report and report.kind in ("stopped", "lost"):
        print(report.text if report.kind == "stopped" else f"error: {report.text}", file=sys.stderr, flush=True)
        return report.exitcode
    who = f"rank {failure.rank} of {len(devices)} ({devices[failure.rank]})"
    if report or failure.exitcode > 0:
        code = report.exitcode if report else failure.exitcode
        shown = (
            f"{report.text}error: {who} failed, as shown above"
            if report and report.text
            else (f"error: {who} ended with exit code {code}")
        )
        print(shown, file=sys.stderr, flush=True)
        return code
    name = signal.Signals(-failure.exitcode).name
    if -failure.exitcode in received:
        print(f"stopped by {name}", file=sys.stderr, flush=True)
    else:
        hint = "; the system may have run out of memory" if name == "SIGKILL" else ""
        print(f"error: {who} was killed by {name}{hint}", file=sys.stderr, flush=True)
    return 128 - failure.exitcode


def _stop(processes: list[Any], explain: bool) -> None:
    """End what still runs: ask first, then kill. To `explain`, let a process that does not end write where it is."""
    started = [process for process in processes if process.pid is not None]
    for process in started:
        if process.is_alive():
            process.terminate()
    deadline = time.monotonic() + _GRACE_S
    for process in started:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive() and explain:
            os.kill(process.pid, signal.SIGABRT)  # faulthandler shows what its threads are in
            process.join(_DUMP_S)
        if process.is_alive():
            process.kill()
            process.join()


@contextmanager
def _forward_signals(processes: list[Any]) -> Iterator[list[int]]:
    """Pass the signals that ask a run to stop or to save on to its processes; yields the list of those that came."""
    received: list[int] = []

    def forward(signum: int, _frame: object) -> None:
        received.append(signum)
        for process in processes:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, signum)

    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may install handlers
        return
    numbers = [getattr(signal, name) for name in _FORWARDED if hasattr(signal, name)]
    previous = {number: signal.signal(number, forward) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
