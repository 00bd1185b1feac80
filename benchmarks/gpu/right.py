"""Whether the kernels are right on this GPU, against float64 on the CPU: the parts smoke, bidi, conv_right, matrix."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.common import DEVICE, DRY, attempt, put
from src.ops.causal_conv1d import causal_conv1d
from src.ops.selective_scan import Direction, selective_scan_bidirectional
from src.ops.selective_scan.check import TOLERANCE, Case, cases, errors, make_inputs


def _row(part: str, case: Case, backend: str, dtype: torch.dtype) -> int:
    found = attempt(part, f"{dtype} {case}", lambda: errors(case, backend, DEVICE, dtype))
    if not found:
        return found is None
    name, worst = max(found.items(), key=lambda item: item[1])
    good = worst <= TOLERANCE[dtype]
    put(part, backend=backend, dtype=str(dtype)[6:], case=str(case), worst=worst, where=name, ok=good)
    return not good


def smoke(backend: str, dtype: str) -> int:
    """A few cases in seconds, of one type or two: whether anything else makes sense. How many are wrong."""
    some = [
        Case(channels=40, length=200),
        Case(channels=40, length=200, reverse=True),
        Case(channels=40, length=70, z=False),
    ]
    some += [Case(channels=33, length=65, layout="time"), Case(channels=33, length=130, layout="strided", reverse=True)]
    some += [Case(shift=-100.0), Case(states=24, length=150), Case(batch=0), Case(length=1)]
    kinds = (getattr(torch, dtype),) if dtype else (torch.float32, torch.bfloat16)
    return sum(_row("smoke", case, backend, kind) for kind in kinds for case in some[: 1 if DRY else None])


def matrix(backend: str, dtype: str, share: str) -> int:
    """The whole matrix, the usual cases first: i/n takes every n-th, from the i-th. How many are wrong."""
    first, step = (int(x) for x in share.split("/"))
    order = sorted(
        cases(), key=lambda c: (c.layout != "channels") + (c.states != 16) + (c.length > 1000) + (c.channels != 19)
    )
    return sum(_row("matrix", case, backend, getattr(torch, dtype)) for case in order[first::step])


def bidi(backend: str) -> int:
    """Both directions with the gate, all gradients; twice, to see races as moving errors. How many are wrong."""
    bad = 0
    shapes = [(1, 5, 9)] if DRY else [(2, 40, 200), (3, 384, 65), (2, 192, 1000)]
    for batch, channels, length in shapes:
        for dtype, limit in ((torch.float32, 2e-5), (torch.bfloat16, 2e-2), (torch.float16, 4e-3)):
            case = Case(batch=batch, channels=channels, length=length)
            sides = [make_inputs(case, dtype, seed) for seed in (0, 1)]

            def go(which: str, device: str, work: torch.dtype | None, sides: list = sides) -> list[Tensor]:
                names = Direction._fields
                leaves = [{n: s[n].detach().to(device, work).requires_grad_() for n in names} for s in sides]
                z = sides[0]["z"].detach().to(device, work).requires_grad_()
                out = selective_scan_bidirectional(*(Direction(**s) for s in leaves), z, True, which)
                wanted = [z, *(x for s in leaves for x in s.values())]
                got = torch.autograd.grad(out, wanted, sides[0]["grad"].to(device, out.dtype))
                return [x.detach().double().cpu() for x in (out, *got)]

            want = go("chunked", "cpu", torch.float64)
            runs = [
                attempt("bidi", f"{dtype} {case}", lambda: go(backend, DEVICE, None)) for _ in range(1 if DRY else 2)
            ]
            row = {"backend": backend, "dtype": str(dtype)[6:], "B": batch, "E": channels, "L": length}
            if None in runs:
                bad += 1
                continue
            gaps = [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(runs[0], want)]
            same = all(torch.equal(a, b) for a, b in zip(runs[0], runs[-1]))
            good = max(gaps) <= limit and same
            bad += not good
            put("bidi", **row, worst=max(gaps), where=gaps.index(max(gaps)), same_bits=same, ok=good)
    return bad


def _convolve(
    tensors: tuple[Tensor, ...], grad: Tensor, reverse: bool, device: str, work: torch.dtype | None, backend: str
) -> list[Tensor]:
    """Output and gradients of x, weight, bias, as float64 on the CPU."""
    leaves = [t.detach().to(device, work).requires_grad_() for t in tensors]
    y = causal_conv1d(*leaves, activation="silu", reverse=reverse, backend=backend)
    got = torch.autograd.grad(y, leaves, grad.to(device, y.dtype))
    return [t.detach().double().cpu() for t in (y, *got)]


def conv_right(backend: str) -> int:
    """The convolution: values and gradients, both layouts. How many are wrong."""
    bad = 0
    for dtype, limit in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 4e-3)):
        for channels, length, reverse, slices in (
            (384, 200, False, True),
            (192, 65, True, False),
            (40, 3, False, True),
        ):
            torch.manual_seed(0)
            xz = torch.randn(2, length, 2 * channels, dtype=dtype)
            leaf = xz.chunk(2, -1)[0].transpose(1, 2) if slices else torch.randn(2, channels, length, dtype=dtype)
            w, b, g = torch.randn(channels, 4), torch.randn(channels), torch.randn(2, channels, length, dtype=dtype)

            go = partial(_convolve, (leaf, w, b), g, reverse)
            got = attempt("conv_right", f"{dtype} {channels} {length}", partial(go, DEVICE, None, backend))
            want = go("cpu", torch.float64, "torch")
            worst = (
                max(((p - q).abs().max() / p.abs().max()).item() for p, q in zip(want, got)) if got else float("inf")
            )
            bad += worst > limit
            row = {"dtype": str(dtype)[6:], "E": channels, "L": length, "reverse": reverse}
            put("conv_right", backend=backend, **row, worst=worst, ok=worst <= limit)
    return bad
