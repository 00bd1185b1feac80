"""Holds a backend to the float64 reference, outputs and all gradients: the yardstick of the tests, and a command.

    python -m src.ops.selective_scan.check [--device cuda] [--dtype bfloat16] [--backend NAME ...]

Legend: B batch, E inner width (channels), L sequence length, N state size.
"""

from __future__ import annotations

import argparse
import functools
import sys
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from src.ops.selective_scan import BACKENDS, available_backends, selective_scan

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


@dataclass(frozen=True)
class Case:
    """One cell of the matrix. layout: 'channels' or 'time' innermost in memory, or 'strided' (neither)."""

    batch: int = 2
    channels: int = 19
    length: int = 65
    states: int = 16
    reverse: bool = False
    D: bool = True
    z: bool = True
    bias: bool = True
    softplus: bool = True
    layout: str = "channels"
    shift: float = 0.0  # added to delta: large values saturate softplus, very negative ones underflow it


def cases() -> list[Case]:
    """The matrix: every length, width, state size, option, layout and extreme, both directions."""
    base = Case()
    plain = [replace(base, length=n) for n in (1, 2, 63, 64, 65, 1000, 1568)]
    plain += [replace(base, channels=e) for e in (1, 7, 16, 33)]
    plain += [replace(base, states=n, length=300) for n in (1, 2, 5, 8, 24, 64)]
    left_out: list[dict[str, Any]] = [{name: False} for name in ("D", "z", "bias", "softplus")]
    plain += [replace(base, **options) for options in left_out]
    plain += [replace(base, D=False, z=False, bias=False, softplus=False)]
    plain += [replace(base, layout=layout) for layout in ("time", "strided")]
    plain += [replace(base, batch=n) for n in (0, 1, 3)]
    plain += [replace(base, shift=s) for s in (-100.0, -20.0, 30.0)]
    return [replace(case, reverse=reverse) for case in plain for reverse in (False, True)]


def make_inputs(case: Case, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Any]:
    """Inputs of a case on the CPU; A, D and delta_bias stay float32, the others have `dtype`."""
    generator = torch.Generator().manual_seed(seed)

    def along(rows: int) -> Tensor:
        if case.layout == "time":
            x = torch.randn(case.batch, rows, case.length, generator=generator)
        elif case.layout == "strided":
            x = torch.randn(case.batch, case.length, 2, rows, 3, generator=generator)[:, :, 1, :, 1].transpose(1, 2)
        else:
            x = torch.randn(case.batch, case.length, rows, generator=generator).transpose(1, 2)
        return x.to(dtype)

    delta = along(case.channels)
    A = -(torch.arange(1, case.states + 1).float() + torch.rand(case.channels, case.states, generator=generator))
    return {
        "u": along(case.channels),
        "delta": delta + case.shift if case.softplus else delta.abs(),  # without softplus a step is positive already
        "A": A,
        "B": along(case.states),
        "C": along(case.states),
        "D": torch.randn(case.channels, generator=generator) if case.D else None,
        "z": along(case.channels) if case.z else None,
        "delta_bias": torch.rand(case.channels, generator=generator) if case.bias else None,
        "grad": along(case.channels),
    }


def run(
    case: Case, inputs: dict[str, Any], backend: str, device: str = "cpu", work: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Output 'out' and gradients by input name, as float64 on the CPU. `work`: cast every input to it first."""
    leaves: dict[str, Any] = {}
    for name in NAMES:
        x = inputs[name]
        leaves[name] = x.detach().to(device, work).requires_grad_() if x is not None else None
    out = selective_scan(**leaves, delta_softplus=case.softplus, reverse=case.reverse, backend=backend)
    present = {name: x for name, x in leaves.items() if x is not None}
    grads = torch.autograd.grad(
        out, list(present.values()), inputs["grad"].to(device, out.dtype), materialize_grads=True
    )
    results = {"out": out.detach(), **{f"d{name}": g for name, g in zip(present, grads)}}
    return {name: x.double().cpu() for name, x in results.items()}


@functools.lru_cache(maxsize=512)
def reference(case: Case, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The float64 reference on the case's inputs as they are after rounding to `dtype`."""
    return run(case, make_inputs(case, dtype), "reference", work=torch.float64)


def errors(case: Case, backend: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> dict[str, float]:
    """Largest deviation of each result from the reference, relative to the reference's largest magnitude.

    Below float32's smallest normal number everything counts as 0: a GPU flushes such numbers, softplus(-100) among
    them, and all gradients that it scales.
    """
    got, want = run(case, make_inputs(case, dtype), backend, device), reference(case, dtype)
    worst = {}
    for name, expected in want.items():
        if got[name].shape != expected.shape:
            raise AssertionError(f"{name}: shape {tuple(got[name].shape)} instead of {tuple(expected.shape)}")
        if expected.numel() == 0:
            continue
        found, wanted = (F.hardshrink(x, torch.finfo(torch.float32).tiny) for x in (got[name], expected))
        gap, scale = (found - wanted).abs().max().item(), wanted.abs().max().item()
        worst[name] = gap / max(scale, 8 * torch.finfo(dtype).tiny)  # subnormal parts have fewer digits
    return worst


def main() -> int:
    """The command line. Returns 1 if a backend is off, else 0."""
    parser = argparse.ArgumentParser(description="Check scan backends against the float64 reference.")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--backend", nargs="+", choices=[b for b in BACKENDS if b != "reference"])
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    failed = 0
    for backend in args.backend or [b for b in available_backends(args.device) if b != "reference"]:
        worst: dict[str, float] = {}
        for case in cases():
            for name, error in errors(case, backend, args.device, dtype).items():
                worst[name] = max(worst.get(name, 0.0), error)
                if not error <= TOLERANCE[dtype]:
                    failed += 1
                    print(f"FAILED {backend} {name}: {error:.1e} at {case}")
        figures = "  ".join(f"{name} {error:.1e}" for name, error in worst.items())
        print(f"{backend} on {args.device}, {args.dtype}, {len(cases())} cases, worst: {figures}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
