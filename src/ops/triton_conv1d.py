"""Triton kernels of the causal convolution, forward and backward, either direction (imported only when asked for).

A program has BT steps of BE channels. The backward recomputes what entered the activation, at each of the W places
that an input reaches; sums over time go to memory program by program, so nothing is atomic.
With TRITON_INTERPRET=1 the kernels run on CPU tensors.

Legend: B batch, E channels, L sequence length, W filter width.
"""

# ruff: noqa: ANN001, ANN202 (kernel arguments are pointers and numbers; a constexpr test stands alone)
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from src.ops.compiled import empty_like_layout
from src.ops.selective_scan.triton_common import LOG2E, sigmoid

_WARPS = 4


@triton.jit
def _before_activation(
    x, weight_ptr, bias_ptr, t, e, in_e, L, x_e, x_l, WAY: tl.constexpr, WIDTH: tl.constexpr, HAS_BIAS: tl.constexpr
):  # fmt: skip
    """The convolution's sum at steps t, which may lie outside of the sequence."""
    y = tl.zeros((t.shape[0], e.shape[0]), tl.float32)
    if HAS_BIAS:
        y += tl.load(bias_ptr + e, mask=in_e, other=0.0).to(tl.float32)[None, :]
    for k in tl.static_range(WIDTH):
        s = t + WAY * (k - WIDTH + 1)
        inside = ((s >= 0) & (s < L))[:, None] & in_e[None, :]
        w = tl.load(weight_ptr + e * WIDTH + k, mask=in_e, other=0.0).to(tl.float32)
        y += tl.load(x + s[:, None] * x_l + e[None, :] * x_e, mask=inside, other=0.0).to(tl.float32) * w[None, :]
    return y


