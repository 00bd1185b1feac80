"""RMSNorm (Zhang & Sennrich 2019) in one pass on the CPU, where PyTorch makes several of it.

Legend: D width; leading axes are rows.
"""

from __future__ import annotations

import struct
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from src.ops.compiled import call, data_ptr, has_library, threads_for
from src.ops.first_order import check_transforms, first_order_backward

_OPERATOR = "rms_norm"
_GRAIN = 1 << 15  # elements that are worth a thread


def _header(x: Tensor, eps: float) -> list[int]:
    rows = x.numel() // max(x.shape[-1], 1)
    return [rows, x.shape[-1], threads_for(x.numel(), _GRAIN), struct.unpack("q", struct.pack("d", eps))[0]]


def _forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x, weight = x.contiguous(), weight.contiguous()
    y, scale = torch.empty_like(x), x.new_empty(x.shape[:-1])
    if x.numel():
        call("norm_forward", [*_header(x, eps), *(data_ptr(t) for t in (x, weight, None, y, scale)), 0, 0, 0])
    return y, scale


def _backward(grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    grad, x, weight = grad.contiguous(), x.contiguous(), weight.contiguous()
    dx, dweight = torch.empty_like(x), torch.zeros_like(weight)
    if x.numel():
        header = _header(x, eps)
        partial = x.new_empty(header[2], x.shape[-1])
        call("norm_backward", [*header, *(data_ptr(t) for t in (x, weight, grad, None, scale, dx, partial, dweight))])
    return dx, dweight


torch.library.define("vjepa_mamba::norm_forward", "(Tensor x, Tensor weight, float eps) -> (Tensor, Tensor)")
torch.library.define(
    "vjepa_mamba::norm_backward", "(Tensor grad, Tensor x, Tensor weight, Tensor scale, float eps) -> (Tensor, Tensor)"
)
torch.library.impl("vjepa_mamba::norm_forward", "cpu", _forward)
torch.library.impl("vjepa_mamba::norm_backward", "cpu", _backward)


@torch.library.register_fake("vjepa_mamba::norm_forward")
def _(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(x.shape[:-1])


@torch.library.register_fake("vjepa_mamba::norm_backward")
def _(grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.contiguous_format), weight.new_empty(weight.shape)


def _setup(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, weight, ctx.eps = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, output[1])


def _gradients(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple:
    if grad is None:
        return None, None, None
    x, weight, scale = ctx.saved_tensors

    def compute() -> tuple[Tensor, Tensor]:
        return torch.ops.vjepa_mamba.norm_backward(grad, x, weight, scale, ctx.eps)

    return *first_order_backward(_OPERATOR, compute, grad, (x, weight)), None


torch.library.register_autograd("vjepa_mamba::norm_forward", _gradients, setup_context=_setup)


def rms_norm(x: Tensor, weight: Tensor, eps: float, backend: str = "auto") -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis: (..., D), (D,) -> (..., D).

    backend: 'auto' (float32 on the CPU runs in our kernel where it was built, everything else in PyTorch's) or 'torch'.
    Raises ValueError on an unknown backend, RuntimeError where the kernel has no derivative (src/ops/first_order.py).
    """
    if backend not in ("auto", "torch"):
        raise ValueError(f"rms_norm: unknown backend {backend!r}; known: auto, torch")
    ours = x.device.type == "cpu" and x.dtype == torch.float32 and weight.dtype == torch.float32
    if backend == "auto" and ours and has_library() and weight.shape == x.shape[-1:]:
        check_transforms(_OPERATOR, (x, weight))
        return torch.ops.vjepa_mamba.norm_forward(x, weight, eps)[0]
    return F.rms_norm(x, weight.shape, weight, eps)
