"""Depthwise causal convolution along time, with optional silu, in either direction.

Legend: B batch, E channels, L sequence length, W filter width.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from src.ops import direct
from src.ops.compiled import (
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
from src.ops.first_order import check_transforms, first_order_backward
from src.ops.foreign import INSTALL, kernel_runs

_OPERATOR = "causal_conv1d"
_BLOCK, _GRAIN = 64, 1 << 15  # channels of one task in conv_kernel.h; outputs that are worth a thread


def causal_conv1d_torch(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, reverse: bool = False
) -> Tensor:
    """The same by PyTorch's own grouped convolution."""
    width, weight = weight.shape[1], weight.to(x.dtype)
    padded = F.pad(x, (0, width - 1) if reverse else (width - 1, 0))
    kernel = (weight.flip(-1) if reverse else weight)[:, None]
    y = F.conv1d(padded, kernel, bias.to(x.dtype) if bias is not None else None, groups=x.shape[1])
    return F.silu(y) if activation == "silu" else y


def _header(x: Tensor, width: int, silu: bool, reverse: bool) -> list[int]:
    batch, channels, length = x.shape
    return [batch, channels, length, width, reverse, silu, threads_for(x.numel(), _GRAIN)]


def _workspace(header: list[int]) -> Tensor:
    return torch.empty(header[6], need_library().conv_work_floats(header[3]), dtype=torch.float32)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    out = empty_like_layout(x)
    if x.numel() == 0:
        return out
    source, w, b = to_kernel_dtype(x), as_float32(weight), as_float32(bias)
    target = out if out.dtype == source.dtype else torch.empty_like(out, dtype=source.dtype)
    header = _header(x, weight.shape[1], silu, reverse)
    work = _workspace(header)
    floats = [data_ptr(w), data_ptr(b), data_ptr(work), work.shape[1]]
    call("conv_forward", [*header, *array(source), *array(target), *[0] * 10, *floats, 0, 0, 0])
    return out if target is out else out.copy_(target)


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    channels, width = weight.shape
    source, g, w, b = to_kernel_dtype(x), to_kernel_dtype(grad), as_float32(weight), as_float32(bias)
    dx = empty_like_layout(source)
    dweight = torch.zeros(channels, width, dtype=torch.float32)
    dbias = torch.zeros(channels if bias is not None else 0, dtype=torch.float32)
    if x.numel():
        header = _header(x, width, silu, reverse)
        work = _workspace(header)
        partial = torch.empty(x.shape[0], channels, width + 1, dtype=torch.float32)
        floats = [data_ptr(w), data_ptr(b), data_ptr(work), work.shape[1], data_ptr(partial), data_ptr(dweight)]
        arrays = [*array(source), *[0] * 5, *array(g), *array(dx)]
        call("conv_backward", [*header, *arrays, *floats, data_ptr(dbias) if bias is not None else 0])
    return dx.to(x.dtype), dweight.to(weight.dtype), dbias.to(bias.dtype) if bias is not None else dbias


