"""The compiled CPU backend (operators vjepa_mamba::scan_forward, scan_backward).

Legend: B batch, E inner width (channels), L sequence length, N state size.
Inputs float32, bfloat16 or float16, of any strides; states float32. Fastest with channels innermost in memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from src.ops.compiled import (
    ABSENT,
    MISSING,
    array,
    as_float32,
    call,
    data_ptr,
    empty_like_layout,
    has_library,
    need_library,
    threads_for,
    to_kernel_dtype,
)
from src.ops.selective_scan.inputs import Direction, ScanInputs
from src.ops.selective_scan.operator import Backend, register, state_gradient

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


def _keep(inputs: ScanInputs, keep: bool) -> list[Tensor]:
    shapes = [_checkpoint_shape(inputs.u, side.A.shape[1], keep) for side in inputs.sides]
    return [inputs.u.new_empty(shape, dtype=torch.float32) for shape in shapes]


def _launch_forward(
    side: Direction, z: Tensor | None, add: Tensor | None, softplus: bool, reverse: bool, kept: Tensor, out: Tensor
) -> None:
    """Writes the scan into `out` and its checkpoints to `kept`; `add`, which may be `out`, joins before the gate."""
    u, delta, A, B, C, D, bias = side
    a, skip, offset = as_float32(A), as_float32(D), as_float32(bias)
    header = _header(u, A.shape[1], softplus, reverse)
    work = _workspace(header, False)
    fields = [f for t in (u, delta, B, C, z, add, out) for f in array(t)] + ABSENT * 5
    floats = [data_ptr(t) for t in (a, skip, offset)]
    rest = [0, *floats, data_ptr(kept) if kept.numel() else 0, data_ptr(work), work.shape[1]]
    call("scan_forward", [*header, *fields, *rest, *[0] * 7])


def _launch_backward(
    grad: Tensor,
    side: Direction,
    z: Tensor | None,
    add: Tensor | None,
    checkpoints: Tensor,
    softplus: bool,
    reverse: bool,
    dz: Tensor | None,
    y_to_dz: bool = False,
) -> list[Tensor | None]:
    """Gradients of the direction; that of z goes to `dz` (the ungated output with `y_to_dz`)."""
    u, delta, A, B, C, D, delta_bias = side
    batch, channels, length = u.shape
    states, padded = A.shape[1], _padded(A.shape[1])
    a, skip, bias = as_float32(A), as_float32(D), as_float32(delta_bias)
    du, ddelta = empty_like_layout(u), empty_like_layout(delta)
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
        fields = [f for t in (u, delta, B, C, z, add, None, grad, du, ddelta, dz, None) for f in array(t)]
        floats = [data_ptr(t) for t in (a, skip, bias, checkpoints, work)]
        sums = [data_ptr(t) for t in (gB, gC, extra, partial, dA, dD, dbias)]
        call("scan_backward", [*header, *fields, y_to_dz, *floats, work.shape[1], *sums])
    for buffer, out in ((gB, dB), (gC, dC)):
        if out.dtype != torch.float32:
            out.copy_(buffer[..., :states].transpose(1, 2))
    parameters = ((A, dA), (D, dD), (delta_bias, dbias))
    gA, gD, gbias = (g.to(t.dtype) if t is not None and g is not None else None for t, g in parameters)
    return [du, ddelta, gA, dB, dC, gD, gbias]


def _forward(inputs: ScanInputs, keep: bool) -> tuple[Tensor, list[Tensor]]:
    """The second direction adds the first one's output in place and gates the sum: no buffer but the output."""
    out, kept = empty_like_layout(inputs.u), _keep(inputs, keep)
    if inputs.u.numel():
        last = len(inputs.sides) - 1
        for i, side in enumerate(inputs.sides):
            z, add = inputs.z if i == last else None, out if i else None
            _launch_forward(side, z, add, inputs.delta_softplus, inputs.runs_backwards(i), kept[i], out)
    return out, kept


def _backward(grad: Tensor, inputs: ScanInputs, kept: Sequence[Tensor]) -> list[Tensor | None]:
    """The first direction leaves its recomputed output where z's gradient will be; the second one reads it there."""
    z = inputs.z
    dz = empty_like_layout(z) if z is not None else None
    got: list[Tensor | None] = []
    for i, side in enumerate(inputs.sides):
        first_of_two, add = i < len(inputs.sides) - 1, dz if i else None
        softplus, reverse = inputs.delta_softplus, inputs.runs_backwards(i)
        got += _launch_backward(grad, side, z, add, kept[i], softplus, reverse, dz, y_to_dz=first_of_two)
    return [*got, dz]


_SCANS = {
    1: register("scan", ["cpu"], 1, Backend(_forward, _backward, _keep, kept=1, pad_states=_PAD)),
    2: register("bidirectional", ["cpu"], 2, Backend(_forward, _backward, _keep, kept=2, pad_states=_PAD)),
}


def selective_scan_cpu(inputs: ScanInputs) -> Tensor:
    """Same contract as `selective_scan_reference`; differentiable once; float64 is computed in float32.

    Raises ValueError beyond 64 states, RuntimeError when the kernels were not built or the tensors are not on the CPU.
    """
    u, states = inputs.u, inputs.shape[3]
    if states > MAX_STATES:
        raise ValueError(f"selective_scan: backend cpu takes state sizes up to {MAX_STATES}, got {states}")
    if u.device.type != "cpu":
        raise RuntimeError(f"selective_scan: backend cpu needs CPU tensors, got {u.device}")
    if not has_library():
        raise RuntimeError(MISSING)
    parameters = (2, 5, 6)  # A, D and delta_bias of a direction are converted by as_float32
    tensors = [x if i % 7 in parameters else to_kernel_dtype(x) for i, x in enumerate(inputs.tensors)]
    return _SCANS[len(inputs.sides)](inputs.like(tensors)).to(u.dtype)
