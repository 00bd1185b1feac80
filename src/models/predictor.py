"""Predictor of masked features: mask tokens, a trunk over either mixer, a projection back to the encoder's width.

Legend: B batch, K context tokens, M target tokens, N tokens of the grid, D encoder width, P predictor width.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from src.masks.utils import apply_masks
from src.models.backbone import TRUNKS, init_linear
from src.models.utils.attention import Mlp
from src.models.utils.pos_embs import sincos_pos_embed_3d
from src.utils.errors import UserError
from src.utils.token_grid import token_grid


def make_projector(kind: Literal["linear", "mlp"] | None, dim: int) -> nn.Module:
    """Projection of the encoder's hidden states, (B, N, D) -> (B, N, D); None: they pass as they are.

    Raises UserError for another kind.
    """
    if kind is None:
        return nn.Identity()
    if kind not in ("linear", "mlp"):
        raise UserError(f"projector '{kind}' is not known: choose linear or mlp, or none")
    return nn.Linear(dim, dim) if kind == "linear" else Mlp(dim, 2 * dim)


class Predictor(nn.Module):
    """From context tokens, predict the features at the target positions (Bardes et al. 2024, section 3).

    Args:
        img_size, patch_size, num_frames, tubelet_size: size of the clips, in pixels and frames.
        embed_dim: width of the encoder, D.
        predictor_embed_dim, depth: width P and number of blocks of the trunk.
        token_order: order in which context and mask tokens enter the trunk. 'raster' sorts them by position; 'concat',
            V-JEPA's, leaves the mask tokens behind the context. Attention does not see the order. A scan does: with
            'concat' every mask token is far from its neighbours in the clip.
        projector: projects the context first. An EMA of it projects the targets, so that the encoder's own features
            need not be what is predicted.
        trunk: a key of src.models.backbone.TRUNKS.
        trunk_options: go to that trunk: num_heads, mlp_ratio, ... of attention; d_state, ... of Mamba.

    Raises:
        UserError: a token order, projector or size that does not exist; predicting from noised targets.
    """

    def __init__(
        self,
        *,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        num_frames: int = 16,
        tubelet_size: int = 2,
        embed_dim: int = 768,
        predictor_embed_dim: int = 384,
        depth: int = 6,
        uniform_power: bool = False,
        use_mask_tokens: bool = True,
        num_mask_tokens: int = 2,
        zero_init_mask_tokens: bool = True,
        token_order: Literal["raster", "concat"] = "raster",
        projector: Literal["linear", "mlp"] | None = None,
        trunk: str,
        **trunk_options: Any,
    ) -> None:
        super().__init__()
        if not use_mask_tokens:
            raise UserError(
                "model.use_mask_tokens: false (predicting from noised targets) is not supported: set it to true"
            )
        if token_order not in ("raster", "concat"):
            raise UserError(f"token order '{token_order}' is not known: choose raster or concat")
        self.token_order = token_order
        # Drawn first and registered in V-JEPA's place: a seed's weights, and an optimizer's state, go by these orders.
        blocks, norm = TRUNKS[trunk](predictor_embed_dim, depth, **trunk_options)
        grid = token_grid(num_frames, img_size, patch_size, tubelet_size)
        self.predictor_pos_embed = nn.Parameter(
            sincos_pos_embed_3d(predictor_embed_dim, grid, uniform_power), requires_grad=False
        )
        self.predictor_embed = nn.Linear(embed_dim, predictor_embed_dim)
        self.mask_tokens = nn.ParameterList(
            nn.Parameter(torch.zeros(1, 1, predictor_embed_dim)) for _ in range(num_mask_tokens)
        )
        if not zero_init_mask_tokens:
            for token in self.mask_tokens:
                nn.init.trunc_normal_(token, std=0.02)
        self.predictor_blocks, self.predictor_norm = blocks, norm
        self.predictor_proj = nn.Linear(predictor_embed_dim, embed_dim)
        self.projector = make_projector(projector, embed_dim)
        if trunk == "attention":  # as V-JEPA does
            self.predictor_embed.apply(init_linear)
            self.predictor_proj.apply(init_linear)

    def forward(
        self,
        ctxt: torch.Tensor,
        tgt: torch.Tensor | None,
        masks_ctxt: torch.Tensor,
        masks_tgt: torch.Tensor,
        mask_index: int = 0,
    ) -> torch.Tensor:
        """Context tokens (B, K, D) at masks_ctxt (B, K) -> predictions (B, M, D) at masks_tgt (B, M).

        `tgt` is V-JEPA's argument for predicting from noised targets and is not read. `mask_index` picks the mask
        token.
        """
        K = ctxt.shape[1]
        positions = self.predictor_pos_embed.expand(len(ctxt), -1, -1)
        context = self.predictor_embed(self.projector(ctxt)) + apply_masks(positions, masks_ctxt)
        masked = self.mask_tokens[mask_index % len(self.mask_tokens)] + apply_masks(positions, masks_tgt)
        x = torch.cat([context, masked], dim=1)
        if self.token_order == "raster":
            order = torch.cat([masks_ctxt, masks_tgt], dim=1).argsort(dim=1)
            back = order.argsort(dim=1)[:, K:]
            x = apply_masks(x, order)
        for block in self.predictor_blocks:
            x = block(x)
        x = apply_masks(x, back) if self.token_order == "raster" else x[:, K:]
        return self.predictor_proj(self.predictor_norm(x))


class VisionTransformerPredictor(Predictor):
    """V-JEPA's name of the predictor with an attention trunk."""

    def __init__(self, *, num_heads: int = 12, **options: Any) -> None:
        super().__init__(trunk="attention", num_heads=num_heads, **options)
