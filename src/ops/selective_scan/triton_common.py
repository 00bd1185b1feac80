"""What the Triton kernels of the scan share: loads, functions of one number, the carry over chunks.

Legend: B batch, E inner width (channels), L sequence length, N state size, T steps of a chunk.
"""

# ruff: noqa: ANN001, ANN201 (kernel arguments are pointers and numbers)
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

from src.ops.triton_version import require_triton

require_triton()  # before a kernel is made: each imports this file

LOG2E = tl.constexpr(1.4426950408889634)


def kernel(function: Callable[..., Any]) -> Any:
    """triton.jit that compiles once per types and options, never for a value or an alignment of an argument.

    Sequence lengths and strides vary from step to step; what does not know a stride's value also keeps the plain
    layout: a lane is a channel and holds all of its states.
    """
    names = [n for n, p in inspect.signature(function).parameters.items() if "constexpr" not in str(p.annotation)]
    return triton.jit(do_not_specialize=names, do_not_specialize_on_alignment=names)(function)


@triton.jit
def softplus(x):
    """max(x, 0) + log1p(e), e = exp(-|x|), log1p by the atanh series; and the derivative."""
    e = tl.exp2(-tl.abs(x) * LOG2E)
    s = e / (2.0 + e)
    w = s * s
    p = 0.2815777836310908 * w + 0.27965157745197267
    p = p * w + 0.40024595230703747
    p = p * w + 0.6666632164137777
    p = p * w + 2.0
    r = 1.0 / (1.0 + e)
    return tl.where(x > 0, x, 0.0) + s * p, tl.where(x > 0, r, e * r)


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp2(-x * LOG2E))


@triton.jit
def select(side, first, second):
    """The pointer of this direction."""
    pointer = first
    if side == 1:
        pointer = second
    return pointer


@triton.jit
def place(blocks, chunks, skipped):
    """(batch item, chunk in scan order, channel block) of this program; chunks before `skipped` have no program."""
    program = tl.program_id(0)
    block = program % blocks
    rest = program // blocks
    return (rest // chunks).to(tl.int64), rest % chunks + skipped, block


@triton.jit
def span(chunk, chunks, T, L, back):
    """Where a chunk, counted in scan order, lies: (first step, steps, +1 or -1)."""
    low = chunk * T
    if back == 1:
        low = (chunks - 1 - chunk) * T
    steps = tl.minimum(L - low, T)
    first = low
    way = 1
    if back == 1:
        first = low + steps - 1
        way = -1
    return first, steps, way


@triton.jit
def lanes(rows, stride):
    """Offsets of rows that have a lane each. The hint settles the layout, which a stride not known leaves open.

    A lane still loads one element at a time, since no alignment is known, so the hint may be wrong.
    """
    return tl.max_contiguous(rows * stride, [rows.shape[0]])[:, None]


@triton.jit
def load_tile(pointer, t, r, stride, rows, row_stride, in_rows, in_r):
    """Values (rows, r): t is the first step, r the distances to it. Only lanes' own offsets take registers."""
    at = pointer + t.to(tl.int64) * stride + (r * stride)[None, :] + lanes(rows, row_stride)
    return tl.load(at, mask=in_rows[:, None] & in_r, other=0.0)


@triton.jit
def load_rates(pointer, e, n, stride_e, stride_n, mask):
    """A log2(e) as float32 (E, N): a step's decay is 2^(dt rates)."""
    A = tl.load(pointer + lanes(e, stride_e) + n[None, :] * stride_n, mask=mask, other=0.0)
    return A.to(tl.float32) * LOG2E


@triton.jit
def load_channels(pointer, e, in_e, PRESENT: tl.constexpr):
    """A vector of channels as float32, or zeros where there is none."""
    x = tl.zeros((e.shape[0],), tl.float32)
    if PRESENT:
        x = tl.load(pointer + e, mask=in_e, other=0.0).to(tl.float32)
    return x


@triton.jit
def column(x, r, k: tl.constexpr):
    """Column k of (rows, steps) as float32 in every lane, once the sum has taken it out of the tile."""
    return tl.sum(tl.where(r[None, :] == k, x.to(tl.float32), 0.0), axis=1)


@kernel
def carry_kernel(
    state_ptr, total_ptr, A_ptr, A1_ptr, init_ptr, last_ptr, E, N: tl.constexpr, batch, chunks, A_e, A_n,
    REVERSE: tl.constexpr, HAS_INIT: tl.constexpr, HAS_LAST: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """Replaces each chunk's own end state by the state that enters it; a program has one state of BE channels."""
    side = tl.program_id(0) // batch
    row = tl.program_id(0).to(tl.int64)  # side and batch item
    n = tl.program_id(1) % N
    e = tl.program_id(1) // N * BE + tl.arange(0, BE)
    in_e = e < E
    A = tl.load(select(side, A_ptr, A1_ptr) + e * A_e + n * A_n, mask=in_e, other=0.0).to(tl.float32) * LOG2E
    entering = tl.zeros((BE,), tl.float32)
    if HAS_INIT:
        entering = tl.load(init_ptr + (row * N + n) * E + e, mask=in_e, other=0.0)
    for i in tl.range(0, chunks, num_stages=6):
        chunk = row * chunks + (chunks - 1 - i if REVERSE else i)
        at = state_ptr + (chunk * N + n) * E + e
        # The last chunk's own end state is not always there: only `last` asks for it.
        more = in_e & (HAS_LAST | (i < chunks - 1))
        end = tl.load(at, mask=more, other=0.0)
        total = tl.load(total_ptr + chunk * E + e, mask=more, other=0.0)
        tl.store(at, entering, mask=in_e)
        entering = tl.exp2(A * total) * entering + end
    if HAS_LAST:
        tl.store(last_ptr + (row * N + n) * E + e, entering, mask=in_e)
