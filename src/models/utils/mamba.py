"""The Mamba mixer, one- or bidirectional, with VideoMamba's parameter names.

Legend: B batch, L tokens, D width, E = expand*D inner width, N state size, R rank of the step size, W taps of the conv.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from src.models.utils.drop_path import DropPath
from src.ops.causal_conv1d import causal_conv1d
from src.ops.rms_norm import rms_norm
from src.ops.selective_scan import BACKENDS, Direction, selective_scan, selective_scan_bidirectional
from src.utils.errors import UserError

_IN_PYTORCH = ("reference", "chunked")  # backends under which convolutions and norms are PyTorch's own, too


def small_operators(backend: str) -> Literal["auto", "torch"]:
    """What convolutions and norms run with where scans run with `backend`. Raises UserError if there is none such."""
    if backend != "auto" and backend not in BACKENDS:
        raise UserError(f"backend '{backend}' is not known: choose auto, {', '.join(BACKENDS)}")
    return "torch" if backend in _IN_PYTORCH else "auto"


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """x in float32, or as it is in float64."""
    return x if x.dtype == torch.float64 else x.float()


class MambaMixer(nn.Module):
    """Selective state-space mixer (Gu & Dao 2023, section 3), bidirectional as in Vision Mamba / VideoMamba.

    forward: (B, L, D) -> (B, L, D). Both directions share the input and output projections and the gate z; each has its
    own convolution, step size, A and D. The backward one runs on the reversed sequence and its output is reversed back.
    `halve_directions` averages the two directions instead of adding them (Vim's later `if_divide_out`).
    A, delta and the state stay in float32 under autocast. `backend`: of the scan, and whether a compiled operator may
    be used at all (docs/backends.md).
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        bidirectional: bool = True,
        halve_directions: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.inner = expand * dim
        self.d_state = d_state
        self.dt_rank = math.ceil(dim / 16)
        self.halve_directions = halve_directions
        self.backend, self.conv_backend = backend, small_operators(backend)
        self.suffixes = ("", "_b") if bidirectional else ("",)

        self.in_proj = nn.Linear(dim, 2 * self.inner, bias=False)
        for suffix in self.suffixes:
            conv = nn.Conv1d(self.inner, self.inner, d_conv, groups=self.inner, padding=d_conv - 1)
            self.register_module(f"conv1d{suffix}", conv)
            self.register_module(f"x_proj{suffix}", nn.Linear(self.inner, self.dt_rank + 2 * d_state, bias=False))
            self.register_module(f"dt_proj{suffix}", nn.Linear(self.dt_rank, self.inner))
            # No weight decay: A_log sets the time constants, decay would pull every one of them to A = -1.
            A_log = torch.arange(1, d_state + 1, dtype=torch.float32).log().repeat(self.inner, 1)
            self.register_parameter(f"A{suffix}_log", nn.Parameter(A_log))
            self.register_parameter(f"D{suffix}", nn.Parameter(torch.ones(self.inner)))
        self.out_proj = nn.Linear(self.inner, dim, bias=False)
        self.reset_dt()

    def reset_dt(self, dt_min: float = 1e-3, dt_max: float = 0.1) -> None:
        """Step sizes: softplus(dt_proj.bias) log-uniform in [dt_min, dt_max] (Gu & Dao 2023, section 3.6)."""
        for suffix in self.suffixes:
            dt_proj = getattr(self, f"dt_proj{suffix}")
            nn.init.uniform_(dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
            dt = torch.exp(torch.rand(self.inner) * math.log(dt_max / dt_min) + math.log(dt_min))
            with torch.no_grad():
                dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        """(B, L, D) -> (B, L, D)."""
        # Tensors stay (B, L, E) in memory; the transposes below are views, which the CPU kernels read without a copy.
        x_BEL, z_BEL = (half.transpose(1, 2) for half in self.in_proj(x_BLD).chunk(2, dim=-1))
        forth = self._direction(x_BEL, "", reverse=False)
        if len(self.suffixes) == 1:
            y_BEL = selective_scan(**forth._asdict(), z=z_BEL, delta_softplus=True, backend=self.backend)
        else:
            back = self._direction(x_BEL, "_b", reverse=True)
            y_BEL = selective_scan_bidirectional(forth, back, z_BEL, delta_softplus=True, backend=self.backend)
            if self.halve_directions:
                y_BEL = y_BEL * 0.5
        return self.out_proj(y_BEL.transpose(1, 2))

    def _direction(self, x_BEL: torch.Tensor, suffix: str, reverse: bool) -> Direction:
        """What one direction scans: its convolution's output, and delta, B and C computed from it."""
        conv, dt_proj = getattr(self, f"conv1d{suffix}"), getattr(self, f"dt_proj{suffix}")
        taps = conv.weight.squeeze(1)
        x_BEL = causal_conv1d(x_BEL, taps, conv.bias, "silu", reverse, self.conv_backend)
        dBC = getattr(self, f"x_proj{suffix}")(x_BEL.transpose(1, 2))
        dt, B, C = dBC.split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        delta = F.linear(dt, dt_proj.weight)  # its bias is added in float32, inside the scan
        return Direction(
            x_BEL,
            delta.transpose(1, 2),
            -torch.exp(at_least_float32(getattr(self, f"A{suffix}_log"))),
            B.transpose(1, 2),
            C.transpose(1, 2),
            at_least_float32(getattr(self, f"D{suffix}")),
            at_least_float32(dt_proj.bias),
        )


class RMSNorm(nn.RMSNorm):
    """nn.RMSNorm in one pass on the CPU. (..., D) -> (..., D). `backend`: as of MambaMixer."""

    def __init__(self, dim: int, eps: float, backend: str = "auto") -> None:
        super().__init__(dim, eps=eps)
        self.backend = small_operators(backend)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., D)."""
        assert self.eps is not None  # torch's class allows it
        return rms_norm(x, self.weight, self.eps, self.backend)


class MambaBlock(nn.Module):
    """Pre-norm residual block around a mixer; the residual stream stays in float32. (B, L, D) -> (B, L, D)."""

    def __init__(self, dim: int, drop_path: float = 0.0, backend: str = "auto", **mixer_options: Any) -> None:
        super().__init__()
        self.norm = RMSNorm(dim, eps=1e-5, backend=backend)
        self.mixer = MambaMixer(dim, backend=backend, **mixer_options)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        """(B, L, D) -> (B, L, D)."""
        return x_BLD + self.drop_path(self.mixer(self.norm(x_BLD)))
