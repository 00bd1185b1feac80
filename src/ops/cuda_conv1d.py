"""causal-conv1d's CUDA kernel behind our signature; imported only when asked for."""

from __future__ import annotations

import causal_conv1d_cuda  # noqa: F401 (the kernel; the package may be installed without it)
import torch
from causal_conv1d import causal_conv1d_fn
from torch import Tensor

from src.ops.first_order import first_order_only

_STEP, _BYTES = 8, 16  # what the kernel wants strides to be a multiple of, in elements; what it loads at a time


def to_kernel_layout(x: Tensor) -> Tensor:
    """x (B, E, L), copied where the kernel cannot read it as it lies.

    It takes channels innermost where E and both other strides are multiples of 8, or time innermost without gaps. A
    copy has time innermost.
    """
    _, channels, length = x.shape
    batch_stride, channel_stride, time_stride = x.stride()
    if x.data_ptr() % _BYTES == 0:
        if x.stride() == (channels * length, length, 1):
            return x
        if channel_stride == 1 < time_stride and not (channels % _STEP or batch_stride % _STEP or time_stride % _STEP):
            return x
    return x.clone(memory_format=torch.contiguous_format)


def trial(device: torch.device) -> None:
    """The kernel once, forward and backward, on a few numbers; what it raises goes through."""
    x, weight = (torch.zeros(shape, device=device, requires_grad=True) for shape in ((1, 8, 8), (8, 4)))
    causal_conv1d_fn(x, weight, None, activation="silu").sum().backward()


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, reverse: bool = False
) -> Tensor:
    """Same contract as `causal_conv1d` on CUDA tensors, filters of 2 to 4 taps."""
    if x.device.type != "cuda":
        raise RuntimeError(f"causal_conv1d: backend cuda needs CUDA tensors, got {x.device}")
    return convolve(x, weight, bias, activation, reverse)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, reverse: bool) -> Tensor:
    """The same on any device that the kernel is for."""
    x, weight, bias = first_order_only("causal_conv1d", (x, weight, bias))
    kernel, offset = weight.to(x.dtype), bias.to(x.dtype) if bias is not None else None
    out = causal_conv1d_fn(to_kernel_layout(x.flip(-1) if reverse else x), kernel, offset, activation=activation)
    if out.requires_grad:
        out.register_hook(to_kernel_layout)  # the kernel asks the same of the gradient
    return out.flip(-1) if reverse else out
