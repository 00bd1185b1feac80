"""mamba-ssm's and causal-conv1d's CUDA kernels behind our signatures; imported only when asked for.

Both know one direction, so `reverse` flips the sequence before and after.
"""

from __future__ import annotations

import functools

import torch
from causal_conv1d import causal_conv1d_fn
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
from torch import Tensor

from src.ops.selective_scan.inputs import ScanInputs


def selective_scan_cuda(inputs: ScanInputs) -> Tensor:
    """Same contract as `selective_scan_reference` on CUDA tensors.

    mamba-ssm wants one type for u, delta, B, C and z: the widest of them is taken, so that a float32 step stays one.
    """
    if len(inputs.sides) == 2:
        return selective_scan_cuda(inputs.alone(0)) + selective_scan_cuda(inputs.alone(1))
    if inputs.u.device.type != "cuda":
        raise RuntimeError(f"selective_scan: backend cuda needs CUDA tensors, got {inputs.u.device}")
    u, delta, A, B, C, D, bias, z = inputs.tensors
    along = (u, delta, B, C, z)
    work = functools.reduce(torch.promote_types, [x.dtype for x in along if x is not None])
    x, step, b, c, gate = (t.to(work) if t is not None else None for t in along)
    a, skip, offset = (t.float() if t is not None else None for t in (A, D, bias))
    if inputs.reverse:
        x, step, b, c, gate = (t.flip(-1) if t is not None else None for t in (x, step, b, c, gate))
    out = selective_scan_fn(x, step, a, b, c, skip, gate, offset, inputs.delta_softplus)
    return (out.flip(-1) if inputs.reverse else out).to(u.dtype)


def causal_conv1d_cuda(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, reverse: bool = False
) -> Tensor:
    """Same contract as `causal_conv1d` on CUDA tensors, filters of 2 to 4 taps."""
    if x.device.type != "cuda":
        raise RuntimeError(f"causal_conv1d: backend cuda needs CUDA tensors, got {x.device}")
    kernel, offset = weight.to(x.dtype), bias.to(x.dtype) if bias is not None else None
    out = causal_conv1d_fn(x.flip(-1) if reverse else x, kernel, offset, activation=activation)
    return out.flip(-1) if reverse else out
