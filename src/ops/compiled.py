"""The shared library of compiled CPU kernels: finding it, loading it, handing tensors to it.

It is built by setup.py from selective_scan/csrc where there is a C++ compiler, and called through ctypes.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import overload

import torch
from torch import Tensor

_log = logging.getLogger(__name__)

ABI = 5  # of csrc/args.h
MISSING = "the compiled CPU kernels are missing: install a C++ compiler and run `pip install -e .` again"
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
ABSENT = [0, 0, 0, 0, 0]


def find_library() -> Path | None:
    """The library's file next to this module, or None when it was not built."""
    return next(iter(sorted(Path(__file__).parent.glob("_kernels*.so"))), None)


@functools.lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The loaded library, or None after one warning that says why there is none."""
    path = find_library()
    if path is None:
        _log.warning("%s; using the slower PyTorch fallback", MISSING)
        return None
    try:
        lib = ctypes.CDLL(str(path))
        found = lib.kernels_abi()
    except (OSError, AttributeError) as error:
        _log.warning("%s cannot be used (%s): run `pip install -e .` again; using the slower fallback", path, error)
        return None
    if found != ABI:
        _log.warning("%s is of another version: run `pip install -e .` again; using the slower fallback", path)
        return None
    for name in ("kernels_use_lanes", "scan_work_floats", "conv_work_floats"):
        function = getattr(lib, name)
        function.restype = ctypes.c_int64
        function.argtypes = [ctypes.c_int64] * (4 if name == "scan_work_floats" else 1)
    for name in ("scan_forward", "scan_backward", "conv_forward", "conv_backward", "norm_forward", "norm_backward"):
        function = getattr(lib, name)
        function.restype, function.argtypes = None, [ctypes.c_void_p]
    return lib


@torch.compiler.assume_constant_result
def has_library() -> bool:
    """Whether the compiled kernels can be used; a constant to torch.compile."""
    return library() is not None


def need_library() -> ctypes.CDLL:
    """The loaded library; RuntimeError saying what to do when there is none."""
    lib = library()
    if lib is None:
        raise RuntimeError(MISSING)
    return lib


def call(function: str, fields: Iterable[int]) -> None:
    """Calls `function` with the fields of its argument struct, all 64-bit."""
    values = list(fields)
    getattr(need_library(), function)((ctypes.c_int64 * len(values))(*values))


def array(x: Tensor | None) -> list[int]:
    """(batch, row, time) tensor as struct Array: pointer, strides, type."""
    return [x.data_ptr(), *x.stride(), DTYPES[x.dtype]] if x is not None else ABSENT


def data_ptr(x: Tensor | None) -> int:
    """Address of the first element, 0 for None."""
    return x.data_ptr() if x is not None else 0


@overload
def to_kernel_dtype(x: Tensor) -> Tensor: ...
@overload
def to_kernel_dtype(x: None) -> None: ...
def to_kernel_dtype(x: Tensor | None) -> Tensor | None:
    """x in a type the kernels read."""
    return x if x is None or x.dtype in DTYPES else x.float()


def as_float32(x: Tensor | None) -> Tensor | None:
    """A parameter as contiguous float32."""
    return x.float().contiguous() if x is not None else None


def empty_like_layout(x: Tensor) -> Tensor:
    """Uninitialised (B, E, L), channels innermost in memory where they are in x, else time innermost."""
    _, channels, length = x.shape
    strides = (length * channels, 1, channels) if x.stride(1) == 1 else (channels * length, length, 1)
    return torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device)


def threads_for(work: int, grain: int) -> int:
    """PyTorch's thread count, fewer when there is little work."""
    return max(1, min(torch.get_num_threads(), work // grain))


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed memory in the process; False where there is no glibc.

    By default every freed large tensor goes back to the system and comes back page by page, zeroed: up to a fifth of
    the time of memory-bound operators. For long-lived processes that compute on the CPU.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    trim_threshold, mmap_threshold = -1, -3  # names in malloc.h; 32 MiB is the largest mmap threshold glibc takes
    return bool(mallopt(mmap_threshold, 32 << 20)) and bool(mallopt(trim_threshold, 2**31 - 1))