def _register(name: str, devices: list[str], forward: Callable[..., Any], backward: Callable[..., Any]) -> Any:
    """Defines vjepa_mamba::<name>_forward and _backward; returns the differentiable operator."""
    inputs = "Tensor x, Tensor weight, Tensor? bias, bool silu, bool reverse"
    forward_name, backward_name = f"vjepa_mamba::{name}_forward", f"vjepa_mamba::{name}_backward"
    torch.library.define(forward_name, f"({inputs}) -> Tensor")
    torch.library.define(backward_name, f"(Tensor grad, {inputs}) -> (Tensor, Tensor, Tensor)")
    torch.library.impl(forward_name, devices, forward)
    torch.library.impl(backward_name, devices, lambda *args: direct.apart(backward(*args)))

    def fake_forward(x: Tensor, *_: Any) -> Tensor:
        return empty_like_layout(x)

    def fake_backward(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *_: Any) -> tuple[Tensor, ...]:
        dbias = bias.new_empty(bias.shape) if bias is not None else x.new_empty(0, dtype=torch.float32)
        return empty_like_layout(x), weight.new_empty(weight.shape), dbias

    torch.library.register_fake(forward_name, fake_forward)
    torch.library.register_fake(backward_name, fake_backward)
    run_backward = getattr(torch.ops.vjepa_mamba, f"{name}_backward").default

    def setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, weight, bias, ctx.silu, ctx.reverse = inputs
        ctx.save_for_backward(x, weight, bias)

    def gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors

        def compute() -> tuple[Tensor | None, ...]:
            dx, dweight, dbias = run_backward(grad, *tensors, ctx.silu, ctx.reverse)
            return dx, dweight, dbias if tensors[2] is not None else None

        return *first_order_backward(_OPERATOR, compute, grad, tensors), None, None

    torch.library.register_autograd(forward_name, gradients, setup_context=setup)
    run_forward = getattr(torch.ops.vjepa_mamba, f"{name}_forward").default

    def eager_gradients(grad: Tensor, tensors: Sequence[Any], options: tuple, _: Any) -> tuple[Tensor | None, ...]:
        dx, dweight, dbias = backward(grad, *tensors, *options)
        return dx, dweight, dbias if tensors[2] is not None else None

    def eager(tensors: Sequence[Any], options: tuple, _: bool) -> tuple[Tensor, tuple]:
        return forward(*tensors, *options), ()

    formula = direct.Formula(_OPERATOR, eager, eager_gradients)

    def run(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
        if not direct.possible(x):
            return run_forward(x, weight, bias, silu, reverse)
        tensors = (x, weight, bias)
        keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
        return direct.call(formula, (silu, reverse), tensors, keep)

    return run


_cpu = _register("conv", ["cpu"], _forward, _backward)


@functools.cache
def _triton() -> Any:
    try:
        from src.ops import triton_conv1d
    except ImportError as error:
        raise ImportError(f"causal_conv1d: backend triton is not available ({error}); pip install -U triton") from error
    return _register("triton_conv", ["cuda", "cpu"], triton_conv1d.forward, triton_conv1d.backward)


@functools.cache
def _cuda() -> Any:
    try:
        from src.ops import cuda_conv1d
    except (ImportError, OSError) as error:  # OSError: built for another CUDA or torch
        raise ImportError(f"causal_conv1d: backend cuda is not available ({error}); install {INSTALL}") from error
    return cuda_conv1d


@torch.compiler.assume_constant_result
@functools.cache
def _loads(name: str) -> bool:
    try:
        found = {"cuda": _cuda, "triton": _triton}[name]()
    except ImportError:
        return False
    return name != "cuda" or kernel_runs("causal-conv1d", found.trial)


def _choose(x: Tensor, width: int) -> str:
    """The fastest that is there: Triton's kernel reads and writes both layouts as they are."""
    if x.dtype == torch.float64:
        return "torch"
    if x.device.type == "cpu" and has_library():
        return "cpu"
    if x.device.type == "cuda" and _loads("triton"):
        return "triton"
    return "cuda" if x.device.type == "cuda" and 2 <= width <= 4 and _loads("cuda") else "torch"


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    reverse: bool = False,
    backend: str = "auto",
) -> Tensor:
    """y_t = act(bias + sum_k weight_k x_(t - W + 1 + k)), out-of-range x taken as 0.

    x: (B, E, L); weight: (E, W); bias: (E,); activation: None or 'silu'. Returns (B, E, L) in x's dtype.
    `reverse` looks ahead instead of back: the result of flip, causal convolution, flip, without the flips.
    backend: 'auto', 'torch', 'cpu' (compiled), 'triton', 'cuda' (causal-conv1d).
    Raises ValueError on shapes that do not fit, an unknown activation or backend; ImportError or RuntimeError
    when a named backend is missing. Only 'torch' has second derivatives, forward mode and torch.func; the others raise
    RuntimeError (src/ops/first_order.py).
    """
    if x.dim() != 3 or weight.dim() != 2 or weight.shape[0] != x.shape[1]:
        raise ValueError(
            f"causal_conv1d: x must be (B, E, L), weight (E, W), got {tuple(x.shape)}, {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"causal_conv1d: bias must be {tuple(weight.shape[:1])}, got {tuple(bias.shape)}")
    if activation not in (None, "silu"):
        raise ValueError(f"causal_conv1d: activation must be None or 'silu', got {activation!r}")
    name = _choose(x, weight.shape[1]) if backend == "auto" else backend
    if name == "torch":
        return causal_conv1d_torch(x, weight, bias, activation, reverse)
    check_transforms(_OPERATOR, (x, weight, bias))
    if name == "cuda":
        return _cuda().forward(x, weight, bias, activation, reverse)
    if name == "triton":
        run = _triton()
        if x.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            raise RuntimeError(f"causal_conv1d: backend triton needs CUDA tensors, got {x.device}")
        return run(x, weight, bias, activation == "silu", reverse)
    if name != "cpu":
        raise ValueError(f"causal_conv1d: unknown backend {backend!r}; known: auto, torch, cpu, triton, cuda")
    if not has_library():
        raise RuntimeError(MISSING)
    return _cpu(x, weight, bias, activation == "silu", reverse)
