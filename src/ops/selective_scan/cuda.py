"""mamba-ssm's CUDA kernel behind our signature; imported only when asked for.

It knows one direction, so `reverse` flips the sequence before and after.
"""

from __future__ import annotations

import functools

import selective_scan_cuda as kernel  # noqa: F401 (the package is installed without it unless told otherwise)
import torch
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
from torch import Tensor

from src.ops.first_order import first_order_only
from src.ops.selective_scan.inputs import OPERATOR, ScanInputs


def trial(device: torch.device) -> None:
    """The kernel once, forward and backward, on a few numbers; what it raises goes through."""
    shapes = ((1, 1, 8), (1, 1, 8), (1, 16), (1, 16, 8), (1, 16, 8))
    selective_scan_fn(*(torch.zeros(shape, device=device, requires_grad=True) for shape in shapes)).sum().backward()


def selective_scan_cuda(inputs: ScanInputs) -> Tensor:
    """Same contract as `selective_scan_reference` on CUDA tensors.

    mamba-ssm wants one type for u, delta, B, C and z: the widest of them is taken, so that a float32 step stays one.
    """
    if inputs.u.device.type != "cuda":
        raise RuntimeError(f"selective_scan: backend cuda needs CUDA tensors, got {inputs.u.device}")
    return scan(inputs)


def scan(inputs: ScanInputs) -> Tensor:
    """The same on any device that the kernel is for."""
    if len(inputs.sides) == 2:
        return scan(inputs.alone(0)) + scan(inputs.alone(1))
    u, delta, A, B, C, D, bias, z = first_order_only(OPERATOR, inputs.tensors)
    along = (u, delta, B, C, z)
    work = functools.reduce(torch.promote_types, [x.dtype for x in along if x is not None])
    x, step, b, c, gate = (t.to(work) if t is not None else None for t in along)
    a, skip, offset = (t.float() if t is not None else None for t in (A, D, bias))
    if inputs.reverse:
        x, step, b, c, gate = (t.flip(-1) if t is not None else None for t in (x, step, b, c, gate))
    out = selective_scan_fn(x, step, a, b, c, skip, gate, offset, inputs.delta_softplus)
    return (out.flip(-1) if inputs.reverse else out).to(u.dtype)
