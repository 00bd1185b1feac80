"""Times of the scan and the convolution: the parts scan, kernels, conv, versus and the plans that `tune` compares."""

from __future__ import annotations

import itertools
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.common import DEVICE, DRY, N, attempt, bandwidth, both, channels_last, gate, milliseconds, put, sync
from src.ops.causal_conv1d import causal_conv1d
from src.ops.selective_scan import Direction, selective_scan_bidirectional

SHAPES = [(1, 33, 9)] if DRY else [(32, 384, 1568), (2, 384, 25088), (32, 384, 392), (128, 384, 1568)]
MORE = [] if DRY else [(32, 1536, 1568), (8, 384, 6272)]


def _name(dtype: torch.dtype) -> str:
    return str(dtype)[6:]


def _bounds(x: Tensor, rate: float) -> dict[str, float]:
    """Times of moving once what a bidirectional scan reads and writes: u, delta twice, z, out; with gradients."""
    size = x.numel() * x.element_size()
    return {"copy_fwd_ms": 6 * size / rate, "copy_bwd_ms": 11 * size / rate}


def time_plan(batch: int, channels: int, length: int, dtype: torch.dtype, repeats: int, time_inner: bool = False) -> dict[str, float]:  # fmt: skip
    """Milliseconds of both directions' forward and backward, kernels and their buffers alone."""
    from src.ops.selective_scan import triton as backend

    x = both(batch, channels, length, dtype, time_inner)
    out, kept = backend._forward(x, True)
    grad = torch.randn_like(out)
    return {
        "infer_ms": milliseconds(lambda: backend._forward(x, False), repeats, 2),
        "fwd_ms": milliseconds(lambda: backend._forward(x, True), repeats, 2),
        "bwd_ms": milliseconds(lambda: backend._backward(grad, x, kept), repeats, 2),
    }


def plans(wide: bool) -> list[Any]:
    """What tune compares; the narrow list first, whose kernels differ in nothing that is compiled."""
    from src.ops.selective_scan.triton import Plan

    four = Plan(group=4, keep=False)
    if not wide:
        steps = [Plan(steps=t) for t in (64, 32, 128, 16, 256)] + [Plan(programs=132 * n) for n in (6, 12, 16, 64)]
        steps += [four, *(four._replace(steps=t) for t in (32, 128)), four._replace(programs=132 * 16)]
        return [*steps, Plan(steps=4096)]
    return [
        four,
        Plan(exact=True),
        Plan(registers=168, programs=132 * 12, keep=False),
        Plan(channels=64, warps=2, programs=132 * 4),
        Plan(group=4),
        Plan(registers=128, programs=132 * 16, keep=False),
    ]


def tune(wide: bool) -> int:
    """Every plan at every shape, the likely ones first."""
    from src.ops.selective_scan import triton as backend

    rate = bandwidth()
    put("tune", copy_tb_per_s=rate / 1e9)
    kinds = (torch.bfloat16,) if wide else (torch.bfloat16, torch.float32)
    for dtype, shape in itertools.product(kinds, SHAPES[:1] if wide else SHAPES):
        for chosen in plans(wide)[: 2 if DRY else None]:
            if dtype == torch.float32 and (chosen.programs != 132 * 8 or chosen.group == 4):
                continue
            if chosen.steps == 4096 and shape[0] < 128:
                continue

            def one(chosen: Any = chosen, shape: tuple = shape, dtype: torch.dtype = dtype) -> None:
                backend.FIXED[:] = [chosen]
                row = time_plan(*shape, dtype, 7 if shape[2] < 9000 else 5)
                put("tune", dtype=_name(dtype), B=shape[0], E=shape[1], L=shape[2], **chosen._asdict(), **row)

            attempt("tune", f"{dtype} {shape} {chosen}", one)
        backend.FIXED.clear()
        if not DRY:
            torch.cuda.empty_cache()
    return 0


def scan() -> int:
    """Both directions in one call as `auto` cuts them, both layouts, beside the time of a copy."""
    rate = bandwidth()
    put("scan", copy_tb_per_s=rate / 1e9)
    for dtype, shape in itertools.product((torch.bfloat16, torch.float32), SHAPES + MORE):
        for time_inner in (False, True):

            def one(dtype: torch.dtype = dtype, shape: tuple = shape, time_inner: bool = time_inner) -> None:
                times = time_plan(*shape, dtype, 7, time_inner)
                bounds = _bounds(torch.empty(shape, dtype=dtype, device="meta"), rate)
                inner = "time" if time_inner else "channels"
                put("scan", dtype=_name(dtype), B=shape[0], E=shape[1], L=shape[2], innermost=inner, **times, **bounds)

            attempt("scan", f"{dtype} {shape}", one)
            if not DRY:
                torch.cuda.empty_cache()
    return 0


