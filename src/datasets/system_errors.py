"""What the machine lacks when a data worker fails for want of room, files, memory or processes, and what to do.

Shared memory: workers hand batches over in /dev/shm, as torch's DataLoader does.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from src.utils.errors import UserError, one_line

# Batches that each worker holds ready: torch's default, which takes effect where the loader says nothing.
PREFETCH = 2
_SHARED = Path("/dev/shm")
_FEWER = "a smaller data.num_workers or data.batch_size"

_ADVICE = {
    errno.EMFILE: "too many open files: raise the limit (ulimit -n 65536), or set a smaller data.num_workers",
    errno.ENFILE: "the machine has too many files open: set a smaller data.num_workers",
    errno.ENOMEM: f"out of memory: set {_FEWER}",
    errno.EAGAIN: "no more processes or threads may be started (ulimit -u): set a smaller data.num_workers",
    errno.EFBIG: "a batch is larger than a file may be: raise the limit (ulimit -f unlimited), or data.num_workers=0",
    errno.EDQUOT: "the disk quota is used up",
}
# torch's own errors carry errno in their text only.
_TEXTS = (
    (errno.ENOSPC, re.compile(r"No space left on device|[Bb]us error|out of shared memory")),
    (errno.EMFILE, re.compile(r"Too many open files|received \d+ items of ancdata")),
    (errno.ENOMEM, re.compile(r"[Cc]an(no|')t allocate memory|not enough memory|bad_alloc|unable to mmap")),
    (errno.EFBIG, re.compile(r"File too large")),
    (errno.EAGAIN, re.compile(r"can't start new thread|Resource temporarily unavailable")),
)


def system_fault(error: BaseException) -> str | None:
    """What the machine lacks and what to do about it, on one line; None for every other error."""
    if isinstance(error, MemoryError):
        return f"{_ADVICE[errno.ENOMEM]} ({one_line(error) or 'MemoryError'})"
    number = error.errno if isinstance(error, OSError) else None
    if number is None and isinstance(error, (OSError, RuntimeError)):
        number = next((code for code, text in _TEXTS if text.search(str(error))), None)
    if number == errno.ENOSPC:
        return f"{_no_room()} ({one_line(error)})"
    return f"{_ADVICE[number]} ({one_line(error)})" if number in _ADVICE else None


def _no_room() -> str:
    size = f"{_SHARED} ({_megabytes(_capacity())}) or the disk" if _SHARED.is_dir() else "shared memory or the disk"
    return (
        f"no space left in {size}: data workers hand batches over in shared memory; make it larger "
        f"(docker run --shm-size=8g; mount -o remount,size=8g {_SHARED}), or set {_FEWER} (0 workers need none)"
    )


def check_room(batch_bytes: int, num_workers: int, batches: int | None = None, capacity: int | None = None) -> None:
    """Raise UserError where shared memory cannot hold the batches that workers keep ready.

    Sooner or later they are all there at once: while a checkpoint is written, or the model is the slower part.

    Args:
        batch_bytes: size of one batch.
        batches: how many there are at most; None: more than are kept ready.
        capacity: bytes of shared memory; None: the machine's.
    """
    capacity = _capacity() if capacity is None else capacity
    ready = PREFETCH * num_workers
    needed = (ready if batches is None else min(ready, batches)) * batch_bytes
    if 0 < capacity < needed:
        raise UserError(
            f"{_SHARED} has {_megabytes(capacity)}, and {num_workers} data workers keep {PREFETCH} batches of "
            f"{_megabytes(batch_bytes)} each ready in it, {_megabytes(needed)}: make it larger (docker run "
            f"--shm-size={-(-2 * needed >> 30)}g; mount -o remount,size={-(-2 * needed >> 30)}g {_SHARED}), or set "
            f"{_FEWER} (0 workers need none)"
        )


def _capacity() -> int:
    """Bytes of shared memory in all; 0 where that is not known."""
    if not _SHARED.is_dir():
        return 0
    stat = os.statvfs(_SHARED)
    return stat.f_blocks * stat.f_frsize


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.3g} MB" if size < 1e9 else f"{size / 1e9:.3g} GB"
