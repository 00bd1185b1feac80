"""Times of the scan and the convolution: the parts scan, tune, kernels, issue, conv and versus."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.common import DEVICE, DRY, N, attempt, bandwidth, both, channels_last, gate, milliseconds, put, sync
from src.ops.causal_conv1d import causal_conv1d
from src.ops.selective_scan import Direction, selective_scan_bidirectional

Shape = tuple[int, int, int]
SHAPES: list[Shape] = [(1, 33, 9)] if DRY else [(32, 384, 1568), (2, 384, 25088), (32, 384, 392), (128, 384, 1568)]
MORE: list[Shape] = [] if DRY else [(32, 1536, 1568), (8, 384, 6272)]
TYPES = (torch.bfloat16, torch.float32)


def _about(dtype: torch.dtype, shape: Shape) -> dict[str, Any]:
    return {"dtype": str(dtype)[6:], "B": shape[0], "E": shape[1], "L": shape[2]}


def _free() -> None:
    if not DRY:
        torch.cuda.empty_cache()


def _bounds(shape: Shape, dtype: torch.dtype, rate: float) -> dict[str, float]:
    """Times of moving once what a bidirectional scan reads and writes: u, delta twice, z, out; with gradients."""
    size = shape[0] * shape[1] * shape[2] * dtype.itemsize
    return {"copy_fwd_ms": 6 * size / rate, "copy_bwd_ms": 11 * size / rate}


def time_scan(shape: Shape, dtype: torch.dtype, repeats: int, time_inner: bool = False) -> dict[str, float]:
    """Milliseconds of both directions' forward and backward, kernels and their buffers alone."""
    from src.ops.selective_scan import triton as backend

    x = both(*shape, dtype, time_inner)
    out, kept = backend._forward(x, True)
    grad = torch.randn_like(out)
    return {
        "infer_ms": milliseconds(lambda: backend._forward(x, False), repeats, 2),
        "fwd_ms": milliseconds(lambda: backend._forward(x, True), repeats, 2),
        "bwd_ms": milliseconds(lambda: backend._backward(grad, x, kept), repeats, 2),
    }


@contextmanager
def cut(steps: int, programs: int) -> Iterator[None]:
    """The scan cut into chunks of `steps`, with so many programs in the backward's last pass. How to try a plan."""
    from src.ops.selective_scan import triton as backend

    kept = backend.chunk_steps, backend.resident_programs
    backend.chunk_steps, backend.resident_programs = (lambda *_: steps), (lambda _: programs)
    try:
        yield
    finally:
        backend.chunk_steps, backend.resident_programs = kept


