"""The table of backbones. A row is a size; every row can be an encoder and a predictor, some a predictor only."""

from __future__ import annotations

from typing import Any, NamedTuple

from src.models.backbone import VideoEncoder
from src.models.predictor import Predictor
from src.models.utils.mamba import small_operators
from src.models.videomamba import VideoMamba
from src.models.vision_transformer import VisionTransformer
from src.utils.errors import UserError


class BackboneConfig(NamedTuple):
    """Size of a backbone. `mixer` is a key of src.models.backbone.TRUNKS; `num_heads` is None without attention."""

    mixer: str
    embed_dim: int
    depth: int
    num_heads: int | None = None
    mlp_ratio: float = 4.0


ENCODERS: dict[str, type[VideoEncoder]] = {"mamba": VideoMamba, "attention": VisionTransformer}

BACKBONES: dict[str, BackboneConfig] = {
    "videomamba_tiny": BackboneConfig("mamba", 192, 24),
    "videomamba_small": BackboneConfig("mamba", 384, 24),
    "videomamba_middle": BackboneConfig("mamba", 576, 32),
    "videomamba_base": BackboneConfig("mamba", 768, 24),
    "videomamba_nano": BackboneConfig("mamba", 96, 4),  # the size of the study, as is vit_nano
    "vit_tiny": BackboneConfig("attention", 192, 12, 3),
    "vit_small": BackboneConfig("attention", 384, 12, 6),
    "vit_base": BackboneConfig("attention", 768, 12, 12),
    "vit_large": BackboneConfig("attention", 1024, 24, 16),
    "vit_huge": BackboneConfig("attention", 1280, 32, 16),
    "vit_nano": BackboneConfig("attention", 96, 3, 3),
}
PREDICTOR_ONLY: dict[str, BackboneConfig] = {"hybrid_tiny": BackboneConfig("hybrid", 192, 12, 3)}


def backbone_config(name: str) -> BackboneConfig:
    """Row of the tables. Raises UserError, which names all rows, if there is none."""
    if name in PREDICTOR_ONLY:
        return PREDICTOR_ONLY[name]
    if name not in BACKBONES:
        raise UserError(f"model '{name}' is not in the table of backbones: choose one of {', '.join(BACKBONES)}")
    return BACKBONES[name]


def default_num_heads(width: int) -> int:
    """Heads for a width that is not in the table: 64 channels a head, 32 where that would leave fewer than three."""
    heads = width // 64 if width >= 192 else width // 32
    while heads > 1 and width % heads:
        heads -= 1
    return max(heads, 1)


def _with_backend(mixer: str, options: dict[str, Any]) -> dict[str, Any]:
    """`backend` as the trunk knows it: attention is PyTorch's fused one, which `reference` writes out."""
    if mixer == "mamba" or "backend" not in options:
        return options
    rest = {key: value for key, value in options.items() if key != "backend"}
    backend = small_operators(options["backend"])
    options = options if mixer == "hybrid" else rest
    return options | {"use_sdpa": False} if backend == "torch" else options


def create_encoder(name: str, **options: Any) -> VideoEncoder:
    """Encoder `name`; options go to its constructor (img_size, patch_size, num_frames, tubelet_size, ...).

    Options override the table's sizes (embed_dim, depth, num_heads). `backend` is that of docs/backends.md; 'reference'
    makes any encoder one of PyTorch's plain operations, which can be differentiated any number of times. Raises
    UserError for an unknown name, and for one that is a predictor's only.
    """
    row = backbone_config(name)
    if name in PREDICTOR_ONLY:
        raise UserError(f"model '{name}' is a predictor only: for an encoder choose one of {', '.join(BACKBONES)}")
    sizes: dict[str, Any] = {"embed_dim": row.embed_dim, "depth": row.depth}
    if row.num_heads is not None:
        sizes |= {"num_heads": row.num_heads, "mlp_ratio": row.mlp_ratio}
    return ENCODERS[row.mixer](**sizes | _with_backend(row.mixer, options))


def create_predictor(name: str, embed_dim: int, **options: Any) -> Predictor:
    """Predictor with the trunk of `name` for an encoder of width `embed_dim`.

    Options go to its constructor and override the table's sizes (predictor_embed_dim, depth, num_heads). `backend` is
    that of `create_encoder`. Raises UserError for an unknown name.
    """
    row = backbone_config(name)
    sizes: dict[str, Any] = {"predictor_embed_dim": row.embed_dim, "depth": row.depth}
    given = {key: value for key, value in options.items() if value is not None}
    options = sizes | _with_backend(row.mixer, given)
    if row.num_heads is None:
        options.pop("num_heads", None)
    else:
        width = options["predictor_embed_dim"]
        heads = row.num_heads if width == row.embed_dim else default_num_heads(width)
        options = {"num_heads": heads, "mlp_ratio": row.mlp_ratio} | options
    return Predictor(embed_dim=embed_dim, trunk=row.mixer, **options)
