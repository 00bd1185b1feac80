"""Whether another package's kernel runs here. That its Python part can be imported says little: it may be built without
the kernel, for another GPU, or fall back to something slow."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

_log = logging.getLogger(__name__)

DEVICE = torch.device("cuda")
INSTALL = (
    "mamba-ssm and causal-conv1d with their kernels: "
    "MAMBA_KEEP_CUDA_BUILD=TRUE pip install --no-build-isolation -e .[cuda] on a CUDA machine"
)
# What a kernel that is missing, None, of another version or of another GPU raises; RuntimeError has CUDA's own.
_FAILURES = (ImportError, OSError, RuntimeError, AttributeError, TypeError, AssertionError)


def kernel_runs(package: str, trial: Callable[[torch.device], None]) -> bool:
    """Whether `trial`, a tiny call of the package's kernel, passes on the GPU; a warning says why it does not.

    False without a GPU, and CUDA is left alone then.
    """
    if not torch.cuda.is_available():
        return False
    try:
        with torch.inference_mode(False), torch.enable_grad():
            trial(DEVICE)
    except _FAILURES as error:
        reason = " ".join(str(error).split())
        _log.warning("%s is installed, but its kernel does not run (%s): it is not used", package, reason)
        return False
    return True
