"""The limit of compiled operators: first derivatives, in reverse mode. Everything beyond is refused, not wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def _refuse(operator: str, what: str) -> RuntimeError:
    return RuntimeError(
        f"{operator}: no {what} through a compiled operator or the chunked scan: choose PyTorch's own operations, with "
        "backend='reference' for a model (VideoMamba, load_encoder) and the scan, 'torch' for convolution and norm"
    )


def check_transforms(operator: str, tensors: Iterable[Tensor | None]) -> None:
    """RuntimeError inside torch.func's transforms and for tensors that carry a forward-mode tangent.

    Kernels read memory, which a transform's wrappers do not have and which holds no tangent.
    """
    if torch._C._are_functorch_transforms_active():
        raise _refuse(operator, "torch.func transform (grad, jvp, vmap, ...)")
    if not torch.compiler.is_compiling():
        for x in tensors:
            if x is not None and forward_ad.unpack_dual(x).tangent is not None:
                raise _refuse(operator, "forward-mode derivative")
            if x is not None and torch._C._functorch.is_legacy_batchedtensor(x):
                raise _refuse(operator, "batched gradient (is_grads_batched, vectorize)")


class _NotDifferentiable(torch.autograd.Function):
    """The first `count` tensors as they are, but refusing to be differentiated; the others are what they depend on."""

    @staticmethod
    def forward(ctx: Any, operator: str, count: int, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.operator = operator
        return tuple(x.detach() if x is not None else None for x in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *_: Any) -> None:
        raise _refuse(ctx.operator, "second derivative")


def first_order_backward(
    operator: str, compute: Callable[[], Sequence[Tensor | None]], grad: Tensor, tensors: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """What an operator's backward returns: the gradients that `compute` finds from `grad` and the operator's `tensors`.

    Under create_graph they refuse to be differentiated. Without this they would pass for constants: a kernel records
    nothing, and PyTorch's once_differentiable looks at `grad` alone. Raises RuntimeError as check_transforms does.
    """
    check_transforms(operator, (grad,))
    if not torch.is_grad_enabled():
        return tuple(compute())
    with torch.no_grad():
        gradients = compute()
    return _NotDifferentiable.apply(operator, len(gradients), *gradients, grad, *tensors)


class _FirstOrderOnly(torch.autograd.Function):
    """Tensors as they are; gradients that come back to them are final."""

    @staticmethod
    def forward(ctx: Any, operator: str, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.operator = operator
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return tuple(x.view_as(x) if x is not None else None for x in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():
            return (None, *gradients)
        tensors = ctx.saved_tensors
        return (None, *_NotDifferentiable.apply(ctx.operator, len(gradients), *gradients, *tensors))


def first_order_only(operator: str, tensors: Sequence[Tensor | None]) -> tuple[Any, ...]:
    """The tensors for a foreign operator, which may not know that it can be differentiated only once."""
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        return _FirstOrderOnly.apply(operator, *tensors)
    return tuple(tensors)
