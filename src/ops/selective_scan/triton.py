"""The Triton backend: chunk-parallel, both directions in one launch, nothing atomic (imported only when asked for).

Chunks of T steps run side by side: first each by itself from a state of zero, then the states are carried over the
chunks, then each chunk computes its outputs. The backward does the same against time. Where one chunk is enough, its
pass alone runs. With TRITON_INTERPRET=1 the kernels run on CPU tensors.

Legend: B batch, E inner width (channels), L sequence length, N state size, T steps of a chunk.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.nn.functional import pad

from src.ops.compiled import empty_like_layout
from src.ops.selective_scan.inputs import ScanInputs
from src.ops.selective_scan.operator import Backend, register
from src.ops.selective_scan.triton_backward import gradient_kernel, start_gradient_kernel, sum_kernel
from src.ops.selective_scan.triton_common import carry_kernel
from src.ops.selective_scan.triton_forward import end_state_kernel, output_kernel


class Plan(NamedTuple):
    """How a scan is cut: steps of a chunk, channels and warps of a program, programs of the backward's last pass."""

    steps: int = 64
    channels: int = 32
    warps: int = 1
    programs: int = 132 * 8
    group: int = 2  # steps that the backward holds at a time, 2 or 4
    keep: bool = True  # whether it holds their decays too
    registers: int | None = None  # of a lane, at most
    exact: bool | None = None  # sums over channels by float32 additions; None: for float32 inputs


FIXED: list[Plan] = []  # a benchmark's own plan, instead of the table's


def plan(batch: int, channels: int, length: int, states: int, sides: int) -> Plan:
    """The plan for a shape, by what was measured."""
    if FIXED:
        return FIXED[0]
    return Plan(steps=64 if length <= 8192 else 128)


def _chunks(x: ScanInputs) -> tuple[Plan, int]:
    batch, channels, length, states = x.shape
    chosen = plan(batch, channels, length, states, len(x.sides))
    return chosen, triton.cdiv(length, chosen.steps)


def _keep(x: ScanInputs, keep: bool) -> tuple[Tensor, Tensor]:
    """State that enters each chunk (sides, B, chunks, N, E), and the outputs before the gate; empty if not needed."""
    batch, channels, _, states = x.shape
    _, chunks = _chunks(x)
    shape = (len(x.sides), batch, chunks, states, channels) if keep and chunks > 1 else (0,)
    before = empty_like_layout(x.u) if keep and x.z is not None else x.u.new_empty(0)
    return x.u.new_empty(shape, dtype=torch.float32), before


def _alike(a: Tensor | None, b: Tensor | None, parameter: bool) -> bool:
    """Whether both directions' tensors can be read with one type and one set of strides."""
    if a is None or b is None:
        return a is b
    plain = a.dtype != torch.float64 and (not parameter or a.is_contiguous())
    return plain and a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride()


def _made_alike(a: Any, b: Any) -> tuple[Any, Any]:
    if a is None or b is None:  # nothing of one direction: zeros, whose gradient nobody asks for
        return (a, torch.zeros_like(a)) if b is None else (torch.zeros_like(b), b)
    widest = torch.promote_types(a.dtype, b.dtype)
    dtype = torch.float32 if widest == torch.float64 else widest
    return a.to(dtype).contiguous(), b.to(dtype).contiguous()


def _kernel_inputs(x: ScanInputs) -> ScanInputs:
    """What the kernels can read: float32 at most, parameters contiguous, both directions alike; mostly x itself."""
    ahead: list[Any] = list(x.sides[0])
    back: list[Any] = list(x.sides[-1])
    fits = [_alike(a, b, i in (5, 6)) for i, (a, b) in enumerate(zip(ahead, back))]
    if all(fits) and (x.z is None or x.z.dtype != torch.float64):
        return x
    states = x.shape[3]
    for side in (ahead, back):  # fewer states than the other direction: states that stay 0
        missing = states - side[2].shape[1]
        if missing:
            side[2] = pad(side[2], (0, missing))
            side[3], side[4] = (pad(t, (0, 0, 0, missing)) for t in side[3:5])
    for i, fit in enumerate(fits):
        if not fit and (ahead[i] is not None or back[i] is not None):
            ahead[i], back[i] = _made_alike(ahead[i], back[i])
    sides = [ahead, back][: len(x.sides)]
    return x.like([*(t for side in sides for t in side), x.z.float() if x.z is not None else None])


