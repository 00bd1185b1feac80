"""The compiled CPU backend (operators vjepa_mamba::scan_forward, scan_backward).

Legend: B batch, E inner width (channels), L sequence length, N state size.
Inputs float32, bfloat16 or float16, of any strides; states float32. Fastest with channels innermost in memory.
"""

from __future__ import annotations

from typing import Any

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
PAD = 4  # states are padded to a multiple of this
_GRAIN = 1 << 16  # state updates that are worth a thread


def _tile(states: int) -> int:
    """Steps between checkpoints: their memory stays at a quarter of u's for every state size."""
    return 64 * ((states + 15) // 16)


def _padded(states: int) -> int:
    return (states + PAD - 1) // PAD * PAD


def checkpoint_shape(u: Tensor, states: int, keep: bool) -> tuple[int, ...]:
    """Of the states kept for the way back: (B, channel blocks, tiles, states padded, lanes); 0 tiles without `keep`."""
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
    size = need_library().scan_work_floats(header[4], _padded(header[3]), header[1], backward)
    return torch.empty(header[7], size, dtype=torch.float32)


def launch_forward(
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
    out: Tensor,
) -> Tensor:
    """Writes the scan into `out` (which may be `add`); returns the checkpoints."""
    checkpoints = torch.empty(checkpoint_shape(u, A.shape[1], keep), dtype=torch.float32)
    if u.numel():
        a, skip, bias = plain(A), plain(D), plain(delta_bias)
        header = _header(u, A.shape[1], softplus, reverse)
        work = _workspace(header, False)
        fields = [f for t in (u, delta, B, C, z, add, out) for f in array(t)] + ABSENT * 5
        kept = pointer(checkpoints) if keep else 0
        rest = [0, pointer(a), pointer(skip), pointer(bias), kept, pointer(work), work.shape[1]]
        call("scan_forward", [*header, *fields, *rest, *[0] * 7])
    return checkpoints


def launch_backward(
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
    dz: Tensor | None,
    dadd: Tensor | None = None,
    y_to_dz: bool = False,
) -> list[Tensor | None]:
    """Gradients of u, delta, A, B, C, D, delta_bias; that of z goes to `dz` (the ungated output with `y_to_dz`)."""
    batch, channels, length = u.shape
    states, padded = A.shape[1], _padded(A.shape[1])
    a, skip, bias = plain(A), plain(D), plain(delta_bias)
    du, ddelta = empty_like_layout(u), empty_like_layout(delta)
    dA = torch.empty(channels, states, dtype=torch.float32)
    dD, dbias = (torch.empty(channels, dtype=torch.float32) if t is not None else None for t in (D, delta_bias))
    (gB, dB), (gC, dC) = state_gradient(B, PAD), state_gradient(C, PAD)
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
        fields = [f for t in (u, delta, B, C, z, add, None, grad, du, ddelta, dz, dadd) for f in array(t)]
        floats = [pointer(t) for t in (a, skip, bias, checkpoints, work)]
        sums = [pointer(t) for t in (gB, gC, extra, partial, dA, dD, dbias)]
        call("scan_backward", [*header, *fields, y_to_dz, *floats, work.shape[1], *sums])
    for buffer, out in ((gB, dB), (gC, dC)):
        if out.dtype != torch.float32:
            out.copy_(buffer[..., :states].transpose(1, 2))
    parameters = ((A, dA), (D, dD), (delta_bias, dbias))
    gA, gD, gbias = (g.to(t.dtype) if t is not None and g is not None else None for t, g in parameters)
    return [du, ddelta, gA, dB, dC, gD, gbias]


def _forward(u: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    out = empty_like_layout(u)
    inputs: tuple[Any, ...] = (u, *rest, out)
    return out, launch_forward(*inputs)


def _backward(grad: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    u, z, add = rest[0], rest[6], rest[8]
    dz = empty_like_layout(z) if z is not None else None
    dadd = empty_like_layout(u) if add is not None else None
    if dadd is not None and z is None:
        dadd.copy_(grad)  # without a gate the sum's gradient is the output's
    inputs: tuple[Any, ...] = (grad, *rest, dz, dadd)
    *ahead, dbias = launch_backward(*inputs)
    return tuple(none(u) if g is None else g for g in (*ahead, dz, dbias, dadd))


_scan = register("scan", ["cpu"], _forward, _backward, checkpoint_shape, PAD)


def check(u: Tensor, states: int) -> None:
    """Whether the kernels can take these inputs: ValueError or RuntimeError if not."""
    if states > MAX_STATES:
        raise ValueError(f"selective_scan: backend cpu takes state sizes up to {MAX_STATES}, got {states}")
    if u.device.type != "cpu":
        raise RuntimeError(f"selective_scan: backend cpu needs CPU tensors, got {u.device}")
    if not has_library():
        raise RuntimeError(MISSING)


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
) -> Tensor:
    """Same contract as `selective_scan_reference`; differentiable once; float64 is computed in float32.

    Raises ValueError beyond 64 states, RuntimeError when the kernels were not built or the tensors are not on the CPU.
    """
    check(u, A.shape[1])
    x, step, b, c, gate = (readable(t) for t in (u, delta, B, C, z))
    out = _scan(x, step, A, b, c, D, gate, delta_bias, None, delta_softplus=delta_softplus, reverse=reverse)
    return out.to(u.dtype)
