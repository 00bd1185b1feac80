"""The compiled selective scan against a Python loop over time and mambapy's parallel scan, in one run.

    python -m benchmarks.selective_scan [--length 1568] [--repeats 7] [--out docs/results/selective_scan.csv]

Prints a table and writes it as CSV. Medians; the contenders take turns, so that other load meets all of them.
Legend: B batch, E inner width (channels), L sequence length, N state size.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

# Two threads that the system happens to leave on one core tell nothing about two threads. Read when torch is loaded.
os.environ.setdefault("OMP_PROC_BIND", "true")

import torch
import torch.nn.functional as F
from torch import Tensor

from src.ops.compiled import keep_freed_memory
from src.ops.selective_scan import Direction, selective_scan, selective_scan_bidirectional

Inputs = dict[str, Tensor]


def machine() -> str:
    info = Path("/proc/cpuinfo")
    models = [s.split(":")[1].strip() for s in info.read_text().splitlines() if s.startswith("model name")]
    name = models[0] if models else platform.processor()
    return f"{name}, {os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads"


def make(batch: int, channels: int, length: int, states: int) -> Inputs:
    """Inputs as the mixer has them: channels innermost in memory, steps of a trained size."""
    generator = torch.Generator().manual_seed(0)

    def along(rows: int) -> Tensor:
        return torch.randn(batch, length, rows, generator=generator).transpose(1, 2).requires_grad_()

    return {
        "u": along(channels),
        "delta": along(channels),
        "A": (-torch.arange(1.0, states + 1).repeat(channels, 1)).requires_grad_(),
        "B": along(states),
        "C": along(states),
        "D": torch.ones(channels, requires_grad=True),
        "z": along(channels),
        "delta_bias": torch.full((channels,), -4.6, requires_grad=True),
    }


def loop(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor) -> Tensor:
    """Decays and inputs for all steps at once, then one Python iteration a step: how mamba-ssm's reference does it.

    Steps are taken out by unbind, not by indexing: the backward of indexing fills a whole tensor with zeros per step,
    which would make the loop quadratic in length and the comparison unfair.
    """
    dt = F.softplus(delta + delta_bias[:, None])
    decay = torch.exp(torch.einsum("bel,en->beln", dt, A))
    drive = torch.einsum("bel,bnl,bel->beln", dt, B, u)
    h = u.new_zeros(u.shape[0], u.shape[1], A.shape[1])
    steps = []
    for a, x, c in zip(decay.unbind(2), drive.unbind(2), C.unbind(2)):
        h = a * h + x
        steps.append(torch.einsum("ben,bn->be", h, c))
    return (torch.stack(steps, dim=2) + u * D[:, None]) * F.silu(z)


def mambapy_pscan() -> Callable[..., Tensor] | None:
    """mambapy's parallel scan with the same parts around it, or None where mambapy is not installed."""
    try:
        from mambapy.pscan import pscan
    except ImportError:
        return None

    def scan(
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
    ) -> Tensor:
        x, dt = u.transpose(1, 2), F.softplus(delta.transpose(1, 2) + delta_bias)
        decay = torch.exp(dt[..., None] * A)
        drive = dt[..., None] * B.transpose(1, 2)[:, :, None] * x[..., None]
        y = (pscan(decay, drive) @ C.transpose(1, 2)[..., None])[..., 0] + D * x
        return (y * F.silu(z.transpose(1, 2))).transpose(1, 2)

    return scan


def compiled(reverse: bool = False, backend: str = "cpu") -> Callable[..., Tensor]:
    return lambda **x: selective_scan(**x, delta_softplus=True, reverse=reverse, backend=backend)


def both_directions(**x: Tensor) -> Tensor:
    """The two directions of a mixer: inputs of their own (`b_` in front), one gate."""
    fields = Direction._fields
    ahead, back = (Direction(**{name: x[prefix + name] for name in fields}) for prefix in ("", "b_"))
    return selective_scan_bidirectional(ahead, back, x["z"], delta_softplus=True, backend="cpu")


def make_both(*sizes: int) -> Inputs:
    ahead, back = make(*sizes), make(*sizes)
    return ahead | {f"b_{name}": back[name] for name in Direction._fields}


def forward(scan: Callable[..., Tensor], x: Inputs) -> None:
    with torch.no_grad():
        scan(**x)


def forward_backward(scan: Callable[..., Tensor], x: Inputs) -> None:
    torch.autograd.grad(scan(**x), list(x.values()), torch.ones_like(x["u"]))


