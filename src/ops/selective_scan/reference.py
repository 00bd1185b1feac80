"""The selective scan, step by step: the specification every other backend is held to.

Legend: B batch, E inner width (channels), L sequence length, N state size.
Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023, section 3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from src.ops.selective_scan.inputs import ScanInputs


def work_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def step_size(delta: Tensor, delta_bias: Tensor | None, delta_softplus: bool) -> Tensor:
    """(B, E, L) raw step -> (B, E, L) step: the bias is added first, then softplus when asked for."""
    if delta_bias is not None:
        delta = delta + delta_bias.to(delta.dtype)[:, None]
    return F.softplus(delta) if delta_softplus else delta


def finish(y: Tensor, u: Tensor, D: Tensor | None, z: Tensor | None) -> Tensor:
    """(B, E, L) state read-out -> output: the skip D*u, then the gate silu(z)."""
    if D is not None:
        y = y + D.to(y.dtype)[:, None] * u
    return y * F.silu(z) if z is not None else y


def selective_scan_reference(inputs: ScanInputs) -> Tensor:
    """h_t = exp(delta_t A) h_(t-1) + delta_t B_t u_t;  out_t = (C_t . h_t + D u_t) silu(z_t), of one or two directions.

    Returns (B, E, L) in u's dtype. Works in float64 when u is float64, else in float32.
    Plain operations only, so autograd (also twice) gives the specified gradients.
    """
    if len(inputs.sides) == 2:
        return selective_scan_reference(inputs.alone(0)) + selective_scan_reference(inputs.alone(1))
    dtype = inputs.u.dtype
    u, delta, A, B, C, D, bias, z = inputs.to(work_dtype(dtype)).tensors
    dt = step_size(delta, bias, inputs.delta_softplus)
    length = u.shape[-1]
    h = u.new_zeros(u.shape[0], u.shape[1], A.shape[1])
    y: list[Tensor] = [h.sum(-1)] * length
    for t in reversed(range(length)) if inputs.reverse else range(length):
        step = dt[:, :, t, None]
        h = torch.exp(step * A) * h + step * u[:, :, t, None] * B[:, None, :, t]
        y[t] = (h * C[:, None, :, t]).sum(-1)
    out = torch.stack(y, dim=-1) if y else torch.zeros_like(u)
    return finish(out, u, D, z).to(dtype)
