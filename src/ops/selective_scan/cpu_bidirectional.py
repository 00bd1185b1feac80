"""Both directions of the compiled CPU scan as one operator (vjepa_mamba::bidirectional_forward, _backward).

The second direction adds the first one's output in place and gates the sum, so no buffer but the output is needed. On
the way back the first direction leaves its recomputed output where the gate's gradient will be, the second one reads it
there. Legend as in cpu.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from src.ops.compiled import empty_like_layout, readable
from src.ops.selective_scan.cpu import PAD, check, checkpoint_shape, launch_backward, launch_forward
from src.ops.selective_scan.operator import none, state_gradient

Maybe = Tensor | None
Side = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Maybe, Maybe]
_SIDE = "Tensor u{0}, Tensor delta{0}, Tensor A{0}, Tensor B{0}, Tensor C{0}, Tensor? D{0}, Tensor? delta_bias{0}"
_INPUTS = f"{_SIDE.format('')}, {_SIDE.format('_b')}, Tensor? z"
_GRADIENTS = ", ".join(["Tensor"] * 15)
torch.library.define(
    "vjepa_mamba::bidirectional_forward", f"({_INPUTS}, bool softplus, bool keep) -> (Tensor, Tensor, Tensor)"
)
torch.library.define(
    "vjepa_mamba::bidirectional_backward",
    f"(Tensor grad, {_INPUTS}, Tensor checkpoints, Tensor checkpoints_b, bool softplus) -> ({_GRADIENTS})",
)


def _split(inputs: Sequence[Any]) -> tuple[Side, Side, Maybe]:
    ahead, back = tuple(inputs[:7]), tuple(inputs[7:14])
    return ahead, back, inputs[14]


@torch.library.impl("vjepa_mamba::bidirectional_forward", "cpu")
def _(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    *inputs, softplus, keep = args
    ahead, back, z = _split(inputs)
    out = empty_like_layout(ahead[0])
    first = launch_forward(*ahead[:6], None, ahead[6], None, softplus, False, keep, out)
    second = launch_forward(*back[:6], z, back[6], out, softplus, True, keep, out)
    return out, first, second


@torch.library.impl("vjepa_mamba::bidirectional_backward", "cpu")
def _(*args: Any) -> tuple[Tensor, ...]:
    grad, *inputs, first, second, softplus = args
    ahead, back, z = _split(inputs)
    dz = empty_like_layout(z) if z is not None else None
    got = launch_backward(grad, *ahead[:6], z, ahead[6], None, first, softplus, False, dz, y_to_dz=True)
    got += launch_backward(grad, *back[:6], z, back[6], dz, second, softplus, True, dz)
    return tuple(none(grad) if g is None else g for g in (*got, dz))


@torch.library.register_fake("vjepa_mamba::bidirectional_forward")
def _(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    u, A, A_b, keep = args[0], args[2], args[9], args[-1]
    kept = [u.new_empty(checkpoint_shape(u, a.shape[1], keep), dtype=torch.float32) for a in (A, A_b)]
    return empty_like_layout(u), kept[0], kept[1]


@torch.library.register_fake("vjepa_mamba::bidirectional_backward")
def _(*args: Any) -> tuple[Tensor, ...]:
    grad, *inputs = args[:16]
    ahead, back, z = _split(inputs)
    got = []
    for u, delta, A, B, C, D, bias in (ahead, back):
        got += [empty_like_layout(u), empty_like_layout(delta), torch.empty_like(A), state_gradient(B, PAD)[1]]
        got += [state_gradient(C, PAD)[1], *(torch.empty_like(x) if x is not None else none(u) for x in (D, bias))]
    return *got, empty_like_layout(z) if z is not None else none(grad)


def _setup(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.softplus, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output[1:])


def _gradients(ctx: Any, grad: Maybe, *_: Maybe) -> tuple[Maybe, ...]:
    if grad is None:
        return (None,) * 17
    saved = ctx.saved_tensors
    got = torch.ops.vjepa_mamba.bidirectional_backward(grad, *saved, ctx.softplus)
    return (*(g if x is not None else None for x, g in zip(saved, got)), None, None)


torch.library.register_autograd("vjepa_mamba::bidirectional_forward", _gradients, setup_context=_setup)


def bidirectional_scan_cpu(ahead: Sequence[Any], back: Sequence[Any], z: Maybe, delta_softplus: bool) -> Tensor:
    """(scan(ahead) + reversed scan(back)) * silu(z); a side is (u, delta, A, B, C, D, delta_bias).

    Raises as `selective_scan_cpu` does.
    """
    check(ahead[0], max(ahead[2].shape[1], back[2].shape[1]))
    tensors = [x if i % 7 in (2, 5, 6) else readable(x) for i, x in enumerate((*ahead, *back))]
    gate = readable(z)
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (*tensors, gate))
    out = torch.ops.vjepa_mamba.bidirectional_forward(*tensors, gate, delta_softplus, keep)[0]
    return out.to(ahead[0].dtype)
