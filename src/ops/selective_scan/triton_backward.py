"""Triton kernels of the scan's backward: what leaves every chunk towards earlier ones, and every chunk's gradients.

The gradient of the state runs against the scan's order, chunk by chunk as in the forward; carry_kernel joins the
chunks. gradient_kernel walks a chunk forward once, leaving every fourth state in a scratch that stays in the cache,
then backward, four steps at a time: it rebuilds their states in registers. Sums over channels (dB, dC) are products
with ones on the tensor cores or exact sums; they go to memory per channel block, and sum_kernel adds those in order.
Nothing is atomic: results are the same bit for bit. Legend as in triton_common.py.
"""

# ruff: noqa: ANN001, ANN201, ANN202, SIM102 (kernel arguments are pointers and numbers; a constexpr test stands alone)
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from src.ops.selective_scan.triton_common import _LOG2E, column, kernel, matrix, place, select, sigmoid, softplus, span, tile

_LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def four(x, X: tl.constexpr):
    """The four columns of (X, 4)."""
    even, odd = tl.split(tl.reshape(x, (X, 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


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
    E, L, N, T, batch, chunks, programs, blocks, reverse,
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
    A = tl.load(matrix(select(side, A_ptr, A1_ptr), e, n, A_e, A_n), mask=both, other=0.0)
    A = A.to(tl.float32) * _LOG2E
    bias = tl.zeros((BE,), tl.float32)
    if HAS_BIAS:
        bias = tl.load(select(side, bias_ptr, bias1_ptr) + e, mask=in_e, other=0.0).to(tl.float32)
    g_at = g_ptr + b * g_b
    d_at = select(side, delta_ptr, delta1_ptr) + b * d_b
    C_at = select(side, C_ptr, C1_ptr) + b * C_b
    z_at = z_ptr + b * z_b
    t += (steps - 1) * way
    way_r = -r * way
    valid = (r < steps)[None, :]
    g_next = tl.load(tile(g_at, t, way_r, g_l, e, g_e), mask=in_e[:, None] & valid, other=0.0)
    d_next = tl.load(tile(d_at, t, way_r, d_l, e, d_e), mask=in_e[:, None] & valid, other=0.0)
    C_next = tl.load(tile(C_at, t, way_r, C_l, n, C_n), mask=in_n[:, None] & valid, other=0.0)
    z_next = g_next
    if HAS_Z:
        z_next = tl.load(tile(z_at, t, way_r, z_l, e, z_e), mask=in_e[:, None] & valid, other=0.0)
    dh = tl.zeros((BE, BN), tl.float32)
    total = tl.zeros((BE,), tl.float32)
    for i in tl.range(0, steps, 2, num_stages=1):
        g, g1 = tl.split(g_next.to(tl.float32))
        d, d1 = tl.split(d_next.to(tl.float32))
        z, z1 = tl.split(z_next.to(tl.float32))
        C_both = C_next
        t -= 2 * way
        valid = (r < steps - i - 2)[None, :]
        g_next = tl.load(tile(g_at, t, way_r, g_l, e, g_e), mask=in_e[:, None] & valid, other=0.0)
        d_next = tl.load(tile(d_at, t, way_r, d_l, e, d_e), mask=in_e[:, None] & valid, other=0.0)
        C_next = tl.load(tile(C_at, t, way_r, C_l, n, C_n), mask=in_n[:, None] & valid, other=0.0)
        if HAS_Z:
            z_next = tl.load(tile(z_at, t, way_r, z_l, e, z_e), mask=in_e[:, None] & valid, other=0.0)
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


@triton.jit
def back(
    g, u, dt, slope, one, h, before, Bt, Ct, A, D, dh, dA, dD, dbias, acc, part, valid, n, in_n,
    k: tl.constexpr, N, turn, EXACT: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """Step k of four backward: du, ddelta, and what is carried on. dB, dC: to columns k, k + 4 of acc, or to memory."""
    dh += g[:, None] * Ct[None, :]
    to_C = g[:, None] * h
    to_B = dh * (dt * u)[:, None]
    if EXACT:
        tl.store(part + k * turn + n, tl.sum(to_B, axis=0), mask=in_n & valid)
        tl.store(part + k * turn + N + n, tl.sum(to_C, axis=0), mask=in_n & valid)
    else:
        place8 = tl.arange(0, 8)[None, :]
        ones = tl.full((BE, 8), 1.0, tl.float32)
        acc = tl.where(place8 == k, tl.dot(tl.trans(to_B), ones), acc)
        acc = tl.where(place8 == k + 4, tl.dot(tl.trans(to_C), ones), acc)
    dx = tl.sum(dh * Bt[None, :], axis=1)
    dh *= tl.exp2((dt * one)[:, None] * A)  # once more: the decays of four steps do not fit in the registers
    through = dh * before
    dA += through * dt[:, None]
    ddt = (tl.sum(through * A, axis=1) * _LN2 + dx * u) * slope
    return dx * dt + D * g, ddt, dh, dA, dD + g * u, dbias + ddt, acc


@kernel
def gradient_kernel(
    g_ptr, u_ptr, u1_ptr, delta_ptr, delta1_ptr, A_ptr, A1_ptr, B_ptr, B1_ptr, C_ptr, C1_ptr, D_ptr, D1_ptr,
    bias_ptr, bias1_ptr, z_ptr, y_ptr, state_ptr, dstate_ptr, scratch_ptr,
    du_ptr, du1_ptr, dd_ptr, dd1_ptr, dz_ptr, dA_ptr, sums_ptr, part_ptr,
    E, L, N, T, batch, chunks, blocks, items, reverse, one,
    g_b, g_e, g_l, u_b, u_e, u_l, d_b, d_e, d_l, A_e, A_n, B_b, B_n, B_l, C_b, C_n, C_l, z_b, z_e, z_l,
    y_b, y_e, y_l, du_b, du_e, du_l, dd_b, dd_e, dd_l, dz_b, dz_e, dz_l,
    HAS_STATE: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr,
    SOFTPLUS: tl.constexpr, EXACT: tl.constexpr, UNIT: tl.constexpr, BE: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Gradients; part (sides, B, L, blocks, 2, N): dB and dC by channel block.

    dA (sides, B, chunks, E, N), sums (sides, B, chunks, 2, E): dA, dD and dbias by chunk. scratch (programs, T / 4, N, BE). A program takes every programs-th of the items.
    """
    if UNIT:  # channels innermost: one offset for all tensors instead of eight, which spares registers
        g_e, u_e, d_e, z_e, y_e, du_e, dd_e, dz_e = 1, 1, 1, 1, 1, 1, 1, 1
    n, r = tl.arange(0, BN), tl.arange(0, 4)
    in_n = n < N
    lane = tl.arange(0, BE)
    scratch = scratch_ptr + tl.program_id(0).to(tl.int64) * (T // 4) * N * BE + n[None, :] * BE + lane[:, None]
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
        A = tl.load(matrix(select(side, A_ptr, A1_ptr), e, n, A_e, A_n), mask=both, other=0.0)
        A = A.to(tl.float32) * _LOG2E
        bias = tl.zeros((BE,), tl.float32)
        if HAS_BIAS:
            bias = tl.load(select(side, bias_ptr, bias1_ptr) + e, mask=in_e, other=0.0).to(tl.float32)
        D = tl.zeros((BE,), tl.float32)
        if HAS_D:
            D = tl.load(select(side, D_ptr, D1_ptr) + e, mask=in_e, other=0.0).to(tl.float32)
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
        fours = (steps + 3) // 4
        tl.store(scratch, h, mask=in_n[None, :])
        valid = (r < steps)[None, :]
        u_next = tl.load(tile(u_at, t, way_r, u_l, e, u_e), mask=in_e[:, None] & valid, other=0.0)
        d_next = tl.load(tile(d_at, t, way_r, d_l, e, d_e), mask=in_e[:, None] & valid, other=0.0)
        B_next = tl.load(tile(B_at, t, way_r, B_l, n, B_n), mask=in_n[:, None] & valid, other=0.0)
        for j in tl.range(1, fours, num_stages=1):
            u, u1, u2, u3 = four(u_next.to(tl.float32), BE)
            d, d1, d2, d3 = four(d_next.to(tl.float32), BE)
            B_four = B_next
            t += 4 * way
            valid = (r < steps - j * 4)[None, :]
            u_next = tl.load(tile(u_at, t, way_r, u_l, e, u_e), mask=in_e[:, None] & valid, other=0.0)
            d_next = tl.load(tile(d_at, t, way_r, d_l, e, d_e), mask=in_e[:, None] & valid, other=0.0)
            B_next = tl.load(tile(B_at, t, way_r, B_l, n, B_n), mask=in_n[:, None] & valid, other=0.0)
            dt, _ = step_size(d + bias, True, SOFTPLUS)
            h = tl.exp2(dt[:, None] * A) * h + (dt * u)[:, None] * column(B_four, r, 0)[None, :]
            dt, _ = step_size(d1 + bias, True, SOFTPLUS)
            h = tl.exp2(dt[:, None] * A) * h + (dt * u1)[:, None] * column(B_four, r, 1)[None, :]
            dt, _ = step_size(d2 + bias, True, SOFTPLUS)
            h = tl.exp2(dt[:, None] * A) * h + (dt * u2)[:, None] * column(B_four, r, 2)[None, :]
            dt, _ = step_size(d3 + bias, True, SOFTPLUS)
            h = tl.exp2(dt[:, None] * A) * h + (dt * u3)[:, None] * column(B_four, r, 3)[None, :]
            tl.store(scratch + j * N * BE, h, mask=in_n[None, :])
        tl.debug_barrier()  # the states are read back below
        dA = tl.zeros((BE, BN), tl.float32)
        dD, dbias = tl.zeros((BE,), tl.float32), tl.zeros((BE,), tl.float32)
        valid = (r < steps - (fours - 1) * 4)[None, :]
        C_next = tl.load(tile(C_at, t, way_r, C_l, n, C_n), mask=in_n[:, None] & valid, other=0.0)
        g_next = tl.load(tile(g_at, t, way_r, g_l, e, g_e), mask=in_e[:, None] & valid, other=0.0)
        z_next = g_next
        if HAS_Z:
            z_next = tl.load(tile(z_at, t, way_r, z_l, e, z_e), mask=in_e[:, None] & valid, other=0.0)
        for i in tl.range(0, fours, num_stages=1):
            j = fours - 1 - i
            u, u1, u2, u3 = four(u_next.to(tl.float32), BE)
            d, d1, d2, d3 = four(d_next.to(tl.float32), BE)
            B_four, C_four = B_next, C_next
            g, g1, g2, g3 = four(g_next.to(tl.float32), BE)
            h = tl.load(scratch + j * N * BE, mask=in_n[None, :], other=0.0)
            v, v1, v2, v3 = j * 4 < steps, j * 4 + 1 < steps, j * 4 + 2 < steps, j * 4 + 3 < steps
            out = t.to(tl.int64)
            if HAS_Z:
                z, z1, z2, z3 = four(z_next.to(tl.float32), BE)
                s, s1, s2, s3 = sigmoid(z), sigmoid(z1), sigmoid(z2), sigmoid(z3)
                if side == 0:
                    y_at = y_ptr + b * y_b + out * y_l + e * y_e
                    dz_at = dz_ptr + b * dz_b + out * dz_l + e * dz_e
                    y = tl.load(y_at, mask=in_e, other=0.0).to(tl.float32)
                    y1 = tl.load(y_at + way * y_l, mask=in_e & v1, other=0.0).to(tl.float32)
                    y2 = tl.load(y_at + 2 * way * y_l, mask=in_e & v2, other=0.0).to(tl.float32)
                    y3 = tl.load(y_at + 3 * way * y_l, mask=in_e & v3, other=0.0).to(tl.float32)
                    tl.store(dz_at, g * y * s * (1.0 + z * (1.0 - s)), mask=in_e)
                    tl.store(dz_at + way * dz_l, g1 * y1 * s1 * (1.0 + z1 * (1.0 - s1)), mask=in_e & v1)
                    tl.store(dz_at + 2 * way * dz_l, g2 * y2 * s2 * (1.0 + z2 * (1.0 - s2)), mask=in_e & v2)
                    tl.store(dz_at + 3 * way * dz_l, g3 * y3 * s3 * (1.0 + z3 * (1.0 - s3)), mask=in_e & v3)
                g, g1, g2, g3 = g * z * s, g1 * z1 * s1, g2 * z2 * s2, g3 * z3 * s3
            t -= 4 * way
            u_next = tl.load(tile(u_at, t, way_r, u_l, e, u_e), mask=in_e[:, None] & (j > 0), other=0.0)
            d_next = tl.load(tile(d_at, t, way_r, d_l, e, d_e), mask=in_e[:, None] & (j > 0), other=0.0)
            B_next = tl.load(tile(B_at, t, way_r, B_l, n, B_n), mask=in_n[:, None] & (j > 0), other=0.0)
            C_next = tl.load(tile(C_at, t, way_r, C_l, n, C_n), mask=in_n[:, None] & (j > 0), other=0.0)
            g_next = tl.load(tile(g_at, t, way_r, g_l, e, g_e), mask=in_e[:, None] & (j > 0), other=0.0)
            if HAS_Z:
                z_next = tl.load(tile(z_at, t, way_r, z_l, e, z_e), mask=in_e[:, None] & (j > 0), other=0.0)
            dt, slope = step_size(d + bias, v, SOFTPLUS)
            dt1, slope1 = step_size(d1 + bias, v1, SOFTPLUS)
            dt2, slope2 = step_size(d2 + bias, v2, SOFTPLUS)
            dt3, slope3 = step_size(d3 + bias, v3, SOFTPLUS)
            h1 = tl.exp2(dt[:, None] * A) * h + (dt * u)[:, None] * column(B_four, r, 0)[None, :]
            h2 = tl.exp2(dt1[:, None] * A) * h1 + (dt1 * u1)[:, None] * column(B_four, r, 1)[None, :]
            h3 = tl.exp2(dt2[:, None] * A) * h2 + (dt2 * u2)[:, None] * column(B_four, r, 2)[None, :]
            h4 = tl.exp2(dt3[:, None] * A) * h3 + (dt3 * u3)[:, None] * column(B_four, r, 3)[None, :]
            part = part_ptr + ((row * L + out) * blocks + block) * 2 * N
            turn = way * blocks * 2 * N
            acc = tl.zeros((BN, 8), tl.float32)
            # Times one: else the compiler keeps what it has computed above in registers that it does not have.
            B_again = B_four.to(tl.float32) * one
            B, C = column(B_again, r, 3), column(C_four, r, 3)
            du3, dd3, dh, dA, dD, dbias, acc = back(
                g3, u3, dt3, slope3, one, h4, h3, B, C, A, D, dh, dA, dD, dbias, acc, part, v3, n, in_n,
                3, N, turn, EXACT, BE,
            )  # fmt: skip
            B, C = column(B_again, r, 2), column(C_four, r, 2)
            du2, dd2, dh, dA, dD, dbias, acc = back(
                g2, u2, dt2, slope2, one, h3, h2, B, C, A, D, dh, dA, dD, dbias, acc, part, v2, n, in_n,
                2, N, turn, EXACT, BE,
            )  # fmt: skip
            B, C = column(B_again, r, 1), column(C_four, r, 1)
            du1, dd1, dh, dA, dD, dbias, acc = back(
                g1, u1, dt1, slope1, one, h2, h1, B, C, A, D, dh, dA, dD, dbias, acc, part, v1, n, in_n,
                1, N, turn, EXACT, BE,
            )  # fmt: skip
            B, C = column(B_again, r, 0), column(C_four, r, 0)
            du, dd, dh, dA, dD, dbias, acc = back(
                g, u, dt, slope, one, h1, h, B, C, A, D, dh, dA, dD, dbias, acc, part, v, n, in_n,
                0, N, turn, EXACT, BE,
            )  # fmt: skip
            du_at = select(side, du_ptr, du1_ptr) + b * du_b + out * du_l + e * du_e
            dd_at = select(side, dd_ptr, dd1_ptr) + b * dd_b + out * dd_l + e * dd_e
            tl.store(du_at, du, mask=in_e)
            tl.store(du_at + way * du_l, du1, mask=in_e & v1)
            tl.store(du_at + 2 * way * du_l, du2, mask=in_e & v2)
            tl.store(du_at + 3 * way * du_l, du3, mask=in_e & v3)
            tl.store(dd_at, dd, mask=in_e)
            tl.store(dd_at + way * dd_l, dd1, mask=in_e & v1)
            tl.store(dd_at + 2 * way * dd_l, dd2, mask=in_e & v2)
            tl.store(dd_at + 3 * way * dd_l, dd3, mask=in_e & v3)
            if not EXACT:
                part += (place8 % 4)[None, :] * turn + (place8 // 4 * N)[None, :] + n[:, None]
                tl.store(part, acc, mask=in_n[:, None] & (place8 % 4 < steps - j * 4)[None, :])
        at = row * chunks + chunk
        tl.store(dA_ptr + (at * E + e[:, None]) * N + n[None, :], dA, mask=both)
        tl.store(sums_ptr + at * 2 * E + e, dD, mask=in_e)
        tl.store(sums_ptr + (at * 2 + 1) * E + e, dbias, mask=in_e)
        tl.debug_barrier()  # the next item writes the scratch


@kernel
def sum_kernel(
    part_ptr, dB_ptr, dB1_ptr, dC_ptr, dC1_ptr, L, N, batch, blocks, BT: tl.constexpr, BN: tl.constexpr
):  # fmt: skip
    """dB, dC (B, L, N): the sums over channel blocks; a program has BT steps of dB or dC."""
    row = tl.program_id(0).to(tl.int64)
    side = tl.program_id(0) // batch
    which = tl.program_id(1) % 2
    t, n = tl.program_id(1) // 2 * BT + tl.arange(0, BT), tl.arange(0, BN)
    inside = (t < L)[:, None] & (n < N)[None, :]
    at = part_ptr + ((row * L + t[:, None]) * blocks * 2 + which) * N + n[None, :]
    total = tl.zeros((BT, BN), tl.float32)
    for i in range(blocks):
        total += tl.load(at + i * 2 * N, mask=inside, other=0.0)
    target = select(side, dB_ptr, dB1_ptr)
    if which == 1:
        target = select(side, dC_ptr, dC1_ptr)
    tl.store(target + ((row % batch) * L + t[:, None]) * N + n[None, :], total, mask=inside)
