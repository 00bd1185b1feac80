"""The probe head: learned queries attend to frozen tokens (Bardes et al. 2024, section 4). V-JEPA's parameter names.

Legend: B batch, N tokens, Q queries, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from src.models.backbone import init_linear
from src.models.utils.attention import Block, CrossAttentionBlock


class AttentivePooler(nn.Module):
    """Tokens (B, N, D) -> (B, Q, D): one cross-attention block, then depth - 1 self-attention blocks on the queries."""

    def __init__(
        self,
        num_queries: int = 1,
        embed_dim: int = 768,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        depth: int = 1,
        qkv_bias: bool = True,
        norm_layer: Callable[..., nn.LayerNorm] = nn.LayerNorm,  # eps 1e-5 in V-JEPA's probes, 1e-6 in its encoders
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        self.query_tokens = nn.Parameter(torch.zeros(1, num_queries, embed_dim))
        nn.init.trunc_normal_(self.query_tokens, std=init_std)
        self.cross_attention_block = CrossAttentionBlock(embed_dim, num_heads, mlp_ratio, qkv_bias, norm_layer)
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, qkv_bias, norm_layer=norm_layer) for _ in range(depth - 1)
        )
        self.apply(lambda module: init_linear(module, init_std))

    def forward(self, x_BND: torch.Tensor) -> torch.Tensor:
        """Tokens (B, N, D) -> (B, num_queries, D)."""
        q_BQD = self.cross_attention_block(self.query_tokens.expand(len(x_BND), -1, -1), x_BND)
        for block in self.blocks:
            q_BQD = block(q_BQD)
        return q_BQD


class AttentiveClassifier(nn.Module):
    """Attentive pooling to one query and a linear layer. (B, N, D) -> (B, num_classes).

    `pooler_options`: mlp_ratio, qkv_bias, norm_layer, init_std, as in AttentivePooler.
    """

    def __init__(
        self,
        embed_dim: int = 768,
        num_heads: int = 12,
        depth: int = 1,
        num_classes: int = 1000,
        **pooler_options: Any,
    ) -> None:
        super().__init__()
        self.pooler = AttentivePooler(1, embed_dim, num_heads, depth=depth, **pooler_options)
        self.linear = nn.Linear(embed_dim, num_classes)

    def forward(self, x_BND: torch.Tensor) -> torch.Tensor:
        """Tokens (B, N, D) -> logits (B, num_classes)."""
        return self.linear(self.pooler(x_BND).squeeze(1))
