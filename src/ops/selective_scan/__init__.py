"""The selective scan of Mamba behind one function; `backend` chooses who computes it (see docs/backends.md)."""

from __future__ import annotations

import functools
import importlib
import logging
import os
from collections.abc import Callable

import torch
from torch import Tensor

from src.ops.compiled import has_library
from src.ops.first_order import check_transforms
from src.ops.foreign import INSTALL, kernel_runs
from src.ops.selective_scan.chunked import selective_scan_chunked
from src.ops.selective_scan.cpu import MAX_STATES, selective_scan_cpu
from src.ops.selective_scan.inputs import OPERATOR, Direction, ScanInputs
from src.ops.selective_scan.reference import selective_scan_reference

__all__ = ["BACKENDS", "Direction", "available_backends", "selective_scan", "selective_scan_bidirectional"]

_log = logging.getLogger(__name__)
_said: set[tuple[str, str]] = set()
_PACKAGE = __name__

# backend -> (module, what to install where importing the module fails)
BACKENDS: dict[str, tuple[str, str]] = {
    "reference": ("reference", ""),
    "chunked": ("chunked", ""),
    "cpu": ("cpu", ""),
    "cuda": ("cuda", INSTALL),
    "triton": ("triton", "pip install -U triton"),
}

# kind of device -> what `auto` tries in order, before chunked. On an NVIDIA H200 (docs/results/gpu_versus.csv), forward
# and backward, triton takes 0.33 to 0.54 of the time of cuda's two calls with flips where channels are innermost in
# memory; where time is, 0.70 to 0.89, and 1.01 to 1.05 at 25088 steps, a tie.
AUTO: dict[str, tuple[str, ...]] = {"cuda": ("triton", "cuda"), "cpu": ("cpu",)}

_loaded: dict[str, Callable[[ScanInputs], Tensor]] = {
    "reference": selective_scan_reference,
    "chunked": selective_scan_chunked,
    "cpu": selective_scan_cpu,
}


def load_backend(name: str) -> Callable[[ScanInputs], Tensor]:
    """The backend's function. ImportError saying what to install when its libraries are missing."""
    if name not in _loaded:
        module, remedy = BACKENDS[name]
        try:
            imported = importlib.import_module(f"{_PACKAGE}.{module}")
        except (ImportError, OSError) as error:  # OSError: a library built for another CUDA or torch
            raise ImportError(f"selective_scan: backend {name} is not available ({error}); install {remedy}") from error
        _loaded[name] = getattr(imported, f"selective_scan_{name}")
    return _loaded[name]


@functools.cache
def _loads(name: str) -> bool:
    try:
        load_backend(name)
    except ImportError:
        return False
    return name != "cuda" or kernel_runs("mamba-ssm", importlib.import_module(f"{_PACKAGE}.cuda").trial)


@torch.compiler.assume_constant_result
def _first_that_loads(*names: str) -> str:
    return next(name for name in names if _loads(name))


def choose_backend(device: str, dtype: torch.dtype, states: int) -> str:
    """What `auto` means for tensors on this kind of device; float64 goes to the backend that keeps it."""
    order = AUTO.get(device, ()) if dtype != torch.float64 else ()
    if "cpu" in order and (states > MAX_STATES or not has_library()):
        order = ()
    return _first_that_loads(*order, "chunked")


def available_backends(device: str = "cpu") -> list[str]:
    """Names of the backends that run on tensors of this kind of device ('cpu' or 'cuda') here and now."""
    names = ["reference", "chunked"]
    if device == "cpu" and has_library():
        names.append("cpu")
    if device == "cuda" and _loads("cuda"):
        names.append("cuda")
    if (device == "cuda" or os.environ.get("TRITON_INTERPRET") == "1") and _loads("triton"):
        names.append("triton")
    return names


def _say_once(name: str, device: str) -> None:
    if (name, device) not in _said:
        _said.add((name, device))
        _log.info("selective_scan on %s: backend %s", device, name)


def _pick(backend: str, u: Tensor, states: int) -> Callable[[ScanInputs], Tensor]:
    """The function of the named or automatic backend."""
    device = u.device.type
    name = choose_backend(device, u.dtype, states) if backend == "auto" else backend
    if name not in BACKENDS:
        raise ValueError(f"selective_scan: unknown backend {backend!r}; known: auto, {', '.join(BACKENDS)}")
    scan = _loaded[name] if name in _loaded else load_backend(name)
    if not torch.compiler.is_compiling():
        _say_once(name, device)
    return scan


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
    backend is missing. Only 'reference' has second derivatives, forward mode and torch.func; the others raise
    RuntimeError (src/ops/first_order.py).
    """
    return _run(ScanInputs((Direction(u, delta, A, B, C, D, delta_bias),), z, delta_softplus, reverse), backend)


def selective_scan_bidirectional(
    ahead: Direction,
    back: Direction,
    z: Tensor | None = None,
    delta_softplus: bool = False,
    backend: str = "auto",
) -> Tensor:
    """(scan(ahead) + reversed scan(back)) * silu(z): (B, E, L). Raises as `selective_scan` does.

    The compiled and the Triton backend do it in one operator; the others scan twice and add.
    """
    return _run(ScanInputs((ahead, back), z, delta_softplus), backend)


def _run(inputs: ScanInputs, backend: str) -> Tensor:
    inputs.check()
    if backend != "reference":
        check_transforms(OPERATOR, inputs.tensors)
    return _pick(backend, inputs.u, inputs.shape[3])(inputs)
