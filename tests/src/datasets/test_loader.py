"""What the machine lacks while data is read is one line; a bug stays a bug."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from src.datasets.data_manager import init_data
from src.datasets.system_errors import check_room, system_fault
from src.datasets.transforms import TrainTransform
from src.utils.errors import UserError


class Acting:
    """A transform that does something first."""

    def __init__(self, act):
        self.act = act

    def __call__(self, frames, rng):
        self.act()
        return TrainTransform(16)(frames, rng)


def read(mp4_list, act, workers=1, **settings):
    settings = {"batch_size": 2, "num_frames": 4, "total_steps": 4, "transform": Acting(act)} | settings
    return list(init_data(datasets=[mp4_list], num_workers=workers, **settings))


def limit(what, most):
    resource.setrlimit(what, (most, resource.getrlimit(what)[1]))


def few_files():
    """Leave this process only the files that it has open."""
    limit(resource.RLIMIT_NOFILE, 3)


def huge_array():
    np.empty(1 << 60, np.uint8)


def huge_tensor():
    torch.empty(1 << 60, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("act", "workers", "message"),
    [
        (few_files, 1, r"^a data worker failed: too many open files: raise the limit \(ulimit -n"),
        (lambda: limit(resource.RLIMIT_FSIZE, 100), 1, r"^a data worker failed: a batch is larger.*ulimit -f"),
        (huge_array, 0, r"^while reading data: out of memory: set a smaller data\.num_workers"),
        (huge_array, 1, r"^a data worker failed while reading .*video \d+\.mp4: out of memory: .*Unable to allocate"),
        (huge_tensor, 0, r"^while reading data: out of memory"),
        (
            huge_tensor,
            1,
            r"^a data worker failed while reading .*\.mp4: out of memory: set a smaller data\.num_workers",
        ),
        (lambda: os.kill(os.getpid(), signal.SIGBUS), 1, r"^a data worker was killed by.*Bus error.*--shm-size=8g"),
        (
            lambda: os.kill(os.getpid(), signal.SIGSEGV),
            1,
            r"^a data worker was killed by the signal Segm.*\.mp4; if it.*remove the file",
        ),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), 1, r"^a data worker was killed \(out of memory\?\).*\.mp4"),
    ],
)
def test_what_the_machine_lacks_is_one_line(mp4_list, act, workers, message):
    with pytest.raises(UserError, match=message) as error:
        read(mp4_list, act, workers)
    assert "Traceback" not in str(error.value) and "\n" not in str(error.value)


def type_error():
    len(3)


def runtime_error():
    raise RuntimeError("shapes do not fit")


def about_files():
    raise ValueError("Too many open files, says a bug")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("act", "kind"), [(type_error, TypeError), (runtime_error, RuntimeError), (about_files, ValueError)]
)
def test_a_bug_stays_a_bug(mp4_list, act, kind, workers):
    with pytest.raises(kind) as error:
        read(mp4_list, act, workers)
    assert not isinstance(error.value, UserError)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_users_mistake_in_a_worker_is_its_own_line(mp4_list, workers):
    def act():
        raise UserError("install it")

    with pytest.raises(UserError, match=r"install it$") as error:
        read(mp4_list, act, workers)
    assert "Traceback" not in str(error.value)


def take_files(leave):
    """Open every file that this process may open but `leave` of them."""
    taken = []
    with contextlib.suppress(OSError):
        while True:
            taken.append(os.dup(0))
    for handle in taken[:leave]:
        os.close(handle)
    return taken[leave:]


class LeavesFiles:
    """A mask collator that leaves a worker so many files to open."""

    def __init__(self, count):
        self.count = count

    def __call__(self, samples, step):
        take_files(self.count)
        return samples, [], []


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_a_batch_that_cannot_be_handed_over_is_not_waited_for(mp4_list, count):
    """Tensors go through files; the last of them are opened in threads of their own, whose errors nobody sees."""
    limit_before = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit(resource.RLIMIT_NOFILE, 300)
    try:
        with pytest.raises(UserError, match="too many open files"):
            read(mp4_list, lambda: None, 1, collator=LeavesFiles(count))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit_before)


def test_workers_that_cannot_be_started(mp4_list, capfd):
    loader = init_data(datasets=[mp4_list], num_workers=2, batch_size=2, num_frames=4, total_steps=4)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit(resource.RLIMIT_NOFILE, 300)
    for files in range(1, 6):  # enough for a queue, for the first worker, for the second
        gc.collect()  # what is left of earlier loaders gives files back
        taken = take_files(files)
        try:
            with pytest.raises(UserError, match="too many open files: raise the limit"):
                next(iter(loader))
        finally:
            for handle in taken:
                os.close(handle)
    resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("batch", "workers", "capacity", "fits"),
    [
        (77 << 20, 12, 64 << 20, False),
        (77 << 20, 12, 8 << 30, True),
        (1 << 20, 1, (2 << 20) - 1, False),
        (1, 1, 0, True),
    ],
)
def test_room_in_shared_memory(batch, workers, capacity, fits):
    if fits:
        check_room(batch, workers, capacity=capacity)
        return
    with pytest.raises(UserError, match=rf"/dev/shm has .* {workers} data workers keep 2 batches of .*--shm-size=\dg"):
        check_room(batch, workers, capacity=capacity)


def test_a_set_of_one_batch_needs_room_for_one():
    check_room(10 << 20, num_workers=8, batches=1, capacity=64 << 20)
    with pytest.raises(UserError, match="make it larger"):
        check_room(10 << 20, num_workers=8, batches=7, capacity=64 << 20)


def test_a_batch_that_no_machine_has_room_for(mp4_list):
    class Huge(Acting):
        def __call__(self, frames, rng):
            return torch.zeros(1, dtype=torch.uint8).expand(1 << 60)

    with pytest.raises(UserError, match=r"a data worker failed: /dev/shm has .*--shm-size=.*data\.batch_size"):
        read(mp4_list, None, transform=Huge(None))


def may_mount():
    if shutil.which("unshare") is None:
        return False
    tried = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], capture_output=True)
    return tried.returncode == 0


@pytest.mark.skipif(not may_mount(), reason="may not mount a file system")
def test_a_small_dev_shm(mp4_list):
    """Larger than what is kept ready in it, but in use by others."""
    code = (
        "from src.datasets.data_manager import init_data; from src.utils.errors import run_cli;"
        f"make = lambda: init_data(datasets=[{str(mp4_list)!r}], num_workers=2, batch_size=4, num_frames=4);"
        "run_cli(lambda: list(make()) and 0)"
    )
    command = "mount -t tmpfs -o size=4m tmpfs /dev/shm && head -c 4000000 /dev/zero > /dev/shm/x && exec "
    command += f"{sys.executable} -c {code!r}"
    done = subprocess.run(["unshare", "-m", "sh", "-c", command], capture_output=True, text=True)
    assert done.returncode == 2 and "error: a data worker failed: no space left in /dev/shm (4.19 MB)" in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_counts_as_the_machines_fault():
    for number in (24, 23, 12, 28, 27, 11):
        assert system_fault(OSError(number, os.strerror(number))), number
    for text in ("unable to write to file </torch_1>: No space left on device (28)", "received 0 items of ancdata"):
        assert system_fault(RuntimeError(text))
    for error in (OSError(2, "No such file"), PermissionError(13, "x"), TypeError("No space left on device")):
        assert system_fault(error) is None
