"""The oldest Triton that compiles this project's kernels. Older ones come with older builds of PyTorch."""

from __future__ import annotations

MINIMUM = (3, 5)  # with 3.5.1 every kernel compiles for sm_80, sm_90 and sm_100; 3.3.1 took 18 times as long for it


def require_triton() -> None:
    """ImportError where Triton is missing or too old."""
    import triton

    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < MINIMUM:
        oldest = ".".join(str(part) for part in MINIMUM)
        raise ImportError(f"triton {triton.__version__} is too old: {oldest} or newer is needed")
