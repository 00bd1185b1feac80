"""The compiled CPU backend (operators vjepa_mamba::scan_forward, scan_backward).

Legend: B batch, E inner width (channels), L sequence length, N state size.
Inputs float32, bfloat16 or float16, of any strides; states float32. Fastest with channels innermost in memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from src.ops.compiled import (
    ABSENT,
    MISSING,
    array,
    call,
    empty_like_layout,
    has_library,
    need_library,
    plain,
    pointer,
    readable,
    threads_for,
)
from src.ops.selective_scan.operator import none, register, state_gradient

MAX_STATES = 64
_MAX_LANES = 16
_PAD = 4  # states are padded to a multiple of this
_GRAIN = 1 << 16  # state updates that are worth a thread


def _tile(states: int) -> int:
    """Steps between checkpoints: their memory stays at a quarter of u's for every state size."""
    return 64 * ((states + 15) // 16)


def _padded(states: int) -> int:
    return (states + _PAD - 1) // _PAD * _PAD


def _checkpoint_shape(u: Tensor, states: int, keep: bool) -> tuple[int, ...]:
    batch, channels, length = u.shape
    tile, lanes = _tile(states), need_library().kernels_use_lanes(_MAX_LANES)
    tiles = max((length + tile - 1) // tile - 1, 0) if keep else 0
    return batch, (channels + lanes - 1) // lanes, tiles, _padded(states), lanes


def _header(u: Tensor, states: int, softplus: bool, reverse: bool) -> list[int]:
    batch, channels, length = u.shape
    tile = min(_tile(states), (length + 15) // 16 * 16)  # short sequences need a small workspace only
    threads = threads_for(batch * channels * length * states, _GRAIN)
    return [batch, channels, length, states, tile, reverse, softplus, threads]


def _workspace(header: list[int], backward: bool) -> Tensor:
    size = need_library().scan_work_floats(header[4], _padded(header[3]), backward)
    return torch.empty(header[7], size, dtype=torch.float32)


def _forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    add: Tensor | None,
    softplus: bool,
    reverse: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    out = empty_like_layout(u)
    checkpoints = torch.empty(_checkpoint_shape(u, A.shape[1], keep), dtype=torch.float32)
    if u.numel() == 0:
        return out, checkpoints
    x, step, b, c, gate, other = (readable(t) for t in (u, delta, B, C, z, add))
    a, skip, bias = plain(A), plain(D), plain(delta_bias)
    target = out if out.dtype == x.dtype else torch.empty_like(out, dtype=x.dtype)
    header = _header(u, A.shape[1], softplus, reverse)
    work = _workspace(header, False)
    fields = [f for t in (x, step, b, c, gate, other, target) for f in array(t)] + ABSENT * 5
    kept = pointer(checkpoints) if keep else 0
    rest = [pointer(a), pointer(skip), pointer(bias), kept, pointer(work), work.shape[1]]
    call("scan_forward", [*header, *fields, *rest, *[0] * 7])
    return out if target is out else out.copy_(target), checkpoints


def _backward(
    grad: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    add: Tensor | None,
    checkpoints: Tensor,
    softplus: bool,
    reverse: bool,
) -> tuple[Tensor, ...]:
    batch, channels, length = u.shape
    states, padded = A.shape[1], _padded(A.shape[1])
    x, step, b, c, gate, other, g = (readable(t) for t in (u, delta, B, C, z, add, grad))
    a, skip, bias = plain(A), plain(D), plain(delta_bias)
    du, ddelta = empty_like_layout(x), empty_like_layout(step)
    dz = empty_like_layout(gate) if gate is not None else None
    dadd = empty_like_layout(x) if add is not None else None
    dA = torch.empty(channels, states, dtype=torch.float32)
    dD, dbias = (torch.empty(channels, dtype=torch.float32) if t is not None else None for t in (D, delta_bias))
    (gB, dB), (gC, dC) = state_gradient(B, _PAD), state_gradient(C, _PAD)
    if u.numel() == 0:
        for t in (dA, dD, dbias, gB, gC):
            if t is not None:
                t.zero_()
    else:
        header = _header(u, states, softplus, reverse)
        threads, blocks = header[7], checkpoints.shape[1]
        work = _workspace(header, True)
        shares_begin_with_items = all(batch * blocks * i // threads % blocks == 0 for i in range(threads))
        extra = None if shares_begin_with_items else torch.empty(threads, 2, length, padded, dtype=torch.float32)
        partial = torch.empty(batch, blocks, padded + 2, checkpoints.shape[4], dtype=torch.float32)
        ways = (x, step, b, c, gate, other, None, g, du, ddelta, dz, dadd)
        fields = [f for t in ways for f in array(t)]
        floats = [pointer(t) for t in (a, skip, bias, checkpoints, work)]
        sums = [pointer(t) for t in (gB, gC, extra, partial, dA, dD, dbias)]
        if dadd is not None and dz is None:
            dadd.copy_(g)  # without a gate the sum's gradient is the output's
        call("scan_backward", [*header, *fields, *floats, work.shape[1], *sums])
    for buffer, out in ((gB, dB), (gC, dC)):
        if out.dtype != torch.float32:
            out.copy_(buffer[..., :states].transpose(1, 2))
    got = (du, ddelta, dA, dB, dC, dD, dz, dbias, dadd)
    inputs = (u, delta, A, B, C, D, z, delta_bias, add)
    return tuple(y.to(t.dtype) if t is not None else none(u) for t, y in zip(inputs, got))


_scan = register("scan", ["cpu"], _forward, _backward, _checkpoint_shape, _PAD)


def selective_scan_cpu(
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
    add: Tensor | None = None,
) -> Tensor:
    """Same contract as `selective_scan_reference`; differentiable once; N at most 64 (ValueError).

    `add` (B, E, L) joins the output before the gate.

    Raises RuntimeError when the kernels were not built or the tensors are not on the CPU.
    """
    if A.shape[1] > MAX_STATES:
        raise ValueError(f"selective_scan: backend cpu takes state sizes up to {MAX_STATES}, got {A.shape[1]}")
    if u.device.type != "cpu":
        raise RuntimeError(f"selective_scan: backend cpu needs CPU tensors, got {u.device}")
    if not has_library():
        raise RuntimeError(MISSING)
    return _scan(u, delta, A, B, C, D, z, delta_bias, add, delta_softplus=delta_softplus, reverse=reverse)
