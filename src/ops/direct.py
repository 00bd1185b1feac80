"""Differentiable calls that pass by PyTorch's dispatcher, which costs more CPU time than launching a few kernels.

Operators registered with torch.library are what torch.compile sees; every other call goes through `call`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from src.ops.first_order import first_order_backward


class Formula(NamedTuple):
    """forward(tensors, options, keep) -> (out, what it keeps); backward(grad, tensors, options, kept) -> gradients.

    operator: its name in messages.
    keep: whether a backward may follow. A gradient for each tensor, None where a tensor is absent.
    """

    operator: str
    forward: Callable[[Sequence[Any], tuple, bool], tuple[Tensor, Sequence[Tensor]]]
    backward: Callable[[Tensor, Sequence[Any], tuple, Sequence[Tensor]], Sequence[Tensor | None]]


class _Call(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, formula: Formula, options: tuple, *tensors: Tensor | None) -> Tensor:
        out, kept = formula.forward(tensors, options, True)
        ctx.save_for_backward(*tensors, *kept)
        ctx.formula, ctx.options, ctx.count = formula, options, len(tensors)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        formula, saved = ctx.formula, ctx.saved_tensors
        tensors = saved[: ctx.count]

        def compute() -> Sequence[Tensor | None]:
            return formula.backward(grad, tensors, ctx.options, saved[ctx.count :])

        return None, None, *first_order_backward(formula.operator, compute, grad, tensors)


def possible(x: Tensor) -> bool:
    """Whether nothing has to see an operator: no compiler, no tracer, no transform, no mode, no tensor subclass."""
    return (
        type(x) is Tensor
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()
    )


def call(formula: Formula, options: tuple, tensors: Sequence[Any], keep: bool) -> Tensor:
    """The formula's output; `keep`: whether a tensor wants a gradient."""
    if keep:
        return _Call.apply(formula, options, *tensors)
    return formula.forward(tensors, options, False)[0]


def apart(results: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The results, copied where they share memory with one before: an operator's may not."""
    seen: set[int] = set()
    alone = []
    for x in results:
        address = x.untyped_storage().data_ptr()
        alone.append(x.clone() if address in seen else x)
        seen.add(address)
    return tuple(alone)
