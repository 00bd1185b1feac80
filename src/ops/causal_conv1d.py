"""Depthwise causal convolution along time, with optional silu, in either direction.

Legend: B batch, E channels, L sequence length, W filter width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def causal_conv1d_torch(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, reverse: bool = False
) -> Tensor:
    """The same by PyTorch's own grouped convolution."""
    width, weight = weight.shape[1], weight.to(x.dtype)
    padded = F.pad(x, (0, width - 1) if reverse else (width - 1, 0))
    kernel = (weight.flip(-1) if reverse else weight)[:, None]
    y = F.conv1d(padded, kernel, bias.to(x.dtype) if bias is not None else None, groups=x.shape[1])
    return F.silu(y) if activation == "silu" else y


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    reverse: bool = False,
    backend: str = "auto",
) -> Tensor:
    """y_t = act(bias + sum_k weight_k x_(t - W + 1 + k)), out-of-range x taken as 0.

    x: (B, E, L); weight: (E, W); bias: (E,); activation: None or 'silu'. Returns (B, E, L) in x's dtype.
    `reverse` looks ahead instead of back: the result of flip, causal convolution, flip, without the flips.
    Raises ValueError on shapes that do not fit, an unknown activation or backend.
    """
    if x.dim() != 3 or weight.dim() != 2 or weight.shape[0] != x.shape[1]:
        raise ValueError(
            f"causal_conv1d: x must be (B, E, L), weight (E, W), got {tuple(x.shape)}, {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"causal_conv1d: bias must be {tuple(weight.shape[:1])}, got {tuple(bias.shape)}")
    if activation not in (None, "silu"):
        raise ValueError(f"causal_conv1d: activation must be None or 'silu', got {activation!r}")
    if backend not in ("auto", "torch"):
        raise ValueError(f"causal_conv1d: unknown backend {backend!r}; known: auto, torch")
    return causal_conv1d_torch(x, weight, bias, activation, reverse)
