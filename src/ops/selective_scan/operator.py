"""Registration of a scan backend as PyTorch operators, so that torch.compile sees one node and autograd one formula.

A backend brings two functions, `forward` and `backward`, with the schemas below, and the shape of its checkpoints.
`add` (B, E, L) is added to the output before the gate: the other direction's output, so that the gate is applied once.
Legend: B batch, E inner width (channels), L sequence length, N state size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from src.ops.compiled import empty_like_layout

_INPUTS = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, Tensor? add"
_FORWARD = f"({_INPUTS}, bool softplus, bool reverse, bool keep) -> (Tensor, Tensor)"
_BACKWARD = (
    f"(Tensor grad, {_INPUTS}, Tensor checkpoints, bool softplus, bool reverse) -> ({', '.join(['Tensor'] * 9)})"
)

Forward = Callable[..., tuple[Tensor, Tensor]]
Backward = Callable[..., tuple[Tensor, ...]]


def register(
    name: str,
    devices: Sequence[str],
    forward: Forward,
    backward: Backward,
    checkpoint_shape: Callable[[Tensor, int, bool], tuple[int, ...]],
    pad_states: int,
) -> Callable[..., Tensor]:
    """Defines vjepa_mamba::<name>_forward and _backward; returns the differentiable function.

    checkpoint_shape(u, N, keep): shape of forward's second output. pad_states: dB and dC are views of buffers whose
    state axis is padded to a multiple of this.
    """
    forward_name, backward_name = f"vjepa_mamba::{name}_forward", f"vjepa_mamba::{name}_backward"
    torch.library.define(forward_name, _FORWARD)
    torch.library.define(backward_name, _BACKWARD)
    torch.library.impl(forward_name, devices, forward)
    torch.library.impl(backward_name, devices, backward)

    def fake_forward(u: Tensor, delta: Tensor, A: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        shape = checkpoint_shape(u, A.shape[1], bool(rest[-1]))
        return empty_like_layout(u), u.new_empty(shape, dtype=torch.float32)

    def fake_backward(grad: Tensor, u: Tensor, delta: Tensor, A: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        B, C, D, z, delta_bias, add = rest[:6]
        return (
            empty_like_layout(u),
            empty_like_layout(delta),
            torch.empty_like(A, memory_format=torch.contiguous_format),
            state_gradient(B, pad_states)[1],
            state_gradient(C, pad_states)[1],
            torch.empty_like(D) if D is not None else none(u),
            empty_like_layout(z) if z is not None else none(u),
            torch.empty_like(delta_bias) if delta_bias is not None else none(u),
            empty_like_layout(u) if add is not None else none(u),
        )

    torch.library.register_fake(forward_name, fake_forward)
    torch.library.register_fake(backward_name, fake_backward)
    run_forward = getattr(torch.ops.vjepa_mamba, f"{name}_forward").default
    run_backward = getattr(torch.ops.vjepa_mamba, f"{name}_backward").default

    def setup(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.softplus, ctx.reverse, _ = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, output[1])

    def gradients(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple:
        if grad is None:
            return (None,) * 12
        *tensors, checkpoints = ctx.saved_tensors
        got = run_backward(grad, *tensors, checkpoints, ctx.softplus, ctx.reverse)
        return (*(g if x is not None else None for x, g in zip(tensors, got)), None, None, None)

    torch.library.register_autograd(forward_name, gradients, setup_context=setup)

    def scan(*args: Tensor | None, delta_softplus: bool, reverse: bool) -> Tensor:
        keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in args)
        return run_forward(*args, delta_softplus, reverse, keep)[0]

    return scan


def none(like: Tensor) -> Tensor:
    """The empty tensor that stands for the gradient of an absent input."""
    return like.new_empty(0, dtype=torch.float32)


def state_gradient(x: Tensor, pad: int) -> tuple[Tensor, Tensor]:
    """Float32 buffer (B, L, N padded) for the gradient of x (B, N, L), and that gradient: a view where x is float32."""
    batch, states, length = x.shape
    buffer = x.new_empty(batch, length, (states + pad - 1) // pad * pad, dtype=torch.float32)
    view = buffer[..., :states].transpose(1, 2)
    return buffer, view if x.dtype == torch.float32 else torch.empty_like(view, dtype=x.dtype)
