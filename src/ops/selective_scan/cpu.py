"""The compiled CPU backend as PyTorch operators (vjepa_mamba::scan_forward, scan_backward).

Legend: B batch, E inner width (channels), L sequence length, N state size, T steps between checkpoints.
Inputs float32, bfloat16 or float16, of any strides; states float32. Fastest with channels innermost in memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from src.ops.compiled import (
    ABSENT,
    array,
    call,
    empty_like_layout,
    need_library,
    plain,
    pointer,
    readable,
    threads_for,
)

MAX_STATES = 64
_GRAIN = 1 << 16  # state updates that are worth a thread


def _tile(states: int) -> int:
    """Steps between checkpoints: their memory stays at a quarter of u's for every state size."""
    return 64 * ((states + 15) // 16)


def _lanes() -> int:
    return need_library().kernels_use_lanes(_most_lanes)


_most_lanes = 16


def _padded(states: int) -> int:
    return (states + 3) // 4 * 4


def _checkpoint_shape(u: Tensor, A: Tensor, keep: bool) -> tuple[int, ...]:
    batch, channels, length = u.shape
    tile, lanes = _tile(A.shape[1]), _lanes()
    tiles = max((length + tile - 1) // tile - 1, 0) if keep else 0
    return batch, (channels + lanes - 1) // lanes, tiles, _padded(A.shape[1]), lanes


def _header(u: Tensor, states: int, softplus: bool, reverse: bool) -> list[int]:
    batch, channels, length = u.shape
    tile = min(_tile(states), (length + 15) // 16 * 16)  # short sequences need a small workspace only
    threads = threads_for(batch * channels * length * states, _GRAIN)
    return [batch, channels, length, states, tile, reverse, softplus, threads]


def _workspace(header: list[int], backward: bool, like: Tensor) -> Tensor:
    size = need_library().scan_work_floats(header[4], _padded(header[3]), backward)
    return torch.empty(header[7], size, dtype=torch.float32, device=like.device)


def _forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    softplus: bool,
    reverse: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    out = empty_like_layout(u)
    checkpoints = torch.empty(_checkpoint_shape(u, A, keep), dtype=torch.float32, device=u.device)
    if u.numel() == 0:
        return out, checkpoints
    x, step, b, c, gate = (readable(t) for t in (u, delta, B, C, z))
    a, skip, bias = plain(A), plain(D), plain(delta_bias)
    target = out if out.dtype == x.dtype else torch.empty_like(out, dtype=x.dtype)
    header = _header(u, A.shape[1], softplus, reverse)
    work = _workspace(header, False, u)
    arrays = [array(t) for t in (x, step, b, c, gate, target)] + [ABSENT] * 4
    rest = [pointer(a), pointer(skip), pointer(bias), pointer(checkpoints) if keep else 0, pointer(work), work.shape[1]]
    call("scan_forward", [*header, *(f for fields in arrays for f in fields), *rest, *[0] * 7])
    if target is not out:
        out.copy_(target)
    return out, checkpoints


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
    checkpoints: Tensor,
    softplus: bool,
    reverse: bool,
) -> tuple[Tensor, ...]:
    batch, channels, length = u.shape
    states, padded = A.shape[1], _padded(A.shape[1])
    x, step, b, c, gate, g = (readable(t) for t in (u, delta, B, C, z, grad))
    a, skip, bias = plain(A), plain(D), plain(delta_bias)
    du, ddelta = empty_like_layout(x), empty_like_layout(step)
    dz = empty_like_layout(gate) if gate is not None else None
    new = lambda *shape: torch.empty(shape, dtype=torch.float32, device=u.device)  # noqa: E731
    dA = new(channels, states)
    dD = new(channels) if D is not None else None
    dbias = new(channels) if delta_bias is not None else None
    gB, gC = new(batch, length, padded), new(batch, length, padded)
    if u.numel() == 0:
        for t in (dA, dD, dbias, gB, gC):
            if t is not None:
                t.zero_()
    else:
        header = _header(u, states, softplus, reverse)
        threads, blocks = header[7], checkpoints.shape[1]
        work = _workspace(header, True, u)
        aligned = all((batch * blocks * i // threads) % blocks == 0 for i in range(threads))
        extra = None if aligned else new(threads, 2, length, padded)
        partial = new(batch, blocks, padded + 2, checkpoints.shape[4])
        arrays = [array(t) for t in (x, step, b, c, gate, None, g, du, ddelta, dz)]
        floats = (a, skip, bias, checkpoints, work)
        sums = (gB, gC, extra, partial, dA, dD, dbias)
        fields = [f for one in arrays for f in one]
        call(
            "scan_backward",
            [*header, *fields, *(pointer(t) for t in floats), work.shape[1], *(pointer(t) for t in sums)],
        )
    dB, dC = gB[..., :states].transpose(1, 2).to(B.dtype), gC[..., :states].transpose(1, 2).to(C.dtype)
    none = new(0)
    return (
        du.to(u.dtype),
        ddelta.to(delta.dtype),
        dA.to(A.dtype),
        dB,
        dC,
        dD.to(D.dtype) if D is not None else none,
        dz.to(z.dtype) if z is not None else new(0),
        dbias.to(delta_bias.dtype) if delta_bias is not None else new(0),
    )


_INPUTS = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias"
torch.library.define(
    "vjepa_mamba::scan_forward", f"({_INPUTS}, bool softplus, bool reverse, bool keep) -> (Tensor, Tensor)"
)
torch.library.define(
    "vjepa_mamba::scan_backward",
    f"(Tensor grad, {_INPUTS}, Tensor checkpoints, bool softplus, bool reverse)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
torch.library.impl("vjepa_mamba::scan_forward", "cpu", _forward)
torch.library.impl("vjepa_mamba::scan_backward", "cpu", _backward)


@torch.library.register_fake("vjepa_mamba::scan_forward")
def _(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    softplus: bool,
    reverse: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    checkpoints = u.new_empty(_checkpoint_shape(u, A, keep), dtype=torch.float32)
    return empty_like_layout(u), checkpoints


@torch.library.register_fake("vjepa_mamba::scan_backward")
def _(
    grad: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    checkpoints: Tensor,
    softplus: bool,
    reverse: bool,
) -> tuple[Tensor, ...]:
    none = u.new_empty(0, dtype=torch.float32)
    batch, states, length = B.shape

    def along(x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            return x.new_empty(batch, length, states).transpose(1, 2)
        return x.new_empty(batch, length, _padded(states))[..., :states].transpose(1, 2)

    return (
        empty_like_layout(u),
        empty_like_layout(delta),
        A.new_empty(A.shape),
        along(B),
        along(C),
        D.new_empty(D.shape) if D is not None else none,
        empty_like_layout(z) if z is not None else torch.empty_like(none),
        delta_bias.new_empty(delta_bias.shape) if delta_bias is not None else torch.empty_like(none),
    )


def _setup(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.softplus, ctx.reverse, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, output[1])


def _gradients(ctx: torch.autograd.function.FunctionCtx, grad: Tensor | None, _: Tensor | None) -> tuple:
    if grad is None:
        return (None,) * 11
    u, delta, A, B, C, D, z, delta_bias, checkpoints = ctx.saved_tensors
    du, ddelta, dA, dB, dC, dD, dz, dbias = torch.ops.vjepa_mamba.scan_backward(
        grad, u, delta, A, B, C, D, z, delta_bias, checkpoints, ctx.softplus, ctx.reverse
    )
    optional = [g if x is not None else None for x, g in ((D, dD), (z, dz), (delta_bias, dbias))]
    return du, ddelta, dA, dB, dC, *optional, None, None, None


torch.library.register_autograd("vjepa_mamba::scan_forward", _gradients, setup_context=_setup)


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
    """Same contract as `selective_scan_reference`; differentiable once; N at most 64 (ValueError)."""
    if A.shape[1] > MAX_STATES:
        raise ValueError(f"selective_scan: backend cpu takes state sizes up to {MAX_STATES}, got {A.shape[1]}")
    need_library()
    keep = torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in (u, delta, A, B, C, D, z, delta_bias)
    )
    out, _ = torch.ops.vjepa_mamba.scan_forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, keep)
    return out
