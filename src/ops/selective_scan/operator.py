"""Registration of a scan backend as PyTorch operators, so that torch.compile sees one node; other calls are direct.

A backend brings a forward, a backward, and how much it keeps between them; one operator takes one direction, another
takes two. Legend: B batch, E inner width (channels), L sequence length, N state size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from src.ops import direct
from src.ops.compiled import empty_like_layout
from src.ops.first_order import first_order_backward
from src.ops.selective_scan.inputs import OPERATOR, ScanInputs

_SIDE = "Tensor u{0}, Tensor delta{0}, Tensor A{0}, Tensor B{0}, Tensor C{0}, Tensor? D{0}, Tensor? delta_bias{0}"


class Backend(NamedTuple):
    """forward(inputs, keep) -> (out, what it keeps); backward(grad, inputs, kept) -> gradients in `tensors` order.

    keep(inputs, whether a backward follows): uninitialised tensors of the shapes of what forward keeps.
    pad_states: dB and dC are views of buffers whose state axis is padded to a multiple of this.
    """

    forward: Callable[[ScanInputs, bool], tuple[Tensor, Sequence[Tensor]]]
    backward: Callable[[Tensor, ScanInputs, Sequence[Tensor]], Sequence[Tensor | None]]
    keep: Callable[[ScanInputs, bool], Sequence[Tensor]]
    kept: int  # how many tensors `keep` returns
    pad_states: int = 1


def register(name: str, devices: Sequence[str], sides: int, backend: Backend) -> Callable[[ScanInputs], Tensor]:
    """Defines vjepa_mamba::<name>_forward and _backward for one or two directions; returns the differentiable scan."""
    schema = ", ".join(_SIDE.format(suffix) for suffix in ("", "_b")[:sides]) + ", Tensor? z"
    kept = "".join(f", Tensor kept{i}" for i in range(backend.kept))
    forward_name, backward_name = f"vjepa_mamba::{name}_forward", f"vjepa_mamba::{name}_backward"
    outputs = ", ".join(["Tensor"] * (1 + backend.kept))
    gradients = ", ".join(["Tensor"] * (7 * sides + 1))
    count = 7 * sides + 1
    torch.library.define(forward_name, f"({schema}, bool softplus, bool reverse, bool keep) -> ({outputs})")
    torch.library.define(backward_name, f"(Tensor grad, {schema}{kept}, bool softplus, bool reverse) -> ({gradients})")

    def forward(*args: Any) -> tuple[Tensor, ...]:
        *tensors, softplus, reverse, keep = args
        out, keeping = backend.forward(ScanInputs.of(tensors, softplus, reverse), keep)
        return (out, *keeping)

    def backward(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
        *tensors, softplus, reverse = args
        got = backend.backward(grad, ScanInputs.of(tensors[:count], softplus, reverse), tensors[count:])
        return direct.apart([empty_grad(grad) if g is None else g for g in got])

    def fake_forward(*args: Any) -> tuple[Tensor, ...]:
        *tensors, softplus, reverse, keep = args
        given = ScanInputs.of(tensors, softplus, reverse)
        return (empty_like_layout(given.u), *backend.keep(given, keep))

    def fake_backward(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
        given = ScanInputs.of(args[:count], *args[-2:])
        got: list[Tensor] = []
        for u, delta, A, B, C, D, bias in given.sides:
            got += [
                empty_like_layout(u),
                empty_like_layout(delta),
                torch.empty_like(A, memory_format=torch.contiguous_format),
            ]
            got += [state_gradient(x, backend.pad_states)[1] for x in (B, C)]
            got += [torch.empty_like(x) if x is not None else empty_grad(u) for x in (D, bias)]
        return *got, empty_like_layout(given.z) if given.z is not None else empty_grad(grad)

    torch.library.impl(forward_name, devices, forward)
    torch.library.impl(backward_name, devices, backward)
    torch.library.register_fake(forward_name, fake_forward)
    torch.library.register_fake(backward_name, fake_backward)
    run_forward = getattr(torch.ops.vjepa_mamba, f"{name}_forward").default
    run_backward = getattr(torch.ops.vjepa_mamba, f"{name}_backward").default

    def setup(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.softplus, ctx.reverse, _ = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *output[1:])

    def differentiate(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple:
        if grad is None:
            return (None,) * (count + 3)
        saved = ctx.saved_tensors

        def compute() -> list[Tensor | None]:
            got = run_backward(grad, *saved, ctx.softplus, ctx.reverse)
            return [g if x is not None else None for x, g in zip(saved, got)]

        return *first_order_backward(OPERATOR, compute, grad, saved[:count]), None, None, None

    torch.library.register_autograd(forward_name, differentiate, setup_context=setup)

    def eager_forward(tensors: Sequence[Any], options: tuple, keep: bool) -> tuple[Tensor, Sequence[Tensor]]:
        return backend.forward(ScanInputs.of(tensors, *options), keep)

    def eager_backward(
        grad: Tensor, tensors: Sequence[Any], options: tuple, kept: Sequence[Tensor]
    ) -> Sequence[Tensor | None]:
        return backend.backward(grad, ScanInputs.of(tensors, *options), kept)

    formula = direct.Formula(OPERATOR, eager_forward, eager_backward)

    def scan(given: ScanInputs) -> Tensor:
        tensors, options = given.tensors, (given.delta_softplus, given.reverse)
        keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
        if direct.possible(given.u):
            return direct.call(formula, options, tensors, keep)
        return run_forward(*tensors, *options, keep)[0]

    return scan


def empty_grad(like: Tensor) -> Tensor:
    """The empty tensor that stands for the gradient of an absent input."""
    return like.new_empty(0, dtype=torch.float32)


def state_gradient(x: Tensor, pad: int = 1) -> tuple[Tensor, Tensor]:
    """Float32 buffer (B, L, N padded) for the gradient of x (B, N, L), and that gradient: a view where x is float32."""
    batch, states, length = x.shape
    buffer = x.new_empty(batch, length, (states + pad - 1) // pad * pad, dtype=torch.float32)
    view = buffer[..., :states].transpose(1, 2)
    return buffer, view if x.dtype == torch.float32 else torch.empty_like(view, dtype=x.dtype)
