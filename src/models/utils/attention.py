"""Transformer blocks with V-JEPA's parameter names. Legend: B batch, N tokens, Q queries, D width, S heads."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from src.models.utils.drop_path import DropPath


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, use_sdpa: bool = True) -> torch.Tensor:
    """Softmax attention: (B, S, Q, d), (B, S, N, d), (B, S, N, d) -> (B, S, Q, d). use_sdpa: PyTorch's fused one."""
    if use_sdpa:
        return F.scaled_dot_product_attention(q, k, v)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return scores.softmax(dim=-1) @ v


class Mlp(nn.Module):
    """Linear, GELU, Linear. (B, N, D) -> (B, N, D)."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, D) -> (B, N, D)."""
        return self.fc2(F.gelu(self.fc1(x)))


class Attention(nn.Module):
    """Multi-head self-attention. (B, N, D) -> (B, N, D)."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True, use_sdpa: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.use_sdpa = use_sdpa
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BND: torch.Tensor) -> torch.Tensor:
        """(B, N, D) -> (B, N, D)."""
        B, N, D = x_BND.shape
        q, k, v = self.qkv(x_BND).reshape(B, N, 3, self.num_heads, D // self.num_heads).permute(2, 0, 3, 1, 4)
        return self.proj(attend(q, k, v, self.use_sdpa).transpose(1, 2).reshape(B, N, D))


class Block(nn.Module):
    """Pre-norm transformer block (Dosovitskiy et al. 2021). (B, N, D) -> (B, N, D)."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path: float = 0.0,
        norm_layer: Callable[..., nn.LayerNorm] = nn.LayerNorm,
        use_sdpa: bool = True,
    ) -> None:
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.attn = Attention(dim, num_heads, qkv_bias, use_sdpa)
        self.norm2 = norm_layer(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BND: torch.Tensor) -> torch.Tensor:
        """(B, N, D) -> (B, N, D)."""
        x_BND = x_BND + self.drop_path(self.attn(self.norm1(x_BND)))
        return x_BND + self.drop_path(self.mlp(self.norm2(x_BND)))


class CrossAttention(nn.Module):
    """Queries attend to tokens. (B, Q, D), (B, N, D) -> (B, Q, D).

    V-JEPA's probes carry a `proj` that their forward pass never applies. It is kept, frozen and unused, so that
    published probes load strictly and ours have the same keys.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True, use_sdpa: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.use_sdpa = use_sdpa
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim).requires_grad_(False)

    def forward(self, q_BQD: torch.Tensor, x_BND: torch.Tensor) -> torch.Tensor:
        """Queries (B, Q, D) and tokens (B, N, D) -> (B, Q, D)."""
        B, Q, D = q_BQD.shape
        N = x_BND.shape[1]
        q = self.q(q_BQD).reshape(B, Q, self.num_heads, D // self.num_heads).transpose(1, 2)
        k, v = self.kv(x_BND).reshape(B, N, 2, self.num_heads, D // self.num_heads).permute(2, 0, 3, 1, 4)
        return attend(q, k, v, self.use_sdpa).transpose(1, 2).reshape(B, Q, D)


class CrossAttentionBlock(nn.Module):
    """Cross-attention and MLP on the queries, both residual. (B, Q, D), (B, N, D) -> (B, Q, D)."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        norm_layer: Callable[..., nn.LayerNorm] = nn.LayerNorm,
        use_sdpa: bool = True,
    ) -> None:
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.xattn = CrossAttention(dim, num_heads, qkv_bias, use_sdpa)
        self.norm2 = norm_layer(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, q_BQD: torch.Tensor, x_BND: torch.Tensor) -> torch.Tensor:
        """Queries (B, Q, D) and tokens (B, N, D) -> (B, Q, D)."""
        q_BQD = q_BQD + self.xattn(q_BQD, self.norm1(x_BND))
        return q_BQD + self.mlp(self.norm2(q_BQD))