def _strides(*tensors: Tensor) -> list[int]:
    return [s for x in tensors for s in x.stride()]


class _Launch:
    """The arguments that the kernels share."""

    def __init__(self, x: ScanInputs) -> None:
        self.batch, self.channels, self.length, self.states = x.shape
        self.plan, self.chunks = _chunks(x)
        self.count = len(x.sides)
        self.first, self.second = x.sides[0], x.sides[-1]
        self.z = x.z if x.z is not None else x.u
        self.blocks = triton.cdiv(self.channels, self.plan.channels)
        self.reverse = int(x.reverse)
        self.meta: dict[str, Any] = {
            "BE": self.plan.channels,
            "BN": max(triton.next_power_of_2(self.states), 16),
            "num_warps": self.plan.warps,
        }
        if self.plan.registers:
            self.meta["maxnreg"] = self.plan.registers

    def both(self, *names: str) -> list[Tensor]:
        """Each named tensor of the first direction and of the second; A where there is none, which is not read."""
        found = [getattr(side, name) for name in names for side in (self.first, self.second)]
        return [x if x is not None else self.first.A for x in found]

    def sizes(self, *rest: int) -> list[int]:
        """E, L, N, T, B, chunks and what follows."""
        return [self.channels, self.length, self.states, self.plan.steps, self.batch, self.chunks, *rest]

    def carry(self, state: Tensor, totals: Tensor, backwards: bool) -> None:
        """Turns each chunk's own end state into the state that enters it."""
        lanes = 32 * (4 if self.channels > 64 else 1)
        grid = (self.count * self.batch, self.states * triton.cdiv(self.channels, lanes))
        a = self.first.A
        carry_kernel[grid](
            state, totals, *self.both("A"), totals, totals, self.channels, self.states, self.batch, self.chunks,
            *a.stride(), REVERSE=backwards, HAS_INIT=False, HAS_LAST=False, BE=lanes, num_warps=lanes // 32,
        )  # fmt: skip


def _options(x: ScanInputs, *names: str) -> dict[str, bool]:
    side = x.sides[0]
    known = {
        "HAS_D": side.D is not None,
        "HAS_Z": x.z is not None,
        "HAS_BIAS": side.delta_bias is not None,
        "SOFTPLUS": x.delta_softplus,
    }
    return {name: known[name] for name in names}


def _forward(x: ScanInputs, keep: bool) -> tuple[Tensor, Sequence[Tensor]]:
    out = empty_like_layout(x.u)
    state, before = _keep(x, keep)
    if x.u.numel() == 0:
        return out, (state, before)
    given = _kernel_inputs(x)
    go = _Launch(given)
    u, delta, A, B, C = go.first[:5]
    with torch.cuda.device_of(u):
        if go.chunks > 1:
            if not keep:
                state = u.new_empty(go.count, go.batch, go.chunks, go.states, go.channels, dtype=torch.float32)
            totals = u.new_empty(go.count, go.batch, go.chunks, go.channels, dtype=torch.float32)
            end_state_kernel[(go.blocks * (go.chunks - 1) * go.batch, go.count)](
                *go.both("u", "delta", "A", "B", "delta_bias"), state, totals,
                *go.sizes(go.chunks - 1, go.blocks, go.reverse), *_strides(u, delta, A, B),
                **_options(given, "HAS_BIAS", "SOFTPLUS"), **go.meta,
            )  # fmt: skip
            go.carry(state, totals, False)
        output_kernel[(go.blocks * go.chunks * go.batch,)](
            *go.both("u", "delta", "A", "B", "C", "D", "delta_bias"), go.z, state, out, before,
            *go.sizes(go.blocks, go.reverse), *_strides(u, delta, A, B, C, go.z, out),
            SIDES=go.count, HAS_STATE=go.chunks > 1, KEEP=keep,
            **_options(given, "HAS_D", "HAS_Z", "HAS_BIAS", "SOFTPLUS"), **go.meta,
        )  # fmt: skip
    return out, (state if keep else u.new_empty(0, dtype=torch.float32), before)