def kernels() -> int:
    """Milliseconds of each kernel of a forward and a backward."""
    from torch.profiler import ProfilerActivity, profile

    from src.ops.selective_scan import triton as backend

    for dtype, shape in itertools.product((torch.bfloat16, torch.float32), SHAPES[:2]):
        x = both(*shape, dtype)
        out, kept = backend._forward(x, True)
        grad = torch.randn_like(out)
        backend._backward(grad, x, kept)
        sync()
        kinds = [ProfilerActivity.CPU] + ([] if DRY else [ProfilerActivity.CUDA])
        with profile(activities=kinds) as prof:
            for _ in range(3):
                backend._forward(x, True)
                backend._backward(grad, x, kept)
            sync()
        for event in prof.key_averages():
            if event.self_device_time_total > 0 and event.self_cpu_time_total == 0:
                put("kernels", dtype=_name(dtype), B=shape[0], E=shape[1], L=shape[2], kernel=event.key[:60],
                    ms=event.self_device_time_total / 3e3, calls=event.count // 3)  # fmt: skip
    return 0


def issue() -> int:
    """Microseconds of CPU time that issuing one scan takes, without and with autograd."""
    x = both(1, 64, 200, torch.bfloat16)
    sides = [Direction(*(t.detach().requires_grad_() for t in side)) for side in x.sides]
    leaves = [t for side in sides for t in side]
    grad = torch.randn_like(x.u)

    def ahead() -> None:
        with torch.no_grad():
            selective_scan_bidirectional(*sides, x.z, True)

    def whole() -> None:
        torch.autograd.grad(selective_scan_bidirectional(*sides, x.z, True), leaves, grad)

    w, b = torch.randn(64, 4, device=DEVICE), torch.randn(64, device=DEVICE)
    runs = {"forward": ahead, "forward and backward": whole, "conv": lambda: causal_conv1d(x.u, w, b, "silu")}
    for what, run in runs.items():
        run()
        sync()
        begun = time.perf_counter()
        for _ in range(1 if DRY else 100):
            run()
        took = time.perf_counter() - begun
        sync()
        put("issue", what=what, us=1e6 * took / (1 if DRY else 100))
    return 0


def conv() -> int:
    """The convolution with silu, forward and both, by tile and layout, beside a copy and the other backends."""
    from src.ops import triton_conv1d

    rate = bandwidth()
    for batch, channels, length in SHAPES[:2]:
        for time_inner in (False, True):
            x = gate(batch, channels, length, torch.bfloat16, time_inner).requires_grad_()
            w, b = (
                torch.randn(channels, 4, device=DEVICE, requires_grad=True),
                torch.randn(channels, device=DEVICE, requires_grad=True),
            )
            grad = channels_last(batch, channels, length, torch.bfloat16)
            grad = grad.contiguous() if time_inner else grad
            tiles = [(32, 64, 4), (64, 64, 4), (16, 128, 4), (64, 32, 4)]
            options: list[tuple[str, tuple[int, int, int] | None]] = [("triton", t) for t in tiles]
            for backend, tile in [*options, ("torch", None), ("cuda", None)][: 1 if DRY else None]:

                def one(backend: str = backend, tile: Any = tile, x: Tensor = x, w: Tensor = w, b: Tensor = b, grad: Tensor = grad) -> None:  # fmt: skip
                    if tile:
                        triton_conv1d._STEPS, triton_conv1d._CHANNELS, triton_conv1d._WARPS = tile
                    with torch.no_grad():
                        fwd = milliseconds(lambda: causal_conv1d(x, w, b, "silu", backend=backend), 7, 2)
                    whole = milliseconds(lambda: torch.autograd.grad(causal_conv1d(x, w, b, "silu", backend=backend), (x, w, b), grad), 7, 2)  # fmt: skip
                    put("conv", backend=backend, tile=tile, B=batch, L=length, innermost="time" if time_inner else "channels",
                        fwd_ms=fwd, both_ms=whole, copy_fwd_ms=2 * x.numel() * 2 / rate, copy_both_ms=5 * x.numel() * 2 / rate)  # fmt: skip

                attempt("conv", f"{backend} {tile}", one)
    return 0


def versus() -> int:
    """Ours against mamba-ssm, through autograd: as the mixer has the tensors, and as mamba-ssm wants them."""
    backends = ["chunked"] if DRY else ["triton", "cuda"]
    rate = bandwidth()
    for dtype, (batch, channels, length) in itertools.product(
        (torch.bfloat16, torch.float32), SHAPES[:2] + MORE[:1] + SHAPES[3:]
    ):
        for inner in ("channels", "time"):
            row: dict[str, Any] = {
                "dtype": _name(dtype),
                "B": batch,
                "E": channels,
                "L": length,
                "innermost": inner,
                "N": N,
            }
            for backend in backends:

                def one(backend: str = backend, dtype: torch.dtype = dtype, shape: tuple = (batch, channels, length), row: dict = row, inner: str = inner) -> None:  # fmt: skip
                    x = both(*shape, dtype, inner == "time")
                    sides = [Direction(*(t.detach().requires_grad_() for t in side)) for side in x.sides]
                    z = x.z.detach().requires_grad_()
                    leaves = [z, *(t for side in sides for t in side)]
                    grad = torch.randn_like(sides[0].u)

                    def ahead() -> Tensor:
                        with torch.no_grad():
                            return selective_scan_bidirectional(*sides, z, True, backend)

                    def whole() -> None:
                        torch.autograd.grad(selective_scan_bidirectional(*sides, z, True, backend), leaves, grad)

                    row[f"{backend}_fwd_ms"] = milliseconds(ahead, 5, 2)
                    row[f"{backend}_fwd_bwd_ms"] = milliseconds(whole, 5, 2)

                attempt("versus", f"{backend} {row}", one)
                if not DRY:
                    torch.cuda.empty_cache()
            bounds = _bounds(torch.empty(batch, channels, length, dtype=dtype, device="meta"), rate)
            put("versus", **row, copy_fwd_ms=bounds["copy_fwd_ms"], copy_fwd_bwd_ms=sum(bounds.values()))
    return 0
