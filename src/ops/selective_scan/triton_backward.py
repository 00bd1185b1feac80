"""Triton kernels of the scan's backward: what leaves every chunk towards earlier ones, and every chunk's gradients.

The gradient of the state runs against the scan's order, chunk by chunk as in the forward; carry_kernel joins the
chunks. gradient_kernel walks a chunk forward once, leaving every second state in a scratch that stays in the cache,
then backward, two steps at a time: it rebuilds their states in registers. Sums over channels (dB, dC) are products
with ones on the tensor cores or exact sums; they go to memory per channel block, and sum_kernel adds those in order.
Nothing is atomic: results are the same bit for bit. Legend as in triton_common.py.
"""

# ruff: noqa: ANN001, ANN201 (kernel arguments are pointers and numbers; a constexpr test stands alone)
# mypy: disable-error-code="no-untyped-def, assignment"

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

_LN2 = tl.constexpr(0.6931471805599453)
GROUP = 2  # steps whose states the backward holds at a time
_K = tl.constexpr(GROUP)


@triton.jit
def step_size(delta, valid, SOFTPLUS: tl.constexpr):
    """(step, its derivative by delta), both 0 where the step is not valid."""
    dt, slope = delta, tl.full(delta.shape, 1.0, tl.float32)
    if SOFTPLUS:
        dt, slope = softplus(delta)
    return tl.where(valid, dt, 0.0), tl.where(valid, slope, 0.0)