def medians(contenders: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Seconds of each, taking turns, after one untimed round."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def scaling(run: Callable[[], None], repeats: int) -> float:
    """Time with 1 thread over time with 2, medians. Each timed call follows an untimed one: a core that was idle while
    the other worked takes a while to come back, which is not what a run in its course meets."""
    times: dict[int, list[float]] = {1: [], 2: []}
    before = torch.get_num_threads()
    for _ in range(repeats):
        for count, seconds in times.items():
            torch.set_num_threads(count)
            run()
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
    torch.set_num_threads(before)
    return statistics.median(times[1]) / statistics.median(times[2])


def extra_memory(scan: Callable[..., Tensor], x: Inputs) -> float:
    """Peak of forward+backward beyond inputs, output, its gradient and the inputs' gradients, in sizes of u."""
    grad = torch.ones_like(x["u"])
    with torch.profiler.profile(profile_memory=True) as profile:
        out = scan(**x)
        grads = torch.autograd.grad(out, list(x.values()), grad)
    results = sum(t.untyped_storage().nbytes() for t in (out, *grads))
    held = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return (peak - results) / (x["u"].numel() * x["u"].element_size())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--channels", type=int, default=384)
    parser.add_argument("--length", type=int, default=1568)
    parser.add_argument("--states", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("docs/results/selective_scan.csv"))
    args = parser.parse_args()
    keep_freed_memory()  # for all contenders: page faults of fresh buffers are not what is compared
    x = make(args.batch, args.channels, args.length, args.states)
    scans = {"compiled": compiled(), "chunked": compiled(backend="chunked"), "loop": loop}
    pscan = mambapy_pscan()
    if pscan is not None:
        scans["mambapy pscan"] = pscan
    want = loop(**x)
    for name, scan in scans.items():
        torch.testing.assert_close(scan(**x), want, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
    print(f"B={args.batch} E={args.channels} L={args.length} N={args.states} float32; {machine()}")

    def bind(run: Callable, scan: Callable[..., Tensor]) -> Callable[[], None]:
        return lambda: run(scan, x)

    fwd = medians({name: bind(forward, scan) for name, scan in scans.items()}, args.repeats)
    contenders = {name: bind(forward_backward, scan) for name, scan in scans.items()}
    two = make_both(args.batch, args.channels, args.length, args.states)
    contenders["compiled, both directions"] = lambda: forward_backward(both_directions, two)
    both = medians(contenders, args.repeats)
    ratio_of_threads = scaling(bind(forward_backward, compiled()), 2 * args.repeats)
    print(
        f"{'median of ' + str(args.repeats):<28}{'forward ms':>12}{'fwd+bwd ms':>12}{'loop / it':>12}{'loop / it':>12}"
    )
    for name, seconds in both.items():
        first = f"{fwd[name] * 1e3:12.1f}" if name in fwd else " " * 12
        ratio = f"{fwd['loop'] / fwd[name]:12.1f}" if name in fwd else " " * 12
        print(f"{name:<28}{first}{seconds * 1e3:12.1f}{ratio}{both['loop'] / seconds:12.1f}")
    ours = both["compiled"]
    figures = [
        ("forward: loop / compiled", fwd["loop"] / fwd["compiled"], ">=", 25.0),
        ("forward+backward: loop / compiled", both["loop"] / ours, ">=", 25.0),
        ("both directions / one, forward+backward", both["compiled, both directions"] / ours, "<=", 2.1),
        ("1 thread / 2 threads, forward+backward", ratio_of_threads, ">=", 1.8),
        ("extra memory of forward+backward, sizes of u", extra_memory(compiled(), x), "<=", 1.0),
    ]
    if pscan is not None:
        figures.insert(2, ("forward+backward: mambapy pscan / compiled", both["mambapy pscan"] / ours, ">=", 8.0))
    rows = []
    for what, value, relation, bar in figures:
        holds = value >= bar if relation == ">=" else value <= bar
        rows.append([what, f"{value:.3g}", f"{relation} {bar:g}", "yes" if holds else "NO"])
        print(f"{what:<48}{value:8.2f}   {relation} {bar:<5g} {'holds' if holds else 'MISSED'}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["figure", "value", "bar", "holds"])
        writer.writerows(rows)
        for name, seconds in both.items():
            if name in fwd:
                writer.writerow([f"{name}: forward ms", f"{fwd[name] * 1e3:.1f}", "", ""])
            writer.writerow([f"{name}: forward+backward ms", f"{seconds * 1e3:.1f}", "", ""])
        writer.writerow(
            [f"B={args.batch} E={args.channels} L={args.length} N={args.states} float32", machine(), "", ""]
        )
    return 0 if all(row[3] == "yes" for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
