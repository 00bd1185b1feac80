"""Triton kernels of the selective scan, forward and backward, either direction (imported only when asked for).

One program owns a block of channels of one batch item, holds their states (N x channels) in registers and walks
through time; the loads of the next steps are under way while a step is computed (num_stages). The backward goes
through the tiles between checkpoints from the last to the first: it rewrites a tile's states into a scratch of one
tile, then walks back over it. Sums over channels (dB, dC) are atomic, so their last bits vary between runs on a GPU.
With TRITON_INTERPRET=1 the kernels run on CPU tensors.

Legend: B batch, E inner width (channels), L sequence length, N state size, T steps of a tile.
"""

# ruff: noqa: ANN001, ANN202, SIM102 (kernel arguments are pointers and numbers; a constexpr test stands alone)

from __future__ import annotations

import os
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from src.ops.compiled import empty_like_layout
from src.ops.selective_scan.operator import none, register, state_gradient

_TILE = 64
_CHANNELS = 32  # of one program: a warp's lanes; each lane holds all states of its channel


@triton.jit
def _softplus(x):
    """max(x, 0) + log1p(e), e = exp(-|x|), log1p by the atanh series; and the derivative."""
    e = tl.exp(-tl.abs(x))
    s = e / (2.0 + e)
    w = s * s
    p = 0.2815777836310908 * w + 0.27965157745197267
    p = p * w + 0.40024595230703747
    p = p * w + 0.6666632164137777
    p = p * w + 2.0
    r = 1.0 / (1.0 + e)
    return tl.where(x > 0, x, 0.0) + s * p, tl.where(x > 0, r, e * r)


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _forward_kernel(
    u_ptr, delta_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, add_ptr, out_ptr, keep_ptr,
    E, L, N, tiles,
    u_b, u_e, u_l, d_b, d_e, d_l, B_b, B_n, B_l, C_b, C_n, C_l, z_b, z_e, z_l, a_b, a_e, a_l, o_b, o_e, o_l,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_ADD: tl.constexpr, SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr, KEEP: tl.constexpr, T: tl.constexpr, BE: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    e = tl.program_id(1) * BE + tl.arange(0, BE)
    n = tl.arange(0, BN)
    in_e, in_n = e < E, n < N
    both = in_n[:, None] & in_e[None, :]
    A = tl.load(A_ptr + e[None, :] * N + n[:, None], mask=both, other=0.0)
    D = tl.load(D_ptr + e, mask=in_e, other=0.0) if HAS_D else tl.zeros((BE,), tl.float32)
    bias = tl.load(bias_ptr + e, mask=in_e, other=0.0) if HAS_BIAS else tl.zeros((BE,), tl.float32)
    h = tl.zeros((BN, BE), tl.float32)
    for i in tl.range(0, L, num_stages=4):
        t = (L - 1 - i if REVERSE else i) + 0 * b  # 64 bits
        if KEEP:
            if (i % T == 0) & (i > 0):
                row = (b * tiles + i // T - 1) * N + n[:, None]
                tl.store(keep_ptr + row * E + e[None, :], h, mask=both)
        u = tl.load(u_ptr + b * u_b + e * u_e + t * u_l, mask=in_e, other=0.0).to(tl.float32)
        dt = tl.load(delta_ptr + b * d_b + e * d_e + t * d_l, mask=in_e, other=0.0).to(tl.float32) + bias
        Bt = tl.load(B_ptr + b * B_b + n * B_n + t * B_l, mask=in_n, other=0.0).to(tl.float32)
        Ct = tl.load(C_ptr + b * C_b + n * C_n + t * C_l, mask=in_n, other=0.0).to(tl.float32)
        if SOFTPLUS:
            dt, _ = _softplus(dt)
        h = tl.exp(dt[None, :] * A) * h + (dt * u)[None, :] * Bt[:, None]
        y = tl.sum(h * Ct[:, None], axis=0) + D * u
        if HAS_ADD:
            y += tl.load(add_ptr + b * a_b + e * a_e + t * a_l, mask=in_e, other=0.0).to(tl.float32)
        if HAS_Z:
            z = tl.load(z_ptr + b * z_b + e * z_e + t * z_l, mask=in_e, other=0.0).to(tl.float32)
            y = y * z * _sigmoid(z)
        tl.store(out_ptr + b * o_b + e * o_e + t * o_l, y, mask=in_e)


@triton.jit
def _backward_kernel(
    g_ptr, u_ptr, delta_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, add_ptr, keep_ptr, scratch_ptr,
    du_ptr, dd_ptr, dA_ptr, dB_ptr, dC_ptr, dD_ptr, dz_ptr, dbias_ptr, dadd_ptr,
    E, L, N, tiles,
    g_b, g_e, g_l, u_b, u_e, u_l, d_b, d_e, d_l, B_b, B_n, B_l, C_b, C_n, C_l, z_b, z_e, z_l, a_b, a_e, a_l,
    du_b, du_e, du_l, dd_b, dd_e, dd_l, dz_b, dz_e, dz_l, da_b, da_e, da_l,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_ADD: tl.constexpr, SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr, T: tl.constexpr, BE: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    e = tl.program_id(1) * BE + tl.arange(0, BE)
    n = tl.arange(0, BN)
    in_e, in_n = e < E, n < N
    both = in_n[:, None] & in_e[None, :]
    A = tl.load(A_ptr + e[None, :] * N + n[:, None], mask=both, other=0.0)
    D = tl.load(D_ptr + e, mask=in_e, other=0.0) if HAS_D else tl.zeros((BE,), tl.float32)
    bias = tl.load(bias_ptr + e, mask=in_e, other=0.0) if HAS_BIAS else tl.zeros((BE,), tl.float32)
    scratch = scratch_ptr + (b * T * N + n[:, None]) * E + e[None, :]  # state before step j of the tile: + j * N * E
    dh = tl.zeros((BN, BE), tl.float32)
    dA = tl.zeros((BN, BE), tl.float32)
    dD = tl.zeros((BE,), tl.float32)
    dbias = tl.zeros((BE,), tl.float32)
    for k in range(tiles):
        tile = tiles - 1 - k
        steps = tl.minimum(L - tile * T, T)
        row = (b * (tiles - 1) + tile - 1) * N + n[:, None]
        h = tl.load(keep_ptr + row * E + e[None, :], mask=both & (tile > 0), other=0.0)
        for j in tl.range(0, steps, num_stages=4):
            i = tile * T + j
            t = (L - 1 - i if REVERSE else i) + 0 * b  # 64 bits
            tl.store(scratch + j * E * N, h, mask=both)
            u = tl.load(u_ptr + b * u_b + e * u_e + t * u_l, mask=in_e, other=0.0).to(tl.float32)
            dt = tl.load(delta_ptr + b * d_b + e * d_e + t * d_l, mask=in_e, other=0.0).to(tl.float32) + bias
            Bt = tl.load(B_ptr + b * B_b + n * B_n + t * B_l, mask=in_n, other=0.0).to(tl.float32)
            if SOFTPLUS:
                dt, _ = _softplus(dt)
            h = tl.exp(dt[None, :] * A) * h + (dt * u)[None, :] * Bt[:, None]
        tl.debug_barrier()  # the states are read back below, perhaps by other threads
        for back in tl.range(0, steps, num_stages=3):
            j = steps - 1 - back
            i = tile * T + j
            t = (L - 1 - i if REVERSE else i) + 0 * b  # 64 bits
            u = tl.load(u_ptr + b * u_b + e * u_e + t * u_l, mask=in_e, other=0.0).to(tl.float32)
            dt = tl.load(delta_ptr + b * d_b + e * d_e + t * d_l, mask=in_e, other=0.0).to(tl.float32) + bias
            Bt = tl.load(B_ptr + b * B_b + n * B_n + t * B_l, mask=in_n, other=0.0).to(tl.float32)
            Ct = tl.load(C_ptr + b * C_b + n * C_n + t * C_l, mask=in_n, other=0.0).to(tl.float32)
            g = tl.load(g_ptr + b * g_b + e * g_e + t * g_l, mask=in_e, other=0.0).to(tl.float32)
            before = tl.load(scratch + j * E * N, mask=both, other=0.0)
            slope = 1.0
            if SOFTPLUS:
                dt, slope = _softplus(dt)
            decay = tl.exp(dt[None, :] * A)
            h = decay * before + (dt * u)[None, :] * Bt[:, None]
            if HAS_Z:
                z = tl.load(z_ptr + b * z_b + e * z_e + t * z_l, mask=in_e, other=0.0).to(tl.float32)
                gate = _sigmoid(z)
                y = tl.sum(h * Ct[:, None], axis=0) + D * u
                if HAS_ADD:
                    y += tl.load(add_ptr + b * a_b + e * a_e + t * a_l, mask=in_e, other=0.0).to(tl.float32)
                dz = g * y * (gate + z * gate * (1.0 - gate))
                tl.store(dz_ptr + b * dz_b + e * dz_e + t * dz_l, dz, mask=in_e)
                g = g * z * gate
            if HAS_ADD:
                tl.store(dadd_ptr + b * da_b + e * da_e + t * da_l, g, mask=in_e)
            dh += g[None, :] * Ct[:, None]
            tl.atomic_add(dC_ptr + (b * L + t) * N + n, tl.sum(g[None, :] * h, axis=1), mask=in_n, sem="relaxed")
            tl.atomic_add(
                dB_ptr + (b * L + t) * N + n, tl.sum(dh * (dt * u)[None, :], axis=1), mask=in_n, sem="relaxed"
            )
            dx = tl.sum(dh * Bt[:, None], axis=0)
            dh = dh * decay
            through = dh * before
            dA += through * dt[None, :]
            ddt = (tl.sum(through * A, axis=0) + dx * u) * slope
            dD += g * u
            dbias += ddt
            tl.store(du_ptr + b * du_b + e * du_e + t * du_l, dx * dt + D * g, mask=in_e)
            tl.store(dd_ptr + b * dd_b + e * dd_e + t * dd_l, ddt, mask=in_e)
        tl.debug_barrier()
    tl.store(dA_ptr + (b * E + e[None, :]) * N + n[:, None], dA, mask=both)
    tl.store(dD_ptr + b * E + e, dD, mask=in_e)
    tl.store(dbias_ptr + b * E + e, dbias, mask=in_e)


def _strides(*tensors: Tensor) -> list[int]:
    return [s for x in tensors for s in x.stride()]


def _or(x: Tensor | None, other: Tensor) -> Tensor:
    return x if x is not None else other


def _checkpoint_shape(u: Tensor, states: int, keep: bool) -> tuple[int, ...]:
    batch, channels, length = u.shape
    return batch, max((length + _TILE - 1) // _TILE - 1, 0) if keep else 0, states, channels


def _constants(
    A: Tensor, D: Tensor | None, z: Tensor | None, bias: Tensor | None, add: Tensor | None
) -> dict[str, int | bool]:
    return {
        "HAS_D": D is not None,
        "HAS_Z": z is not None,
        "HAS_BIAS": bias is not None,
        "HAS_ADD": add is not None,
        "T": _TILE,
        "BE": _CHANNELS,
        "BN": triton.next_power_of_2(A.shape[1]),
        "num_warps": 1 if A.shape[1] <= 32 else 4,
    }


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
    checkpoints = u.new_empty(_checkpoint_shape(u, A.shape[1], keep), dtype=torch.float32)
    if u.numel() == 0:
        return out, checkpoints
    batch, channels, length = u.shape
    a, skip, bias = (x.float().contiguous() if x is not None else None for x in (A, D, delta_bias))
    _forward_kernel[(batch, triton.cdiv(channels, _CHANNELS))](
        u, delta, a, B, C, skip, z, bias, add, out, checkpoints, channels, length, A.shape[1], checkpoints.shape[1],
        *_strides(u, delta, B, C, _or(z, u), _or(add, u), out),
        SOFTPLUS=softplus, REVERSE=reverse, KEEP=keep, **_constants(A, D, z, delta_bias, add),
    )  # fmt: skip
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
    add: Tensor | None,
    checkpoints: Tensor,
    softplus: bool,
    reverse: bool,
) -> tuple[Tensor, ...]:
    batch, channels, length = u.shape
    states = A.shape[1]
    a, skip, bias = (x.float().contiguous() if x is not None else None for x in (A, D, delta_bias))
    du, ddelta = empty_like_layout(u), empty_like_layout(delta)
    dz = empty_like_layout(z) if z is not None else none(u)
    dadd = empty_like_layout(u) if add is not None else none(u)
    (gB, dB), (gC, dC) = state_gradient(B, 1), state_gradient(C, 1)
    gB.zero_()
    gC.zero_()
    floats: dict[str, Any] = {"dtype": torch.float32, "device": u.device}
    dA = torch.zeros(batch, channels, states, **floats)
    dD, dbias = torch.zeros(batch, channels, **floats), torch.zeros(batch, channels, **floats)
    if u.numel():
        scratch = torch.empty(batch, _TILE, states, channels, **floats)
        tiles = triton.cdiv(length, _TILE)
        _backward_kernel[(batch, triton.cdiv(channels, _CHANNELS))](
            grad, u, delta, a, B, C, skip, z, bias, add, checkpoints, scratch,
            du, ddelta, dA, gB, gC, dD, dz, dbias, dadd, channels, length, states, tiles,
            *_strides(grad, u, delta, B, C, _or(z, u), _or(add, u), du, ddelta),
            *_strides(dz if z is not None else du, dadd if add is not None else du),
            SOFTPLUS=softplus, REVERSE=reverse, **_constants(A, D, z, delta_bias, add),
        )  # fmt: skip
    for buffer, out in ((gB, dB), (gC, dC)):
        if out.dtype != torch.float32:
            out.copy_(buffer.transpose(1, 2))
    return (
        du,
        ddelta,
        dA.sum(0).to(A.dtype),
        dB,
        dC,
        dD.sum(0).to(D.dtype) if D is not None else none(u),
        dz,
        dbias.sum(0).to(delta_bias.dtype) if delta_bias is not None else none(u),
        dadd,
    )


_scan = register("triton_scan", ["cuda", "cpu"], _forward, _backward, _checkpoint_shape, 1)


def selective_scan_triton(
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
    """Same contract as `selective_scan_reference` on CUDA tensors (CPU tensors under TRITON_INTERPRET=1).

    `add` (B, E, L) joins the output before the gate.
    """
    if u.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(f"selective_scan: backend triton needs CUDA tensors, got {u.device}")
    return _scan(u, delta, A, B, C, D, z, delta_bias, add, delta_softplus=delta_softplus, reverse=reverse)