@triton.jit(do_not_specialize=["L"])
def _forward_kernel(
    x_ptr, weight_ptr, bias_ptr, out_ptr, E, L, blocks, x_b, x_e, x_l, o_b, o_e, o_l,
    WAY: tl.constexpr, SILU: tl.constexpr, WIDTH: tl.constexpr, HAS_BIAS: tl.constexpr,
    BT: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(1).to(tl.int64)
    t = tl.program_id(0) // blocks * BT + tl.arange(0, BT)
    e = tl.program_id(0) % blocks * BE + tl.arange(0, BE)
    in_e = e < E
    y = _before_activation(x_ptr + b * x_b, weight_ptr, bias_ptr, t, e, in_e, L, x_e, x_l, WAY, WIDTH, HAS_BIAS)
    if SILU:
        y = y / (1.0 + tl.exp2(-y * LOG2E))
    at = out_ptr + b * o_b + t[:, None] * o_l + e[None, :] * o_e
    tl.store(at, y, mask=(t < L)[:, None] & in_e[None, :])


@triton.jit(do_not_specialize=["L"])
def _backward_kernel(
    grad_ptr, x_ptr, weight_ptr, bias_ptr, dx_ptr, sums_ptr, E, L, blocks,
    g_b, g_e, g_l, x_b, x_e, x_l, d_b, d_e, d_l,
    WAY: tl.constexpr, SILU: tl.constexpr, WIDTH: tl.constexpr, HAS_BIAS: tl.constexpr,
    BT: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(1).to(tl.int64)
    t = tl.program_id(0) // blocks * BT + tl.arange(0, BT)
    e = tl.program_id(0) % blocks * BE + tl.arange(0, BE)
    in_e = e < E
    x = x_ptr + b * x_b
    dx = tl.zeros((BT, BE), tl.float32)
    sums = sums_ptr + (b * (tl.num_programs(0) // blocks) + tl.program_id(0) // blocks) * (WIDTH + 1) * E
    for j in tl.static_range(WIDTH):  # the outputs that input t reaches: t itself, then those after it
        s = t + WAY * j
        inside = ((s >= 0) & (s < L))[:, None] & in_e[None, :]
        g = tl.load(grad_ptr + b * g_b + s[:, None] * g_l + e[None, :] * g_e, mask=inside, other=0.0).to(tl.float32)
        if SILU:
            y = _before_activation(x, weight_ptr, bias_ptr, s, e, in_e, L, x_e, x_l, WAY, WIDTH, HAS_BIAS)
            gate = sigmoid(y)
            g *= gate * (1.0 + y * (1.0 - gate))
        w = tl.load(weight_ptr + e * WIDTH + WIDTH - 1 - j, mask=in_e, other=0.0).to(tl.float32)
        dx += g * w[None, :]
        if j == 0:
            for k in tl.static_range(WIDTH):
                r = t + WAY * (k - WIDTH + 1)
                seen = ((r >= 0) & (r < L))[:, None] & in_e[None, :]
                value = tl.load(x + r[:, None] * x_l + e[None, :] * x_e, mask=seen, other=0.0).to(tl.float32)
                # 0 times what is not finite would not be 0
                tl.store(sums + e * WIDTH + k, tl.sum(tl.where(inside, g * value, 0.0), axis=0), mask=in_e)
            tl.store(sums + WIDTH * E + e, tl.sum(g, axis=0), mask=in_e)
    at = dx_ptr + b * d_b + t[:, None] * d_l + e[None, :] * d_e
    tl.store(at, dx, mask=(t < L)[:, None] & in_e[None, :])


def tile(x: Tensor) -> tuple[int, int]:
    """Steps and channels of a program, by what was measured on an NVIDIA H200 (docs/results/gpu_conv.csv).

    Milliseconds of forward, and of forward and backward, at 384 channels, bfloat16; B, L:
                                32, 1568        2, 25088
    channels innermost  64, 32  0.155  0.810    0.121  0.600
                        32, 64  0.172  0.803    0.137  0.655
                        torch   0.435  1.171    0.402  1.138
    time innermost      64, 32  0.182  0.989    0.157  0.715
                        32, 64  0.163  0.833    0.204  0.903
                        torch   0.325  0.817    0.325  0.813
    """
    return (64, 32) if x.stride(1) == 1 or x.shape[2] > 8192 else (32, 64)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    """The convolution of x (B, E, L) with weight (E, W), in x's type and layout."""
    out = empty_like_layout(x)
    if x.numel():
        (batch, channels, length), (steps, lanes) = x.shape, tile(x)
        blocks = triton.cdiv(channels, lanes)
        w, offset = weight.contiguous(), bias if bias is not None else weight
        with torch.cuda.device_of(x):
            _forward_kernel[(blocks * triton.cdiv(length, steps), batch)](
                x, w, offset.contiguous(), out, channels, length, blocks, *x.stride(), *out.stride(),
                WAY=-1 if reverse else 1, SILU=silu, WIDTH=w.shape[1], HAS_BIAS=bias is not None,
                BT=steps, BE=lanes, num_warps=_WARPS,
            )  # fmt: skip
    return out


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias (empty without one)."""
    dx, (channels, width), (steps, lanes) = empty_like_layout(x), weight.shape, tile(x)
    batch, _, length = x.shape
    blocks, cuts = triton.cdiv(channels, lanes), triton.cdiv(length, steps)
    sums = torch.empty(batch * cuts, (width + 1) * channels, dtype=torch.float32, device=x.device)
    if x.numel():
        w, offset = weight.contiguous(), bias if bias is not None else weight
        with torch.cuda.device_of(x):
            _backward_kernel[(blocks * cuts, batch)](
                grad, x, w, offset.contiguous(), dx, sums, channels, length, blocks,
                *grad.stride(), *x.stride(), *dx.stride(),
                WAY=-1 if reverse else 1, SILU=silu, WIDTH=width, HAS_BIAS=bias is not None,
                BT=steps, BE=lanes, num_warps=_WARPS,
            )  # fmt: skip
    dweight, dbias = sums.sum(0).split([width * channels, channels])
    dweight = dweight.view(channels, width).to(weight.dtype)
    return dx, dweight, dbias.to(bias.dtype) if bias is not None else x.new_empty(0, dtype=torch.float32)