@kernel
def start_gradient_kernel(
    g_ptr, delta_ptr, delta1_ptr, A_ptr, A1_ptr, C_ptr, C1_ptr, bias_ptr, bias1_ptr, z_ptr, state_ptr, total_ptr,
    E, L, N: tl.constexpr, T, batch, chunks, programs, blocks, reverse,
    g_b, g_e, g_l, d_b, d_e, d_l, A_e, A_n, C_b, C_n, C_l, z_b, z_e, z_l,
    HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, BE: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """state (sides, B, chunks, N, E): gradient of the state that enters a chunk, by that chunk alone; total: of steps.

    Of the last `programs` chunks in scan order.
    """
    side = tl.program_id(1)
    b, chunk, block = place(blocks, programs, chunks - programs)
    t, steps, way = span(chunk, chunks, T, L, side ^ reverse)
    e, n, r = block * BE + tl.arange(0, BE), tl.arange(0, BN), tl.arange(0, 2)
    in_e, in_n = e < E, n < N
    both = in_e[:, None] & in_n[None, :]
    A = load_rates(select(side, A_ptr, A1_ptr), e, n, A_e, A_n, both)
    bias = load_channels(select(side, bias_ptr, bias1_ptr), e, in_e, HAS_BIAS)
    g_at = g_ptr + b * g_b
    d_at = select(side, delta_ptr, delta1_ptr) + b * d_b
    C_at = select(side, C_ptr, C1_ptr) + b * C_b
    z_at = z_ptr + b * z_b
    t += (steps - 1) * way
    way_r = -r * way
    valid = (r < steps)[None, :]
    g_next = load_tile(g_at, t, way_r, g_l, e, g_e, in_e, valid)
    d_next = load_tile(d_at, t, way_r, d_l, e, d_e, in_e, valid)
    C_next = load_tile(C_at, t, way_r, C_l, n, C_n, in_n, valid)
    z_next = g_next
    if HAS_Z:
        z_next = load_tile(z_at, t, way_r, z_l, e, z_e, in_e, valid)
    dh = tl.zeros((BE, BN), tl.float32)
    total = tl.zeros((BE,), tl.float32)
    for i in tl.range(0, steps, 2, num_stages=1):
        g, g1 = tl.split(g_next.to(tl.float32))
        d, d1 = tl.split(d_next.to(tl.float32))
        z, z1 = tl.split(z_next.to(tl.float32))
        C_both = C_next
        t -= 2 * way
        valid = (r < steps - i - 2)[None, :]
        g_next = load_tile(g_at, t, way_r, g_l, e, g_e, in_e, valid)
        d_next = load_tile(d_at, t, way_r, d_l, e, d_e, in_e, valid)
        C_next = load_tile(C_at, t, way_r, C_l, n, C_n, in_n, valid)
        if HAS_Z:
            z_next = load_tile(z_at, t, way_r, z_l, e, z_e, in_e, valid)
            g *= z * sigmoid(z)
            g1 *= z1 * sigmoid(z1)
        dt, _ = step_size(d + bias, True, SOFTPLUS)
        dt1, _ = step_size(d1 + bias, i + 1 < steps, SOFTPLUS)
        dh = (dh + g[:, None] * column(C_both, r, 0)[None, :]) * tl.exp2(dt[:, None] * A)
        dh = (dh + g1[:, None] * column(C_both, r, 1)[None, :]) * tl.exp2(dt1[:, None] * A)
        total += dt + dt1
    row = (side * batch + b) * chunks + chunk
    tl.store(state_ptr + (row * N + n[None, :]) * E + e[:, None], dh, mask=both)
    tl.store(total_ptr + row * E + e, total, mask=in_e)


@kernel
def gradient_kernel(
    g_ptr, u_ptr, u1_ptr, delta_ptr, delta1_ptr, A_ptr, A1_ptr, B_ptr, B1_ptr, C_ptr, C1_ptr, D_ptr, D1_ptr,
    bias_ptr, bias1_ptr, z_ptr, y_ptr, state_ptr, dstate_ptr, scratch_ptr,
    du_ptr, du1_ptr, dd_ptr, dd1_ptr, dz_ptr, sums_ptr, part_ptr,
    E, L, N: tl.constexpr, T, batch, chunks, blocks, items, reverse, one,
    g_b, g_e, g_l, u_b, u_e, u_l, d_b, d_e, d_l, A_e, A_n, B_b, B_n, B_l, C_b, C_n, C_l, z_b, z_e, z_l,
    y_b, y_e, y_l, du_b, du_e, du_l, dd_b, dd_e, dd_l, dz_b, dz_e, dz_l,
    HAS_STATE: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr,
    SOFTPLUS: tl.constexpr, EXACT: tl.constexpr, UNIT: tl.constexpr, BE: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Gradients; part (sides, B, L, blocks, 2, N): dB and dC by channel block.

    sums (sides, B, chunks, E N + 2 E): dA, dD and dbias by chunk. scratch (programs, T / 2, N, BE).
    A program takes every programs-th of the items.
    """
    if UNIT:  # channels innermost: one offset for all tensors instead of eight, which spares registers
        g_e, u_e, d_e, z_e, y_e, du_e, dd_e, dz_e = 1, 1, 1, 1, 1, 1, 1, 1
    n, r = tl.arange(0, BN), tl.arange(0, _K)
    in_n = n < N
    lane = tl.arange(0, BE)
    scratch = scratch_ptr + tl.program_id(0).to(tl.int64) * (T // _K) * N * BE + n[None, :] * BE + lane[:, None]
    place8 = tl.arange(0, 8)
    for item in tl.range(tl.program_id(0), items, tl.num_programs(0), num_stages=1):
        block = item % blocks
        chunk = item // blocks % chunks
        line = item // blocks // chunks  # side and batch item
        side = line // batch
        b = (line % batch).to(tl.int64)
        row = line.to(tl.int64)
        t, steps, way = span(chunk, chunks, T, L, side ^ reverse)
        e = block * BE + lane
        in_e = e < E
        both = in_e[:, None] & in_n[None, :]
        A = load_rates(select(side, A_ptr, A1_ptr), e, n, A_e, A_n, both)
        bias = load_channels(select(side, bias_ptr, bias1_ptr), e, in_e, HAS_BIAS)
        D = load_channels(select(side, D_ptr, D1_ptr), e, in_e, HAS_D)
        h, dh = tl.zeros((BE, BN), tl.float32), tl.zeros((BE, BN), tl.float32)
        if HAS_STATE:
            state = ((row * chunks + chunk) * N + n[None, :]) * E + e[:, None]
            h = tl.load(state_ptr + state, mask=both, other=0.0)
            dh = tl.load(dstate_ptr + state, mask=both, other=0.0)
        u_at = select(side, u_ptr, u1_ptr) + b * u_b
        d_at = select(side, delta_ptr, delta1_ptr) + b * d_b
        B_at = select(side, B_ptr, B1_ptr) + b * B_b
        C_at = select(side, C_ptr, C1_ptr) + b * C_b
        g_at = g_ptr + b * g_b
        z_at = z_ptr + b * z_b
        way_r = r * way
        groups = (steps + _K - 1) // _K
        tl.store(scratch, h, mask=in_n[None, :])
        valid = (r < steps)[None, :]
        u_next = load_tile(u_at, t, way_r, u_l, e, u_e, in_e, valid)
        d_next = load_tile(d_at, t, way_r, d_l, e, d_e, in_e, valid)
        B_next = load_tile(B_at, t, way_r, B_l, n, B_n, in_n, valid)
        for j in tl.range(1, groups, num_stages=1):
            u = tl.split(u_next.to(tl.float32))
            d = tl.split(d_next.to(tl.float32))
            B_group = B_next
            t += _K * way
            valid = (r < steps - j * _K)[None, :]
            u_next = load_tile(u_at, t, way_r, u_l, e, u_e, in_e, valid)
            d_next = load_tile(d_at, t, way_r, d_l, e, d_e, in_e, valid)
            B_next = load_tile(B_at, t, way_r, B_l, n, B_n, in_n, valid)
            for k in tl.static_range(_K):
                dt, _ = step_size(d[k] + bias, True, SOFTPLUS)
                h = tl.exp2(dt[:, None] * A) * h + (dt * u[k])[:, None] * column(B_group, r, k)[None, :]
            tl.store(scratch + j * N * BE, h, mask=in_n[None, :])
        tl.debug_barrier()  # the states are read back below
        dA = tl.zeros((BE, BN), tl.float32)
        dD, dbias = tl.zeros((BE,), tl.float32), tl.zeros((BE,), tl.float32)
        valid = (r < steps - (groups - 1) * _K)[None, :]
        C_next = load_tile(C_at, t, way_r, C_l, n, C_n, in_n, valid)
        g_next = load_tile(g_at, t, way_r, g_l, e, g_e, in_e, valid)
        z_next = g_next
        if HAS_Z:
            z_next = load_tile(z_at, t, way_r, z_l, e, z_e, in_e, valid)
        for i in tl.range(0, groups, num_stages=1):
            j = groups - 1 - i
            h = tl.load(scratch + j * N * BE, mask=in_n[None, :], other=0.0)
            u = tl.split(u_next.to(tl.float32))
            d = tl.split(d_next.to(tl.float32))
            g = tl.split(g_next.to(tl.float32))
            z = tl.split(z_next.to(tl.float32))
            B_group, C_group = B_next, C_next
            first = t.to(tl.int64)
            t -= _K * way
            more = j > 0
            u_next = load_tile(u_at, t, way_r, u_l, e, u_e, in_e, more)
            d_next = load_tile(d_at, t, way_r, d_l, e, d_e, in_e, more)
            B_next = load_tile(B_at, t, way_r, B_l, n, B_n, in_n, more)
            C_next = load_tile(C_at, t, way_r, C_l, n, C_n, in_n, more)
            g_next = load_tile(g_at, t, way_r, g_l, e, g_e, in_e, more)
            if HAS_Z:
                z_next = load_tile(z_at, t, way_r, z_l, e, z_e, in_e, more)
            h_all = (h,)
            dt_all = ()
            slope_all = ()
            a_all = ()
            for k in tl.static_range(_K):
                dt, slope = step_size(d[k] + bias, j * _K + k < steps, SOFTPLUS)
                a = tl.exp2(dt[:, None] * A)
                h = a * h + (dt * u[k])[:, None] * column(B_group, r, k)[None, :]
                h_all += (h,)
                dt_all += (dt,)
                slope_all += (slope,)
                a_all += (a,)
            # Times one: else the compiler keeps what it has computed above in registers that it does not have.
            B_again = B_group.to(tl.float32) * one
            acc = tl.zeros((BN, 8), tl.float32)
            for k in tl.static_range(_K - 1, -1, -1):
                inside = in_e & (j * _K + k < steps)
                dt, gk = dt_all[k], g[k]
                if HAS_Z:
                    gate = sigmoid(z[k])
                    if side == 0:
                        y = tl.load(y_ptr + b * y_b + (first + way * k) * y_l + e * y_e, mask=inside, other=0.0)
                        dz = gk * y.to(tl.float32) * gate * (1.0 + z[k] * (1.0 - gate))
                        tl.store(dz_ptr + b * dz_b + (first + way * k) * dz_l + e * dz_e, dz, mask=inside)
                    gk = gk * z[k] * gate
                dh += gk[:, None] * column(C_group, r, k)[None, :]
                to_C = gk[:, None] * h_all[k + 1]
                to_B = dh * (dt * u[k])[:, None]
                if EXACT:
                    part = part_ptr + ((row * L + first + way * k) * blocks + block) * 2 * N + n
                    tl.store(part, tl.sum(to_B, axis=0), mask=in_n & (j * _K + k < steps))
                    tl.store(part + N, tl.sum(to_C, axis=0), mask=in_n & (j * _K + k < steps))
                else:
                    ones = tl.full((BE, 8), 1.0, tl.float32)
                    acc = tl.where(place8[None, :] == k, tl.dot(tl.trans(to_B), ones), acc)
                    acc = tl.where(place8[None, :] == k + 4, tl.dot(tl.trans(to_C), ones), acc)
                dx = tl.sum(dh * column(B_again, r, k)[None, :], axis=1)
                dh *= a_all[k]
                through = dh * h_all[k]
                dA += through * dt[:, None]
                ddt = (tl.sum(through * A, axis=1) * _LN2 + dx * u[k]) * slope_all[k]
                dD += gk * u[k]
                dbias += ddt
                du_at = select(side, du_ptr, du1_ptr) + b * du_b + (first + way * k) * du_l + e * du_e
                dd_at = select(side, dd_ptr, dd1_ptr) + b * dd_b + (first + way * k) * dd_l + e * dd_e
                tl.store(du_at, dx * dt + D * gk, mask=inside)
                tl.store(dd_at, ddt, mask=inside)
            if not EXACT:
                k8 = place8 % 4
                part = part_ptr + ((row * L + first + way * k8[None, :]) * blocks + block) * 2 * N
                tl.store(
                    part + place8[None, :] // 4 * N + n[:, None],
                    acc,
                    mask=in_n[:, None] & (k8 < _K)[None, :] & (k8 < steps - j * _K)[None, :],
                )
        sums = sums_ptr + (row * chunks + chunk) * (N + 2) * E
        tl.store(sums + e[:, None] * N + n[None, :], dA, mask=both)
        tl.store(sums + N * E + e, dD, mask=in_e)
        tl.store(sums + (N + 1) * E + e, dbias, mask=in_e)
        tl.debug_barrier()  # the next item writes the scratch


@kernel
def sum_kernel(
    part_ptr, dB_ptr, dB1_ptr, dC_ptr, dC1_ptr, L, N: tl.constexpr, batch, blocks, BT: tl.constexpr, BN: tl.constexpr
):  # fmt: skip
    """dB, dC (B, L, N): the sums over channel blocks; a program has BT steps of dB or dC."""
    row = tl.program_id(1).to(tl.int64)
    side = tl.program_id(1) // batch
    which = tl.program_id(0) % 2
    t, n = tl.program_id(0) // 2 * BT + tl.arange(0, BT), tl.arange(0, BN)
    inside = (t < L)[:, None] & (n < N)[None, :]
    at = part_ptr + ((row * L + t[:, None]) * blocks * 2 + which) * N + n[None, :]
    total = tl.zeros((BT, BN), tl.float32)
    for i in range(blocks):
        total += tl.load(at + i * 2 * N, mask=inside, other=0.0)
    target = select(side, dB_ptr, dB1_ptr)
    if which == 1:
        target = select(side, dC_ptr, dC1_ptr)
    tl.store(target + ((row % batch) * L + t[:, None]) * N + n[None, :], total, mask=inside)
