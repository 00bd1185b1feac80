"""Triton kernels of the scan's forward: the end state of every chunk by itself, and every chunk's outputs.

A program owns a chunk of time of BE channels of one batch item. A lane is a channel and holds its N states in
registers; the next step's values are loaded while a step is computed. Between the two kernels carry_kernel turns end
states into the states that enter the chunks. Legend as in triton_common.py; side 0 or 1 is the direction.
"""

# ruff: noqa: ANN001, ANN201 (kernel arguments are pointers and numbers; a constexpr test stands alone)
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from src.ops.selective_scan.triton_common import (
    column,
    kernel,
    load_channels,
    load_rates,
    load_tile,
    place,
    select,
    sigmoid,
    softplus,
    span,
)


@triton.jit
def advance(h, u, dt, Bt, A, valid, SOFTPLUS: tl.constexpr):
    """One step of the recurrence: (state, step size); a step that is not valid changes nothing."""
    if SOFTPLUS:
        dt, _ = softplus(dt)
    dt = tl.where(valid, dt, 0.0)
    return tl.exp2(dt[:, None] * A) * h + (dt * u)[:, None] * Bt[None, :], dt


@kernel
def end_state_kernel(
    u_ptr, u1_ptr, delta_ptr, delta1_ptr, A_ptr, A1_ptr, B_ptr, B1_ptr, bias_ptr, bias1_ptr, state_ptr, total_ptr,
    E, L, N: tl.constexpr, T, batch, chunks, programs, blocks, reverse,
    u_b, u_e, u_l, d_b, d_e, d_l, A_e, A_n, B_b, B_n, B_l,
    HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, BE: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """state (sides, B, chunks, N, E): end state from zero of the first `programs` chunks; total: the sum of steps."""
    side = tl.program_id(1)
    b, chunk, block = place(blocks, programs, 0)
    t, steps, way = span(chunk, chunks, T, L, side ^ reverse)
    e, n, r = block * BE + tl.arange(0, BE), tl.arange(0, BN), tl.arange(0, 2)
    in_e, in_n = e < E, n < N
    both = in_e[:, None] & in_n[None, :]
    A = load_rates(select(side, A_ptr, A1_ptr), e, n, A_e, A_n, both)
    bias = load_channels(select(side, bias_ptr, bias1_ptr), e, in_e, HAS_BIAS)
    way_r = r * way
    u_at = select(side, u_ptr, u1_ptr) + b * u_b
    d_at = select(side, delta_ptr, delta1_ptr) + b * d_b
    B_at = select(side, B_ptr, B1_ptr) + b * B_b
    valid = (r < steps)[None, :]
    u_next = load_tile(u_at, t, way_r, u_l, e, u_e, in_e, valid)
    d_next = load_tile(d_at, t, way_r, d_l, e, d_e, in_e, valid)
    B_next = load_tile(B_at, t, way_r, B_l, n, B_n, in_n, valid)
    h = tl.zeros((BE, BN), tl.float32)
    total = tl.zeros((BE,), tl.float32)
    for i in tl.range(0, steps, 2, num_stages=1):
        u, u1 = tl.split(u_next.to(tl.float32))
        dt, dt1 = tl.split(d_next.to(tl.float32))
        B_both = B_next
        t += 2 * way
        valid = (r < steps - i - 2)[None, :]
        u_next = load_tile(u_at, t, way_r, u_l, e, u_e, in_e, valid)
        d_next = load_tile(d_at, t, way_r, d_l, e, d_e, in_e, valid)
        B_next = load_tile(B_at, t, way_r, B_l, n, B_n, in_n, valid)
        h, dt = advance(h, u, dt + bias, column(B_both, r, 0), A, True, SOFTPLUS)
        h, dt1 = advance(h, u1, dt1 + bias, column(B_both, r, 1), A, i + 1 < steps, SOFTPLUS)
        total += dt + dt1
    row = (side * batch + b) * chunks + chunk
    tl.store(state_ptr + (row * N + n[None, :]) * E + e[:, None], h, mask=both)
    tl.store(total_ptr + row * E + e, total, mask=in_e)


@kernel
def output_kernel(
    u_ptr, u1_ptr, delta_ptr, delta1_ptr, A_ptr, A1_ptr, B_ptr, B1_ptr, C_ptr, C1_ptr, D_ptr, D1_ptr,
    bias_ptr, bias1_ptr, z_ptr, state_ptr, out_ptr, y_ptr,
    E, L, N: tl.constexpr, T, batch, chunks, blocks, reverse,
    u_b, u_e, u_l, d_b, d_e, d_l, A_e, A_n, B_b, B_n, B_l, C_b, C_n, C_l, z_b, z_e, z_l, o_b, o_e, o_l,
    SIDES: tl.constexpr, HAS_STATE: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr,
    KEEP: tl.constexpr, SOFTPLUS: tl.constexpr, BE: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """out (B, E, L): every direction's outputs, added and gated; y: the same before the gate."""
    b, chunk, block = place(blocks, chunks, 0)
    e, n, r = block * BE + tl.arange(0, BE), tl.arange(0, BN), tl.arange(0, 2)
    in_e, in_n = e < E, n < N
    both = in_e[:, None] & in_n[None, :]
    for side in tl.static_range(SIDES):
        turn = chunk
        if (side ^ reverse) == 1:
            turn = chunks - 1 - chunk
        t, steps, way = span(turn, chunks, T, L, side ^ reverse)
        A = load_rates(A1_ptr if side else A_ptr, e, n, A_e, A_n, both)
        bias = load_channels(bias1_ptr if side else bias_ptr, e, in_e, HAS_BIAS)
        D = load_channels(D1_ptr if side else D_ptr, e, in_e, HAS_D)
        h = tl.zeros((BE, BN), tl.float32)
        if HAS_STATE:
            row = (side * batch + b) * chunks + turn
            h = tl.load(state_ptr + (row * N + n[None, :]) * E + e[:, None], mask=both, other=0.0)
        way_r = r * way
        u_at = (u1_ptr if side else u_ptr) + b * u_b
        d_at = (delta1_ptr if side else delta_ptr) + b * d_b
        B_at = (B1_ptr if side else B_ptr) + b * B_b
        C_at = (C1_ptr if side else C_ptr) + b * C_b
        z_at = z_ptr + b * z_b
        valid = (r < steps)[None, :]
        u_next = load_tile(u_at, t, way_r, u_l, e, u_e, in_e, valid)
        d_next = load_tile(d_at, t, way_r, d_l, e, d_e, in_e, valid)
        B_next = load_tile(B_at, t, way_r, B_l, n, B_n, in_n, valid)
        C_next = load_tile(C_at, t, way_r, C_l, n, C_n, in_n, valid)
        z_next = u_next
        if HAS_Z and side == SIDES - 1:
            z_next = load_tile(z_at, t, way_r, z_l, e, z_e, in_e, valid)
        if side > 0:
            tl.debug_barrier()  # the first direction's outputs are read back
        for i in tl.range(0, steps, 2, num_stages=1):
            u, u1 = tl.split(u_next.to(tl.float32))
            dt, dt1 = tl.split(d_next.to(tl.float32))
            z, z1 = tl.split(z_next.to(tl.float32))
            B_both, C_both = B_next, C_next
            at = b * o_b + t.to(tl.int64) * o_l + e * o_e
            o_step = o_l * way
            t += 2 * way
            valid = (r < steps - i - 2)[None, :]
            u_next = load_tile(u_at, t, way_r, u_l, e, u_e, in_e, valid)
            d_next = load_tile(d_at, t, way_r, d_l, e, d_e, in_e, valid)
            B_next = load_tile(B_at, t, way_r, B_l, n, B_n, in_n, valid)
            C_next = load_tile(C_at, t, way_r, C_l, n, C_n, in_n, valid)
            if HAS_Z and side == SIDES - 1:
                z_next = load_tile(z_at, t, way_r, z_l, e, z_e, in_e, valid)
            second = in_e & (i + 1 < steps)
            y, y1 = D * u, D * u1
            if side > 0:
                y += tl.load(out_ptr + at, mask=in_e, other=0.0).to(tl.float32)
                y1 += tl.load(out_ptr + at + o_step, mask=second, other=0.0).to(tl.float32)
            h, _ = advance(h, u, dt + bias, column(B_both, r, 0), A, True, SOFTPLUS)
            y += tl.sum(h * column(C_both, r, 0)[None, :], axis=1)
            h, _ = advance(h, u1, dt1 + bias, column(B_both, r, 1), A, i + 1 < steps, SOFTPLUS)
            y1 += tl.sum(h * column(C_both, r, 1)[None, :], axis=1)
            if KEEP and HAS_Z and side == SIDES - 1:
                tl.store(y_ptr + at, y, mask=in_e)
                tl.store(y_ptr + at + o_step, y1, mask=second)
            if HAS_Z and side == SIDES - 1:
                y = y * z * sigmoid(z)
                y1 = y1 * z1 * sigmoid(z1)
            tl.store(out_ptr + at, y, mask=in_e)
            tl.store(out_ptr + at + o_step, y1, mask=second)
