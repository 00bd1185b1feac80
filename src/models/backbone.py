"""What encoders and predictor share: a trunk of blocks over either mixer, and an encoder's way from clip to tokens.

Legend: B batch, C channels, T H W clip (frames, pixels), N tokens in raster order, K kept tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypedDict

import torch
from torch import nn

from src.masks.utils import apply_masks
from src.models.utils.attention import Block
from src.models.utils.mamba import MambaBlock, MambaMixer, RMSNorm
from src.models.utils.patch_embed import PatchEmbed3D
from src.models.utils.pos_embs import interpolate_pos_embed, sincos_pos_embed_3d
from src.utils.errors import UserError
from src.utils.token_grid import Grid, token_grid

LayerNorm = partial(nn.LayerNorm, eps=1e-6)


def drop_rates(depth: int, last: float) -> list[float]:
    """Stochastic depth of each block, rising linearly from 0 to `last`."""
    return [last * i / max(depth - 1, 1) for i in range(depth)]


def attention_trunk(
    dim: int,
    depth: int,
    num_heads: int,
    mlp_ratio: float = 4.0,
    qkv_bias: bool = True,
    drop_path_rate: float = 0.0,
    norm_layer: Callable[..., nn.LayerNorm] = LayerNorm,
    use_sdpa: bool = True,
) -> tuple[nn.ModuleList, nn.Module]:
    """Transformer blocks and the final norm, initialised as V-JEPA's constructor does.

    Raises UserError if the heads do not divide the width.
    """
    if dim % num_heads:
        raise UserError(f"{num_heads} heads do not divide a width of {dim}: choose a number of heads that does")
    rates = drop_rates(depth, drop_path_rate)
    made = [Block(dim, num_heads, mlp_ratio, qkv_bias, rate, norm_layer, use_sdpa) for rate in rates]
    blocks = nn.ModuleList(made)
    blocks.apply(init_linear)
    for i, block in enumerate(made):
        # The residual stream of block i sums 2(i+1) branches: scale each output so that its variance stays put.
        scale = (2.0 * (i + 1)) ** -0.5
        block.attn.proj.weight.data.mul_(scale)
        block.mlp.fc2.weight.data.mul_(scale)
    return blocks, norm_layer(dim)


def mamba_trunk(
    dim: int, depth: int, drop_path_rate: float = 0.0, backend: str = "auto", **mixer_options: Any
) -> tuple[nn.ModuleList, nn.Module]:
    """Mamba blocks and the final norm. Initialisation: see docs/decisions.md, 'Initialisation of VideoMamba'."""
    rates = drop_rates(depth, drop_path_rate)
    blocks = nn.ModuleList(MambaBlock(dim, rate, backend, **mixer_options) for rate in rates)
    return blocks, RMSNorm(dim, eps=1e-5, backend=backend)


def hybrid_trunk(
    dim: int,
    depth: int,
    num_heads: int,
    mlp_ratio: float = 4.0,
    qkv_bias: bool = True,
    drop_path_rate: float = 0.0,
    use_sdpa: bool = True,
    **mixer_options: Any,
) -> tuple[nn.ModuleList, nn.Module]:
    """Mamba and attention blocks by turns, Mamba first, and the final norm; each is what it is at its depth alone."""
    mamba, _ = mamba_trunk(dim, depth, drop_path_rate, **mixer_options)
    attention, norm = attention_trunk(dim, depth, num_heads, mlp_ratio, qkv_bias, drop_path_rate, use_sdpa=use_sdpa)
    return nn.ModuleList((mamba, attention)[i % 2][i] for i in range(depth)), norm


# What a predictor's trunk is chosen from, by its mixer: (dim, depth, **options) -> blocks and final norm.
TRUNKS: dict[str, Callable[..., tuple[nn.ModuleList, nn.Module]]] = {
    "attention": attention_trunk,
    "mamba": mamba_trunk,
    "hybrid": hybrid_trunk,
}


def init_linear(module: nn.Module, std: float = 0.02) -> None:
    """ViT's initialisation of one module: truncated normal weights, zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@torch.no_grad()
def init_fan_in(module: nn.Module) -> None:
    """Draw the Linears of one module, no deeper, with deviation 1/sqrt(inputs): variance in is variance out.

    `module.apply(init_fan_in)` reaches all. A fixed 0.02 suits widths of a thousand; at 96 or 192 a branch of a block
    then adds a hundredth of what it is added to, and a predictor passes on a thousandth of its gradient. What reaches
    the last matrix of a Mamba mixer has been through two SiLUs and a product and is a third of unit size, which that
    matrix makes up for. The matrix of the step sizes (dt_proj) keeps its own initialisation, and so do biases.
    """
    for name, part in module.named_children():
        if isinstance(part, nn.Linear) and not name.startswith("dt_proj"):
            gain = 3.0 if isinstance(module, MambaMixer) and name == "out_proj" else 1.0
            nn.init.normal_(part.weight, std=gain * part.in_features**-0.5)