def _backward(grad: Tensor, x: ScanInputs, kept: Sequence[Tensor]) -> list[Tensor | None]:
    state, before = kept
    given = _kernel_inputs(x)
    go = _Launch(given)
    u, delta, A, B, C = go.first[:5]
    floats: dict[str, Any] = {"dtype": torch.float32, "device": u.device}
    du, ddelta = ([empty_like_layout(t) for t in go.both(name)[: go.count]] for name in ("u", "delta"))
    dB, dC = ([t.new_empty(go.batch, go.length, go.states) for t in go.both(name)[: go.count]] for name in "BC")
    dz = empty_like_layout(x.z) if x.z is not None else None
    y, gate = (before, dz) if dz is not None else (du[0], du[0])  # not touched without z
    rows = go.count, go.batch * go.chunks
    matrix = torch.empty(*rows, go.channels, go.states, **floats)
    vectors = torch.empty(*rows, 2, go.channels, **floats)
    if u.numel():
        with torch.cuda.device_of(u):
            dstate = state
            if go.chunks > 1:
                dstate = torch.empty_like(state)
                totals = torch.empty(go.count, go.batch, go.chunks, go.channels, **floats)
                start_gradient_kernel[(go.blocks * (go.chunks - 1) * go.batch, go.count)](
                    grad, *go.both("delta", "A", "C", "delta_bias"), go.z, dstate, totals,
                    *go.sizes(go.chunks - 1, go.blocks, go.reverse), *_strides(grad, delta, A, C, go.z),
                    **_options(given, "HAS_Z", "HAS_BIAS", "SOFTPLUS"), **go.meta,
                )  # fmt: skip
                go.carry(dstate, totals, True)
            items = go.count * go.batch * go.chunks * go.blocks
            programs = min(items, go.plan.programs)
            scratch = torch.empty(programs, go.plan.steps // go.plan.group * go.states * go.plan.channels, **floats)
            parts = torch.empty(go.count, go.batch, go.length, go.blocks, 2, go.states, **floats)
            exact = u.dtype == torch.float32 if go.plan.exact is None else go.plan.exact
            along = (grad, u, delta, go.z, y, du[0], ddelta[0], gate)
            gradient_kernel[(programs,)](
                grad, *go.both("u", "delta", "A", "B", "C", "D", "delta_bias"), go.z, y, state, dstate, scratch,
                du[0], du[-1], ddelta[0], ddelta[-1], gate, matrix, vectors, parts,
                *go.sizes(go.blocks, items, go.reverse), 1.0,
                *_strides(grad, u, delta, A, B, C, go.z, y, du[0], ddelta[0], gate),
                HAS_STATE=go.chunks > 1, EXACT=exact, K=go.plan.group, KEEP=go.plan.keep,
                UNIT=all(t.stride(1) == 1 for t in along),
                **_options(given, "HAS_D", "HAS_Z", "HAS_BIAS", "SOFTPLUS"), **go.meta,
            )  # fmt: skip
            sum_kernel[(go.count * go.batch, 2 * triton.cdiv(go.length, 32))](
                parts, dB[0], dB[-1], dC[0], dC[-1], go.length, go.states, go.batch, go.blocks, BT=32,
                BN=triton.next_power_of_2(go.states), num_warps=1,
            )  # fmt: skip
    else:
        matrix.zero_()
        vectors.zero_()
    dA, dvectors = matrix.sum(1), vectors.sum(1)
    got: list[Tensor | None] = []
    for i, side in enumerate(x.sides):
        own = side.A.shape[1]
        got += [du[i].to(side.u.dtype), ddelta[i].to(side.delta.dtype), dA[i, :, :own].contiguous().to(side.A.dtype)]
        got += [d[i][..., :own].transpose(1, 2).to(t.dtype) for d, t in ((dB, side.B), (dC, side.C))]
        got += [dvectors[i, j].to(t.dtype) if t is not None else None for j, t in ((0, side.D), (1, side.delta_bias))]
    return [*got, dz]


_BACKEND = Backend(_forward, _backward, _keep, kept=2)
_SCANS = {
    1: register("triton_scan", ["cuda", "cpu"], 1, _BACKEND),
    2: register("triton_bidirectional", ["cuda", "cpu"], 2, _BACKEND),
}


def selective_scan_triton(inputs: ScanInputs) -> Tensor:
    """The scan of `inputs`, one or two directions, on CUDA tensors (CPU tensors under TRITON_INTERPRET=1).

    Differentiable once; float64 is computed in float32. RuntimeError on other devices.
    """
    if inputs.u.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(f"selective_scan: backend triton needs CUDA tensors, got {inputs.u.device}")
    return _SCANS[len(inputs.sides)](inputs)