def tune() -> int:
    """Lengths of a chunk and numbers of programs, at every shape."""
    rate = bandwidth()
    put("tune", copy_tb_per_s=rate / 1e9)
    full = 8 * 132 if DRY else 8 * torch.cuda.get_device_properties(0).multi_processor_count
    plans = [(steps, full) for steps in (64, 32, 128, 16, 256)] + [(64, full * n // 8) for n in (6, 12, 16)]

    def one(dtype: torch.dtype, shape: Shape, steps: int, programs: int) -> None:
        with cut(steps, programs):
            times = time_scan(shape, dtype, 7 if shape[2] < 9000 else 5)
        put("tune", **_about(dtype, shape), steps=steps, programs=programs, **times)

    for dtype, shape in itertools.product(TYPES, SHAPES):
        whole = [(shape[2], full)] if shape[0] >= 128 else []
        for steps, programs in (plans + whole)[: 2 if DRY else None]:
            attempt("tune", f"{dtype} {shape} {steps} {programs}", partial(one, dtype, shape, steps, programs))
        _free()
    return 0


def scan() -> int:
    """Both directions in one call as the backend cuts them, both layouts, beside the time of a copy."""
    rate = bandwidth()
    put("scan", copy_tb_per_s=rate / 1e9)

    def one(dtype: torch.dtype, shape: Shape, time_inner: bool) -> None:
        times, inner = time_scan(shape, dtype, 7, time_inner), "time" if time_inner else "channels"
        put("scan", **_about(dtype, shape), innermost=inner, **times, **_bounds(shape, dtype, rate))

    for dtype, shape, time_inner in itertools.product(TYPES, SHAPES + MORE, (False, True)):
        attempt("scan", f"{dtype} {shape}", partial(one, dtype, shape, time_inner))
        _free()
    return 0


def kernels() -> int:
    """Milliseconds of each kernel of a forward and a backward."""
    from torch.profiler import ProfilerActivity, profile

    from src.ops.selective_scan import triton as backend

    for dtype, shape in itertools.product(TYPES, SHAPES[:2]):
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
                ms, calls = event.self_device_time_total / 3e3, event.count // 3
                put("kernels", **_about(dtype, shape), kernel=event.key[:60], ms=ms, calls=calls)
    return 0


def _leaves(shape: Shape, dtype: torch.dtype, time_inner: bool = False) -> tuple[list[Direction], Tensor]:
    """Both directions and z, which want gradients."""
    x = both(*shape, dtype, time_inner)
    sides = [Direction(*(t.detach().requires_grad_() for t in side)) for side in x.sides]
    return sides, x.z.detach().requires_grad_()


def issue() -> int:
    """Microseconds of CPU time that issuing one scan and one convolution takes, without and with autograd."""
    sides, z = _leaves((1, 64, 200), torch.bfloat16)
    leaves = [t for side in sides for t in side]
    x = sides[0].u
    grad, w, b = torch.randn_like(x), torch.randn(64, 4, device=DEVICE), torch.randn(64, device=DEVICE)

    def ahead() -> None:
        with torch.no_grad():
            selective_scan_bidirectional(*sides, z, True)

    def conv_ahead() -> None:
        with torch.no_grad():
            causal_conv1d(x, w, b, "silu")

    def whole() -> None:
        torch.autograd.grad(selective_scan_bidirectional(*sides, z, True), leaves, grad)

    for what, run in {"forward": ahead, "forward and backward": whole, "conv": conv_ahead}.items():
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

    rate, own = bandwidth(), triton_conv1d.tile

    def one(shape: Shape, time_inner: bool, backend: str, tile: tuple[int, int] | None) -> None:
        x = gate(*shape, torch.bfloat16, time_inner).requires_grad_()
        w, b = (torch.randn(shape[1], *rest, device=DEVICE, requires_grad=True) for rest in ((4,), ()))
        grad = channels_last(*shape, torch.bfloat16)
        grad = grad.contiguous() if time_inner else grad

        def run() -> Tensor:
            return causal_conv1d(x, w, b, "silu", backend=backend)

        def ahead() -> None:
            with torch.no_grad():
                run()

        if tile:
            triton_conv1d.tile = lambda _: tile
        size, inner = x.numel() * x.element_size() / rate, "time" if time_inner else "channels"
        fwd = milliseconds(ahead, 7, 2)
        whole = milliseconds(lambda: torch.autograd.grad(run(), (x, w, b), grad), 7, 2)
        put("conv", backend=backend, tile=tile, B=shape[0], L=shape[2], innermost=inner, fwd_ms=fwd, both_ms=whole,
            copy_fwd_ms=2 * size, copy_both_ms=5 * size)  # fmt: skip

    tiles = [("triton", (32, 64)), ("triton", (64, 64)), ("triton", (16, 128)), ("triton", (64, 32))]
    options: list[tuple[str, tuple[int, int] | None]] = [*tiles, ("torch", None), ("cuda", None)]
    for shape, time_inner, (backend, tile) in itertools.product(SHAPES[:2], (False, True), options[: 1 if DRY else 6]):
        attempt("conv", f"{backend} {tile}", partial(one, shape, time_inner, backend, tile))
        triton_conv1d.tile = own
    return 0


def versus() -> int:
    """Ours against mamba-ssm, through autograd: as the mixer has the tensors, and as mamba-ssm wants them."""
    rate = bandwidth()

    def one(backend: str, dtype: torch.dtype, shape: Shape, time_inner: bool) -> dict[str, float]:
        sides, z = _leaves(shape, dtype, time_inner)
        leaves = [z, *(t for side in sides for t in side)]
        grad = torch.randn_like(sides[0].u)

        def run() -> Tensor:
            return selective_scan_bidirectional(*sides, z, True, backend)

        def ahead() -> None:
            with torch.no_grad():
                run()

        return {
            f"{backend}_fwd_ms": milliseconds(ahead, 5, 2),
            f"{backend}_fwd_bwd_ms": milliseconds(lambda: torch.autograd.grad(run(), leaves, grad), 5, 2),
        }

    for dtype, shape, time_inner in itertools.product(TYPES, SHAPES[:2] + MORE[:1] + SHAPES[3:], (False, True)):
        row: dict[str, Any] = {**_about(dtype, shape), "innermost": "time" if time_inner else "channels", "N": N}
        for backend in ["chunked"] if DRY else ["triton", "cuda"]:
            row |= attempt("versus", f"{backend} {row}", partial(one, backend, dtype, shape, time_inner)) or {}
            _free()
        bounds = _bounds(shape, dtype, rate)
        put("versus", **row, copy_fwd_ms=bounds["copy_fwd_ms"], copy_fwd_bwd_ms=sum(bounds.values()))
    return 0