class ClipOptions(TypedDict, total=False):
    """What every encoder is told of its clips: the sizes in pixels and frames that its positions are made for."""

    img_size: int | tuple[int, int]
    patch_size: int
    num_frames: int
    tubelet_size: int
    in_chans: int
    uniform_power: bool  # sin-cos positions split evenly between time, height and width


class VideoEncoder(nn.Module):
    """Clip -> tokens: patch embedding, positions, an optional choice of tokens, a trunk, a norm.

    Subclasses build the trunk and implement `run_trunk`. Sizes are the ones the positions are made for; `forward` takes
    any clip that can be cut into whole patches and tubelets, and resamples the positions.
    """

    blocks_name, norm_name = "blocks", "norm"  # of the trunk's parts, in the state dict

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        num_frames: int = 16,
        tubelet_size: int = 2,
        in_chans: int = 3,
        embed_dim: int = 768,
        uniform_power: bool = False,
    ) -> None:
        super().__init__()
        self.patch_size, self.tubelet_size = patch_size, tubelet_size
        self.embed_dim = embed_dim
        self.uniform_power = uniform_power
        self.non_tensor_config: dict[str, Any] = {}  # those that no tensor of the state dict shows
        self.grid = token_grid(num_frames, img_size, patch_size, tubelet_size)
        self.patch_embed = PatchEmbed3D(patch_size, tubelet_size, in_chans, embed_dim)

    def add_sincos(self) -> None:
        """Register fixed 3-D sin-cos positions (in the state dict, as in V-JEPA; never trained)."""
        code = sincos_pos_embed_3d(self.embed_dim, self.grid, self.uniform_power)
        self.pos_embed = nn.Parameter(code, requires_grad=False)

    def positions(self, grid: Grid) -> torch.Tensor:
        """Positions for `grid` -> (1, N, D)."""
        return interpolate_pos_embed(self.pos_embed, self.grid, grid)

    def embed(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Clip (B, C, T, H, W) -> tokens with positions (B, N, D). Raises UserError if it is not whole patches."""
        grid = self.grid_of(x_BCTHW)
        return self.patch_embed(x_BCTHW) + self.positions(grid)

    def grid_of(self, x_BCTHW: torch.Tensor) -> Grid:
        """Size of a clip (B, C, T, H, W) in tokens. Raises UserError if it is not whole patches."""
        _, _, T, H, W = x_BCTHW.shape
        return token_grid(T, (H, W), self.patch_size, self.tubelet_size)

    def scan_order_of(self, grid: Grid, index_BK: torch.Tensor | None = None) -> torch.Tensor | None:
        """Where to find each token that the blocks scan, (B or 1, K), among those in raster order; None: they are so.

        Args:
            grid: of the whole clip.
            index_BK: which of its tokens there are, where some are left out.
        """
        return None

    def encode(
        self,
        x_BND: torch.Tensor,
        masks: torch.Tensor | list[torch.Tensor] | None = None,
        grid: Grid | None = None,
    ) -> torch.Tensor:
        """Embedded tokens (B, N, D), kept only at `masks` if given -> (B, N or K, D).

        `grid` is that of the clip, where it has another size than the one the encoder was made for.
        """
        if masks is not None:
            x_BND = apply_masks(x_BND, masks)
        return self.run_trunk(x_BND)

    @property
    def trunk(self) -> tuple[nn.ModuleList, nn.Module]:
        """The blocks, and the norm after them."""
        return getattr(self, self.blocks_name), getattr(self, self.norm_name)

    def run_trunk(self, x_BND: torch.Tensor) -> torch.Tensor:
        """Embedded tokens (B, N, D) through blocks and final norm -> (B, N, D)."""
        raise NotImplementedError

    def forward(self, x_BCTHW: torch.Tensor, masks: torch.Tensor | list[torch.Tensor] | None = None) -> torch.Tensor:
        """Clip (B, C, T, H, W), normalised -> (B, N, D), or (B, K, D) at the token indices `masks` (B, K).

        A list of masks is concatenated along the batch, as in V-JEPA.
        """
        return self.encode(self.embed(x_BCTHW), masks, self.grid_of(x_BCTHW))
