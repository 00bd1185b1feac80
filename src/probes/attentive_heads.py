"""Attentive heads side by side, evaluated together.

The probe's query is one learned vector, the same for all samples. So its product with a key, q . (W_k x), is
(W_k^T q) . x, and the weighted sum of values is W_v applied to the weighted sum of tokens: neither keys nor values of
the L tokens are needed, only one score for each token and attention head. The numbers are those of
AttentiveClassifier.forward (a test holds outputs and gradients to it); the work is smaller by about the width of a
head, and all classifiers read the tokens once.

Legend: B batch, L tokens, D width, G classifiers side by side, S attention heads, d = D/S, C classes.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.models.attentive_pooler import AttentiveClassifier


class HeadGrid(nn.ModuleList):
    """G attentive classifiers of the same shape. forward: (B, L, D) -> logits (G, B, C), float32."""

    @classmethod
    def build(cls, count: int, embed_dim: int, num_heads: int, num_classes: int, seed: int) -> HeadGrid:
        """`count` classifiers of depth 1 that start from the same weights, drawn from `seed`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            first = AttentiveClassifier(embed_dim, num_heads, depth=1, num_classes=num_classes)
        return cls(copy.deepcopy(first) for _ in range(count))

    def forward(self, x_BLD: Tensor) -> Tensor:
        heads = cast("list[AttentiveClassifier]", list(self))
        eps = heads[0].pooler.cross_attention_block.norm1.eps
        normed = F.layer_norm(x_BLD, x_BLD.shape[-1:], eps=eps)  # the affine part follows after pooling
        probes_GSD = torch.stack([_score_vectors(head) for head in heads])
        G, S, D = probes_GSD.shape
        scores_BPL = probes_GSD.reshape(1, G * S, D).to(normed.dtype).expand(len(normed), -1, -1) @ normed.transpose(
            1, 2
        )
        pooled = scores_BPL.float().softmax(-1).to(normed.dtype) @ normed
        pooled_GBSD = pooled.unflatten(1, (G, S)).transpose(0, 1)
        return torch.stack([_finish(head, pooled_GBSD[i]).float() for i, head in enumerate(heads)])


def _score_vectors(head: AttentiveClassifier) -> Tensor:
    """What a normalised token is multiplied with to get its attention logits, (S, D)."""
    block = head.pooler.cross_attention_block
    attention, D = block.xattn, block.norm1.weight.numel()
    S = attention.num_heads
    query_Sd = attention.q(head.pooler.query_tokens).reshape(S, D // S)
    keys_SdD = attention.kv.weight[:D].reshape(S, D // S, D)
    vectors = torch.einsum("sd,sde->se", query_Sd.float(), keys_SdD)  # the key's bias moves all tokens alike
    return vectors * block.norm1.weight * (D // S) ** -0.5


def _finish(head: AttentiveClassifier, pooled_BSD: Tensor) -> Tensor:
    """From each attention head's mean of normalised tokens to logits (B, C)."""
    block = head.pooler.cross_attention_block
    attention = block.xattn
    B, S, D = pooled_BSD.shape
    pooled_BSD = pooled_BSD * block.norm1.weight + block.norm1.bias
    values_SdD = attention.kv.weight[D:].reshape(S, D // S, D)
    mixed_BD = torch.einsum("bse,sde->bsd", pooled_BSD, values_SdD.to(pooled_BSD.dtype)).reshape(B, D)
    if attention.kv.bias is not None:
        mixed_BD = mixed_BD + attention.kv.bias[D:]
    query_BD = head.pooler.query_tokens[:, 0] + mixed_BD
    query_BD = query_BD + block.mlp(block.norm2(query_BD))
    return head.linear(query_BD)
