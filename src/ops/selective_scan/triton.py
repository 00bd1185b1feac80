"""The Triton backend: chunk-parallel, both directions in one launch, nothing atomic (imported only when asked for).

Chunks of T steps run side by side: first each by itself from a state of zero, then the states are carried over the
chunks, then each chunk computes its outputs. The backward does the same against time. Where one chunk is enough, its
pass alone runs. With TRITON_INTERPRET=1 the kernels run on CPU tensors.

Legend: B batch, E inner width (channels), L sequence length, N state size, T steps of a chunk.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn.functional import pad

from src.ops.compiled import empty_like_layout
from src.ops.selective_scan.inputs import ScanInputs
from src.ops.selective_scan.operator import Backend, register
from src.ops.selective_scan.triton_backward import GROUP, gradient_kernel, start_gradient_kernel, sum_kernel
from src.ops.selective_scan.triton_common import carry_kernel
from src.ops.selective_scan.triton_forward import end_state_kernel, output_kernel

_CHANNELS = 32  # of a program, which is one warp: a lane holds a channel's states

# Steps of a chunk, by what was measured on an NVIDIA H200 (docs/results/gpu_tune.csv): milliseconds of forward and
# backward, both directions, 384 channels, bfloat16 / float32.
#   B, L        32 steps      64 steps      128 steps     one chunk
#   32, 392     1.09 / 1.22   1.17 / 1.38   1.22 / 1.32
#   32, 1568    3.07 / 3.48   3.07 / 3.49   3.16 / 3.69
#   2, 25088    3.20 / 3.65   3.04 / 3.55   3.01 / 3.59
#   128, 1568   11.1 / 12.8   10.7 / 12.5   10.7 / 12.4   9.43 / 11.4
# One chunk wants a scratch of 1.7 GB there, so only a forward without a backward has it: 1.42 ms instead of 2.18.
_SHORT, _STEPS_OF_SHORT, _STEPS = 512, 32, 64
_ENOUGH = 1536  # programs that fill the GPU when no sequence is cut: the last row


def chunk_steps(batch: int, channels: int, length: int, keep: bool) -> int:
    """Steps of a chunk; `keep`: whether a backward follows."""
    if not keep and batch * triton.cdiv(channels, _CHANNELS) >= _ENOUGH:
        return max(length, 1)
    return _STEPS_OF_SHORT if length <= _SHORT else _STEPS


@functools.cache
def resident_programs(device: torch.device) -> int:
    """Programs of the backward's last pass, which share the chunks: as many as run at a time.

    Eight to a multiprocessor, all that the registers allow. The backward took 4 to 22 % longer with 6 or 12 of them.
    """
    return 8 * (torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132)


def _chunks(x: ScanInputs, keep: bool) -> tuple[int, int]:
    batch, channels, length, _ = x.shape
    steps = chunk_steps(batch, channels, length, keep)
    return steps, triton.cdiv(length, steps)


def _keep(x: ScanInputs, keep: bool) -> tuple[Tensor, Tensor]:
    """State that enters each chunk (sides, B, chunks, N, E), and the outputs before the gate; empty if not needed."""
    batch, channels, _, states = x.shape
    _, chunks = _chunks(x, keep)
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

    def __init__(self, x: ScanInputs, keep: bool) -> None:
        self.batch, self.channels, self.length, self.states = x.shape
        self.steps, self.chunks = _chunks(x, keep)
        self.count = len(x.sides)
        self.first, self.second = x.sides[0], x.sides[-1]
        self.z = x.z if x.z is not None else x.u
        self.blocks = triton.cdiv(self.channels, _CHANNELS)
        self.reverse = int(x.reverse)
        states = max(triton.next_power_of_2(self.states), 16)
        self.meta: dict[str, Any] = {"BE": _CHANNELS, "BN": states, "num_warps": 1}
        self.per_chunk = (self.count, self.batch, self.chunks)

    def both(self, *names: str) -> list[Tensor]:
        """Each named tensor of the first direction and of the second; A where there is none, which is not read."""
        found = [getattr(side, name) for name in names for side in (self.first, self.second)]
        return [x if x is not None else self.first.A for x in found]

    def sizes(self, *rest: int) -> list[int]:
        """E, L, N, T, B, chunks and what follows."""
        return [self.channels, self.length, self.states, self.steps, self.batch, self.chunks, *rest]

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
    out, kept = empty_like_layout(x.u), _keep(x, keep)
    if x.u.numel() == 0:
        return out, kept
    state, before = kept
    given = _kernel_inputs(x)
    go = _Launch(given, keep)
    u, delta, A, B, C = go.first[:5]
    with torch.cuda.device_of(u):
        if go.chunks > 1:
            if not keep:
                state = u.new_empty(*go.per_chunk, go.states, go.channels, dtype=torch.float32)
            totals = u.new_empty(*go.per_chunk, go.channels, dtype=torch.float32)
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
    return out, kept


def _gradients(grad: Tensor, given: ScanInputs, kept: Sequence[Tensor], dz: Tensor | None) -> list[tuple[Any, ...]]:
    """For each of a direction's seven inputs its gradients, as `given` has them; fills dz."""
    state, before = kept
    go = _Launch(given, True)
    u, delta, A, B, C = go.first[:5]
    floats: dict[str, Any] = {"dtype": torch.float32, "device": u.device}
    du, ddelta = ([empty_like_layout(t) for t in go.both(name)[: go.count]] for name in ("u", "delta"))
    strides = (go.length * go.states, 1, go.states)
    dB, dC = (
        [torch.empty_strided(t.shape, strides, dtype=t.dtype, device=t.device) for t in go.both(name)[: go.count]]
        for name in "BC"
    )
    y, gate = (before, dz) if dz is not None else (du[0], du[0])  # not touched without z
    sums = torch.empty(go.count, go.batch * go.chunks, (go.states + 2) * go.channels, **floats)
    if u.numel():
        with torch.cuda.device_of(u):
            dstate = state
            if go.chunks > 1:
                dstate = torch.empty_like(state)
                totals = torch.empty(*go.per_chunk, go.channels, **floats)
                start_gradient_kernel[(go.blocks * (go.chunks - 1) * go.batch, go.count)](
                    grad, *go.both("delta", "A", "C", "delta_bias"), go.z, dstate, totals,
                    *go.sizes(go.chunks - 1, go.blocks, go.reverse), *_strides(grad, delta, A, C, go.z),
                    **_options(given, "HAS_Z", "HAS_BIAS", "SOFTPLUS"), **go.meta,
                )  # fmt: skip
                go.carry(dstate, totals, True)
            items = go.count * go.batch * go.chunks * go.blocks
            programs = min(items, resident_programs(u.device))
            scratch = torch.empty(programs, go.steps // GROUP * go.states * _CHANNELS, **floats)
            parts = torch.empty(go.count, go.batch, go.length, go.blocks, 2, go.states, **floats)
            along = (grad, u, delta, go.z, y, du[0], ddelta[0], gate)
            gradient_kernel[(programs,)](
                grad, *go.both("u", "delta", "A", "B", "C", "D", "delta_bias"), go.z, y, state, dstate, scratch,
                du[0], du[-1], ddelta[0], ddelta[-1], gate, sums, parts, *go.sizes(go.blocks, items, go.reverse), 1.0,
                *_strides(grad, u, delta, A, B, C, go.z, y, du[0], ddelta[0], gate),
                HAS_STATE=go.chunks > 1, EXACT=u.dtype == torch.float32, UNIT=all(t.stride(1) == 1 for t in along),
                **_options(given, "HAS_D", "HAS_Z", "HAS_BIAS", "SOFTPLUS"), **go.meta,
            )  # fmt: skip
            sum_kernel[(2 * triton.cdiv(go.length, 32), go.count * go.batch)](
                parts, dB[0], dB[-1], dC[0], dC[-1], go.length, go.states, go.batch, go.blocks, BT=32,
                BN=triton.next_power_of_2(go.states), num_warps=1,
            )  # fmt: skip
    else:
        sums.zero_()
    dA, dD, dbias = sums.sum(1).split([go.states * go.channels, go.channels, go.channels], dim=1)
    dA = dA.unflatten(1, (go.channels, go.states))
    return [(du[i], ddelta[i], dA[i], dB[i], dC[i], dD[i], dbias[i]) for i in range(go.count)]


def _backward(grad: Tensor, x: ScanInputs, kept: Sequence[Tensor]) -> list[Tensor | None]:
    given = _kernel_inputs(x)
    dz = empty_like_layout(x.z) if x.z is not None else None
    got: list[Tensor | None] = []
    for side, found in zip(x.sides, _gradients(grad, given, kept, dz)):
        if given is not x:  # types and a number of states that are not the kernels'
            states = side.A.shape[1]
            cut = {2: found[2][:, :states].contiguous(), 3: found[3][:, :states], 4: found[4][:, :states]}
            found = tuple(cut.get(i, g) for i, g in enumerate(found))
        got += [None if t is None else g if g.dtype == t.dtype else g.to(t.dtype) for t, g in zip(side, found)]
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
