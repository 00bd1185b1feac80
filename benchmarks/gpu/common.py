"""What the GPU measurements share: rows, times, inputs as the mixer has them.

DRY (`--dry` on the command line): tiny shapes on the CPU, under TRITON_INTERPRET=1, to try the scripts themselves.
Legend: B batch, E inner width, L length, N states.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from src.ops.selective_scan import Direction
from src.ops.selective_scan.inputs import ScanInputs

DRY = "--dry" in sys.argv
DEVICE = "cpu" if DRY else "cuda"
N = 16
_out = Path("gpu-out")


def open_rows(folder: Path) -> None:
    """Rows go to FOLDER/rows.jsonl as they come, so a part that is cut off keeps what it had."""
    global _out
    _out = folder
    folder.mkdir(parents=True, exist_ok=True)


def folder() -> Path:
    """Where the rows and other files of this run go."""
    return _out


def put(part: str, **row: Any) -> None:
    """A row of results, printed and kept."""
    row = {"part": part, **{k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in row.items()}}
    print("  ".join(f"{k}={v}" for k, v in row.items()), flush=True)
    with (_out / "rows.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def put_machine() -> None:
    """The row that says what the others were measured with."""
    try:
        import triton

        version = triton.__version__
    except ImportError:
        version = ""
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    commit = os.environ.get("COMMIT") or git.stdout.strip()  # a copy of the tree has no history
    card = "none" if DRY else torch.cuda.get_device_name()
    python = ".".join(map(str, sys.version_info[:3]))
    put("machine", card=card, torch=torch.__version__, triton=version, python=python, commit=commit)


def sync() -> None:
    """Waits for the device."""
    if not DRY:
        torch.cuda.synchronize()


def milliseconds(run: Callable[[], Any], repeats: int = 11, warm: int = 3) -> float:
    """Median, by events on a GPU."""
    times = []
    for turn in range(warm + repeats if not DRY else 1):
        if DRY:
            begun = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - begun))
            continue
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        run()
        b.record()
        b.synchronize()
        if turn >= warm:
            times.append(a.elapsed_time(b))
    return sorted(times)[len(times) // 2]


def attempt(part: str, what: str, run: Callable[[], Any]) -> Any:
    """The result of `run`, or None and a row that says why; one failure does not stop the next measurement."""
    try:
        return run()
    except Exception as error:  # noqa: BLE001
        put(part, what=what, failed=f"{type(error).__name__}: {str(error)[:300]}")
        traceback.print_exc()
        if not DRY and "out of memory" in str(error).lower():
            torch.cuda.empty_cache()
        return None


def bandwidth() -> float:
    """Bytes per millisecond of a device-to-device copy, reads and writes counted."""
    source = torch.randint(0, 255, (1 << (20 if DRY else 30),), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.numel() / milliseconds(lambda: target.copy_(source))


def channels_last(batch: int, rows: int, length: int, dtype: torch.dtype) -> Tensor:
    """(B, rows, L), rows innermost in memory."""
    return torch.randn(batch, length, rows, device=DEVICE, dtype=dtype).transpose(1, 2)


def gate(batch: int, channels: int, length: int, dtype: torch.dtype, time_inner: bool = False) -> Tensor:
    """z, a slice of in_proj's output."""
    z = torch.randn(batch, length, 2 * channels, device=DEVICE, dtype=dtype).chunk(2, -1)[1].transpose(1, 2)
    return z.contiguous() if time_inner else z


def direction(batch: int, channels: int, length: int, dtype: torch.dtype, time_inner: bool = False) -> Direction:
    """As the mixer has it: B and C are slices of x_proj's output."""
    rank = max(channels // 32, 1)
    along = torch.randn(batch, length, rank + 2 * N, device=DEVICE, dtype=dtype)
    _, b, c = (x.transpose(1, 2) for x in along.split([rank, N, N], dim=-1))
    u, delta = (channels_last(batch, channels, length, dtype) for _ in range(2))
    if time_inner:
        u, delta, b, c = (x.contiguous() for x in (u, delta, b, c))
    A = -torch.arange(1.0, N + 1, device=DEVICE).repeat(channels, 1)
    return Direction(
        u, delta, A, b, c, torch.ones(channels, device=DEVICE), torch.full((channels,), -4.6, device=DEVICE)
    )


def both(batch: int, channels: int, length: int, dtype: torch.dtype, time_inner: bool = False) -> ScanInputs:
    """A bidirectional scan with its gate."""
    sides = tuple(direction(batch, channels, length, dtype, time_inner) for _ in range(2))
    return ScanInputs(sides, gate(batch, channels, length, dtype, time_inner), True)
