"""The selective scan in PyTorch operations alone, chunk by chunk: the fallback where nothing compiled is at hand.

Within a chunk the recurrence is a prefix scan by doubling over pairs (decay, state), so only products of decays
exp(delta*A) are ever formed, never exp of a positive sum. Memory is bounded by one chunk, in the backward too, which
keeps the state at each chunk's start and differentiates one recomputed chunk after the other.

Legend: B batch, E inner width (channels), L sequence length, T chunk length, N state size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from src.ops.selective_scan.reference import finish, step_size

_MAX_CHUNK = 64
_CHUNK_ELEMENTS = 1 << 22  # most elements of one (B, E, T, N) temporary


def _chunk_length(batch: int, channels: int, states: int) -> int:
    length = _MAX_CHUNK
    while length > 8 and batch * channels * states * length > _CHUNK_ELEMENTS:
        length //= 2
    return length


def _scan_chunk(
    h: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """h (B, E, N) and a chunk's inputs (B, E, T), (B, N, T) -> output (B, E, T) and the state after the chunk."""
    dt = step_size(delta, delta_bias, delta_softplus)
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
    return finish(y, u, D, z), state[:, :, -1]


class _ChunkedScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        delta_bias: Tensor | None,
        delta_softplus: bool,
        reverse: bool,
    ) -> Tensor:
        batch, channels, length = u.shape
        step = _chunk_length(batch, channels, A.shape[1])
        out = torch.empty_like(u)
        h = u.new_zeros(batch, channels, A.shape[1])
        starts = []
        for low in _chunk_starts(length, step, reverse):
            starts.append(h)
            part = _take((u, delta, B, C, z), low, step, reverse)
            y, h = _scan_chunk(h, part[0], part[1], A, part[2], part[3], D, part[4], delta_bias, delta_softplus)
            out[..., low : low + step] = y.flip(-1) if reverse else y
        ctx.save_for_backward(u, delta, A, B, C, D, z, delta_bias, *starts)
        ctx.step, ctx.delta_softplus, ctx.reverse = step, delta_softplus, reverse
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        u, delta, A, B, C, D, z, delta_bias, *starts = ctx.saved_tensors
        along = (u, delta, B, C, z)  # tensors with a time axis; the others' gradients are summed over chunks
        fixed = (A, D, delta_bias)
        grads_along = [torch.zeros_like(x) if x is not None else None for x in along]
        grads_fixed = [torch.zeros_like(x) if x is not None else None for x in fixed]
        grad_h = torch.zeros_like(starts[0]) if starts else None
        lows = _chunk_starts(u.shape[-1], ctx.step, ctx.reverse)
        for low, start in zip(reversed(lows), reversed(starts)):
            with torch.enable_grad():
                part = [_leaf(x) for x in _take(along, low, ctx.step, ctx.reverse)]
                whole = [_leaf(x) for x in fixed]
                h = _leaf(start)
                y, h_end = _scan_chunk(
                    h, part[0], part[1], whole[0], part[2], part[3], whole[1], part[4], whole[2], ctx.delta_softplus
                )
            wanted = [x for x in (h, *part, *whole) if x is not None]
            piece = _take((grad,), low, ctx.step, ctx.reverse)[0]
            got = iter(torch.autograd.grad((y, h_end), wanted, (piece, grad_h)))
            grad_h = next(got)
            for total in grads_along:
                if total is not None:
                    g = next(got)
                    total[..., low : low + ctx.step] = g.flip(-1) if ctx.reverse else g
            for total in grads_fixed:
                if total is not None:
                    total += next(got)
        du, ddelta, dB, dC, dz = grads_along
        dA, dD, dbias = grads_fixed
        return du, ddelta, dA, dB, dC, dD, dz, dbias, None, None


def _leaf(x: Tensor | None) -> Any:
    return x.detach().requires_grad_() if x is not None else None


def _chunk_starts(length: int, step: int, reverse: bool) -> list[int]:
    """First index of each chunk, in the order in which time runs."""
    starts = list(range(0, length, step))
    return starts[::-1] if reverse else starts


def _take(tensors: tuple[Tensor | None, ...], low: int, step: int, reverse: bool) -> list[Any]:
    """The chunk [low, low + step) of each tensor's last axis, turned round when time runs backwards."""
    parts = [x[..., low : low + step] if x is not None else None for x in tensors]
    return [x.flip(-1) if x is not None and reverse else x for x in parts]


def selective_scan_chunked(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    reverse: bool = False,
) -> Tensor:
    """Same contract as `selective_scan_reference`; differentiable once."""
    work = torch.float64 if u.dtype == torch.float64 else torch.float32
    cast = [x.to(work) if x is not None else None for x in (u, delta, A, B, C, D, z, delta_bias)]
    return _ChunkedScan.apply(*cast, delta_softplus, reverse).to(u.dtype)
