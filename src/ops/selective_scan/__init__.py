"""The selective scan of Mamba behind one function; `backend` chooses who computes it (see docs/backends.md)."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from src.ops.compiled import library
from src.ops.selective_scan.chunked import selective_scan_chunked
from src.ops.selective_scan.cpu import MAX_STATES, selective_scan_cpu
from src.ops.selective_scan.reference import selective_scan_reference

__all__ = ["BACKENDS", "available_backends", "selective_scan"]

_log = logging.getLogger(__name__)
_said: set[tuple[str, str]] = set()

BACKENDS: dict[str, Callable[..., Tensor]] = {
    "reference": selective_scan_reference,
    "chunked": selective_scan_chunked,
    "cpu": selective_scan_cpu,
}


def available_backends(device: str | torch.device = "cpu") -> list[str]:
    """Names of the backends that can run here on tensors of this device."""
    return list(BACKENDS)


def _choose(u: Tensor, states: int) -> str:
    """What `auto` means for these tensors; float64 always goes to the backend that keeps it."""
    if u.dtype == torch.float64:
        return "chunked"
    if u.device.type == "cpu" and states <= MAX_STATES and library():
        return "cpu"
    return "chunked"


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    reverse: bool = False,
    backend: str = "auto",
) -> Tensor:
    """h_t = exp(delta_t A) h_(t-1) + delta_t B_t u_t;  out_t = (C_t . h_t + D u_t) silu(z_t).

    u, delta, z: (B, E, L); A: (E, N); B, C: (B, N, L); D, delta_bias: (E,). Returns (B, E, L) in u's dtype.
    `delta_softplus`: the step is softplus(delta + delta_bias). `reverse`: time runs from L-1 to 0.
    Raises ValueError on shapes that do not fit or an unknown backend, ImportError or RuntimeError when a named
    backend is missing.
    """
    _check_shapes(u, delta, A, B, C, D, z, delta_bias)
    name = _choose(u, A.shape[1]) if backend == "auto" else backend
    if name not in BACKENDS:
        raise ValueError(f"selective_scan: unknown backend {backend!r}; known: auto, {', '.join(BACKENDS)}")
    if (name, u.device.type) not in _said:
        _said.add((name, u.device.type))
        _log.info("selective_scan on %s: backend %s", u.device.type, name)
    return BACKENDS[name](u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse)


def _check_shapes(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> None:
    if u.dim() != 3 or A.dim() != 2:
        raise ValueError(f"selective_scan: u must be (B, E, L) and A (E, N), got {tuple(u.shape)}, {tuple(A.shape)}")
    batch, channels, length = u.shape
    states = A.shape[1]
    expected = (
        ("delta", delta, (batch, channels, length)),
        ("A", A, (channels, states)),
        ("B", B, (batch, states, length)),
        ("C", C, (batch, states, length)),
        ("D", D, (channels,)),
        ("z", z, (batch, channels, length)),
        ("delta_bias", delta_bias, (channels,)),
    )
    for name, x, shape in expected:
        if x is not None and x.shape != shape:
            raise ValueError(f"selective_scan: {name} must be {shape} beside u {tuple(u.shape)}, got {tuple(x.shape)}")
