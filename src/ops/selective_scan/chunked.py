"""The selective scan in PyTorch operations alone, chunk by chunk: the fallback where nothing compiled is at hand.

Within a chunk the recurrence is a prefix scan by doubling over pairs (decay, state), so only products of decays
exp(delta*A) are ever formed, never exp of a positive sum. Memory is bounded by one chunk, in the backward too, which
keeps the state at each chunk's start and differentiates one recomputed chunk after the other.

Legend: B batch, E inner width (channels), L sequence length, T chunk length, N state size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from src.ops.first_order import first_order_backward
from src.ops.selective_scan.inputs import OPERATOR, ScanInputs
from src.ops.selective_scan.reference import finish, step_size, work_dtype

_MAX_CHUNK = 64
_ALONG = (0, 1, 3, 4, 7)  # u, delta, B, C, z have a time axis; the others' gradients are summed over chunks
_CHUNK_ELEMENTS = 1 << 22  # most elements of one (B, E, T, N) temporary


def _chunk_length(batch: int, channels: int, states: int) -> int:
    length = _MAX_CHUNK
    while length > 8 and batch * channels * states * length > _CHUNK_ELEMENTS:
        length //= 2
    return length


def _scan_chunk(h: Tensor, part: ScanInputs) -> tuple[Tensor, Tensor]:
    """h (B, E, N) and a chunk's inputs (B, E, T), (B, N, T) -> output (B, E, T) and the state after the chunk."""
    u, delta, A, B, C, D, bias = part.sides[0]
    dt = step_size(delta, bias, part.delta_softplus)
    decay = torch.exp(dt[..., None] * A[:, None])
    state = (dt * u)[..., None] * B.transpose(1, 2)[:, None]
    span = 1
    while span < u.shape[-1]:
        head, tail = state[:, :, :span], state[:, :, span:] + decay[:, :, span:] * state[:, :, :-span]
        state = torch.cat([head, tail], dim=2)
        decay = torch.cat([decay[:, :, :span], decay[:, :, span:] * decay[:, :, :-span]], dim=2)
        span *= 2
    state = state + decay * h[:, :, None]
    y = (state * C.transpose(1, 2)[:, None]).sum(-1)
    return finish(y, u, D, part.z), state[:, :, -1]


class _ChunkedScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, softplus: bool, reverse: bool, *tensors: Tensor | None) -> Tensor:
        inputs = ScanInputs.of(tensors, softplus, reverse)
        batch, channels, length, states = inputs.shape
        step = _chunk_length(batch, channels, states)
        out = torch.empty_like(inputs.u)
        h = out.new_zeros(batch, channels, states)
        starts = []
        for low in _chunk_starts(length, step, reverse):
            starts.append(h)
            y, h = _scan_chunk(h, inputs.like(_take(tensors, low, step, reverse)))
            out[..., low : low + step] = y.flip(-1) if reverse else y
        ctx.save_for_backward(*tensors, *starts)
        ctx.step, ctx.softplus, ctx.reverse = step, softplus, reverse
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        tensors, starts = saved[:8], saved[8:]
        return (
            None,
            None,
            *first_order_backward(OPERATOR, lambda: _gradients(ctx, grad, tensors, starts), grad, tensors),
        )


def _gradients(ctx: Any, grad: Tensor, tensors: Sequence[Any], starts: Sequence[Tensor]) -> list[Tensor | None]:
    """Of the scan's tensors, from one recomputed chunk after the other, the last one first."""
    totals = [torch.zeros_like(x) if x is not None else None for x in tensors]
    grad_h = torch.zeros_like(starts[0]) if starts else None
    lows = _chunk_starts(grad.shape[-1], ctx.step, ctx.reverse)
    for low, start in zip(reversed(lows), reversed(starts)):
        with torch.enable_grad():
            part = [_leaf(x) for x in _take(tensors, low, ctx.step, ctx.reverse)]
            h = _leaf(start)
            y, h_end = _scan_chunk(h, ScanInputs.of(part, ctx.softplus, ctx.reverse))
        wanted = [x for x in (h, *part) if x is not None]
        piece = _cut(grad, low, ctx.step, ctx.reverse)
        got = iter(torch.autograd.grad((y, h_end), wanted, (piece, grad_h)))
        grad_h = next(got)
        for i, total in enumerate(totals):
            if total is not None and i in _ALONG:
                g = next(got)
                total[..., low : low + ctx.step] = g.flip(-1) if ctx.reverse else g
            elif total is not None:
                total += next(got)
    return totals


def _leaf(x: Tensor | None) -> Any:
    return x.detach().requires_grad_() if x is not None else None


def _chunk_starts(length: int, step: int, reverse: bool) -> list[int]:
    """First index of each chunk, in the order in which time runs."""
    starts = list(range(0, length, step))
    return starts[::-1] if reverse else starts


def _cut(x: Tensor, low: int, step: int, reverse: bool) -> Tensor:
    """The chunk [low, low + step) of the last axis, turned round when time runs backwards."""
    part = x[..., low : low + step]
    return part.flip(-1) if reverse else part


def _take(tensors: Sequence[Tensor | None], low: int, step: int, reverse: bool) -> list[Tensor | None]:
    """A chunk of each tensor that has a time axis, the others as they are."""
    return [_cut(x, low, step, reverse) if x is not None and i in _ALONG else x for i, x in enumerate(tensors)]


def selective_scan_chunked(inputs: ScanInputs) -> Tensor:
    """Same contract as `selective_scan_reference`; differentiable once."""
    if len(inputs.sides) == 2:
        return selective_scan_chunked(inputs.alone(0)) + selective_scan_chunked(inputs.alone(1))
    cast = inputs.to(work_dtype(inputs.u.dtype))
    return _ChunkedScan.apply(cast.delta_softplus, cast.reverse, *cast.tensors).to(inputs.u.dtype)
