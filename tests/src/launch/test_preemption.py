"""Signals are noted where a loop listens, and nowhere else; data workers outlive what is not meant for them."""

import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from src.launch.preemption import SIGNALS, Preempted, listening, requested, shield_worker


@pytest.mark.parametrize("signum", SIGNALS)
def test_the_first_signal_is_noted_while_listening(signum):
    before = [signal.getsignal(number) for number in SIGNALS]
    with listening():
        assert requested() == 0
        os.kill(os.getpid(), signum)
        os.kill(os.getpid(), signal.SIGTERM)
        assert requested() == signum
        with listening():
            assert requested() == signum
        assert requested() == signum
    assert requested() == 0
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_signal_after_the_last_look_is_sent_on():
    got, before = [], signal.signal(signal.SIGUSR1, lambda number, frame: got.append(number))
    try:
        with listening():
            assert requested() == 0
            os.kill(os.getpid(), signal.SIGUSR1)
        assert got == [signal.SIGUSR1]
        with listening():
            os.kill(os.getpid(), signal.SIGUSR1)
            requested()  # somebody knows of it
        assert len(got) == 1
        with pytest.raises(KeyError), listening():
            os.kill(os.getpid(), signal.SIGUSR1)
            raise KeyError
        assert len(got) == 1
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_other_threads_leave_signals_alone():
    before, inside = signal.getsignal(signal.SIGTERM), []

    def listen():
        with listening():
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert inside == [before]


def test_what_a_stopped_run_says():
    stop = pickle.loads(pickle.dumps(Preempted(signal.SIGUSR1, "x has all 3 steps so far")))
    assert (stop.signum, stop.exitcode) == (signal.SIGUSR1, 128 + signal.SIGUSR1)
    assert str(stop) == "stopped by SIGUSR1: x has all 3 steps so far"


def worker(ready):
    shield_worker()
    ready.set()
    time.sleep(3600)


def taken_in(process):
    """Whether a process has dealt with the SIGTERM that it was sent, or has ended."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    waiting = int(re.search(r"^ShdPnd:\s*(\w+)", status, re.MULTILINE)[1], 16)
    return not waiting & 1 << signal.SIGTERM - 1 or not process.is_alive()


@pytest.mark.skipif(
    not hasattr(signal, "sigwaitinfo") or not Path("/proc/self/status").exists(),
    reason="this system does not say who sent a signal, or whether it was taken in",
)
def test_a_data_worker_ends_by_its_trainer_s_signal_only(wait_for):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=worker, args=(ready,), daemon=True)
    with listening():  # as where a trainer starts its workers
        process.start()
        assert ready.wait(300)
        # It takes the second SIGTERM in only when it has gone on after the first.
        for name in ("USR1", "USR2", "TERM", "TERM"):
            subprocess.run(["kill", f"-{name}", str(process.pid)], check=True)
            wait_for(lambda: taken_in(process), f"SIG{name} taken in")
            assert process.is_alive()
        process.terminate()
        process.join(300)
    assert process.exitcode == 0
