"""The bidirectional scan and mixer on a CUDA GPU: our Triton path against two mamba-ssm calls with flips.

    python -m benchmarks.gpu_scan [--out docs/results/gpu_scan.csv]

Both against the time of moving the scan's inputs, outputs and gradients once at the measured copy bandwidth.
Legend: B batch, E inner width (channels), L sequence length, N state size.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from src.models.utils.mamba import MambaMixer
from src.ops.selective_scan import Direction, available_backends, selective_scan_bidirectional

SHAPES = ((32, 384, 1568), (32, 1536, 1568), (2, 384, 25088), (2, 1536, 25088))
STATES = 16


def milliseconds(run: Callable[[], None], repeats: int = 11) -> float:
    """Median of `repeats` after three untimed runs, by CUDA events."""
    times = []
    for turn in range(repeats + 3):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        if turn >= 3:
            times.append(start.elapsed_time(end))
    return sorted(times)[repeats // 2]


def copy_bandwidth() -> float:
    """Bytes per millisecond of a device-to-device copy, reads and writes counted."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / milliseconds(lambda: target.copy_(source))


def directions(batch: int, channels: int, length: int, dtype: torch.dtype) -> list[dict[str, Tensor]]:
    """Inputs of the two directions, channels innermost as the mixer has them; z is shared."""
    torch.manual_seed(0)

    def along(rows: int) -> Tensor:
        return torch.randn(batch, length, rows, device="cuda", dtype=dtype).transpose(1, 2).requires_grad_()

    z = along(channels)
    return [
        {
            "u": along(channels),
            "delta": along(channels),
            "A": (-torch.arange(1.0, STATES + 1, device="cuda").repeat(channels, 1)).requires_grad_(),
            "B": along(STATES),
            "C": along(STATES),
            "D": torch.ones(channels, device="cuda", requires_grad=True),
            "z": z,
            "delta_bias": torch.full((channels,), -4.6, device="cuda", requires_grad=True),
        }
        for _ in range(2)
    ]


def scan_both(sides: list[dict[str, Tensor]], leaves: list[Tensor], grad: Tensor, backend: str) -> None:
    """Forward and backward of the scan in both directions, outputs added."""
    ahead, back = (Direction(**{name: side[name] for name in Direction._fields}) for side in sides)
    out = selective_scan_bidirectional(ahead, back, sides[0]["z"], delta_softplus=True, backend=backend)
    torch.autograd.grad(out, leaves, grad)


def mix(mixer: MambaMixer, x: Tensor, low_precision: bool) -> None:
    """Forward and backward of the whole bidirectional mixer."""
    with torch.autocast("cuda", torch.bfloat16, enabled=low_precision):
        y = mixer(x)
    torch.autograd.grad(y.float().sum(), [x, *mixer.parameters()])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/results/gpu_scan.csv"))
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("error: torch sees no CUDA device; run this on a machine with a GPU", file=sys.stderr)
        return 2
    backends = [b for b in ("triton", "cuda") if b in available_backends("cuda")]
    bandwidth = copy_bandwidth()
    machine = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, copy {bandwidth / 1e9:.2f} TB/s"
    print(machine)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for batch, channels, length in SHAPES:
            both = directions(batch, channels, length, dtype)
            leaves = list({id(t): t for side in both for t in side.values()}.values())
            grad = torch.ones_like(both[0]["u"])
            once = sum(t.numel() * t.element_size() for t in leaves) + grad.numel() * grad.element_size()
            floor = 3 * once / bandwidth  # forward: inputs and output; backward: those again, and the gradients
            row = {"dtype": str(dtype).split(".")[1], "B": batch, "E": channels, "L": length, "floor_ms": floor}
            mixer = MambaMixer(channels // 2, d_state=STATES).cuda()
            x = torch.randn(batch, length, channels // 2, device="cuda", requires_grad=True)
            for backend in backends:
                mixer.scan_backend = backend
                row[f"{backend}_scan_ms"] = milliseconds(partial(scan_both, both, leaves, grad, backend))
                row[f"{backend}_mixer_ms"] = milliseconds(partial(mix, mixer, x, dtype == torch.bfloat16))
            rows.append(row)
            print("  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "machine"])
        writer.writeheader()
        writer.writerows(row | {"machine": machine} for row in rows)
    if len(backends) == 2:
        slower = [row for row in rows if row["triton_scan_ms"] > row["cuda_scan_ms"]]
        print(f"Triton is faster than two mamba-ssm calls in {len(rows) - len(slower)} of {len(rows)} scans")
    else:
        print(f"only {', '.join(backends) or 'nothing'} to measure: mamba-ssm or triton is missing")
    return 0


if __name__ == "__main__":
    sys.exit(main())
