"""What a model is, read off a pretraining config or off the names and shapes of its tensors.

Legend: D width, P patches of a frame, N tokens of a clip.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from src.models.backbone import VideoEncoder
from src.models.predictor import Predictor
from src.models.registry import BACKBONES, PREDICTOR_ONLY, backbone_config, create_encoder, create_predictor
from src.models.utils.pos_embs import sincos_pos_embed_3d
from src.utils.errors import UserError
from src.utils.token_grid import Grid, token_grid

PATCH, POS, TIME, CLS = "patch_embed.proj.weight", "pos_embed", "temporal_pos_embedding", "cls_token"
_MIXER_KEY = {"attention": "attn.qkv.weight", "mamba": "mixer.in_proj.weight"}
_FIRST_BLOCK = {"attention": f"blocks.0.{_MIXER_KEY['attention']}", "mamba": f"layers.0.{_MIXER_KEY['mamba']}"}
_PROJECTOR_KEY = {"linear": "projector.weight", "mlp": "projector.fc1.weight"}
_IMAGE_FRAMES = 16  # that a model of images is made a video model for


class EncoderSpec(NamedTuple):
    """`create_encoder(name, **options)`."""

    name: str
    options: dict[str, Any]

    def build(self, device: str = "cpu") -> VideoEncoder:
        """The encoder, freshly initialised."""
        with torch.device(device):
            return create_encoder(self.name, **self.options)

    @property
    def grid(self) -> Grid:
        """Size of a clip in tokens."""
        o = self.options
        return token_grid(o["num_frames"], o["img_size"], o["patch_size"], o["tubelet_size"])


class PredictorSpec(NamedTuple):
    """`create_predictor(name, **options)`."""

    name: str
    options: dict[str, Any]

    def build(self, device: str = "cpu") -> Predictor:
        """The predictor, freshly initialised."""
        with torch.device(device):
            return create_predictor(self.name, **self.options)


def encoder_spec(config: Mapping[str, Any]) -> EncoderSpec:
    """Encoder of a pretraining config, as plain dictionaries with the YAML's sections and every default filled in."""
    model = config["model"]
    options = _clip(config) | {"drop_path_rate": model["drop_path_rate"]}
    if backbone_config(model["model_name"]).mixer == "mamba":
        options |= {"pos_embed": model["pos_embed"], "bidirectional": model["bidirectional"]}
        # Added later: a checkpoint that is older has none, and is what the constructor's defaults say.
        options |= {key: model[key] for key in ("scan_order", "halve_directions") if key in model}
    elif backbone_config(model["model_name"]).mixer == "attention":
        options |= {"use_sdpa": config["meta"]["use_sdpa"]}
    return EncoderSpec(model["model_name"], options)


def predictor_spec(config: Mapping[str, Any]) -> PredictorSpec:
    """Predictor of a pretraining config."""
    model = config["model"]
    options = _clip(config) | {
        "embed_dim": backbone_config(model["model_name"]).embed_dim,
        "predictor_embed_dim": model["pred_embed_dim"],
        "depth": model["pred_depth"],
        "num_heads": model["pred_num_heads"],
        "token_order": model["pred_token_order"],
        "use_mask_tokens": model["use_mask_tokens"],
        "num_mask_tokens": len(config["mask"]),
        "zero_init_mask_tokens": model["zero_init_mask_tokens"],
    }
    options |= {"projector": model["projector"]} if "projector" in model else {}  # added later
    if backbone_config(model["pred_model_name"]).mixer in ("attention", "hybrid"):
        options |= {"use_sdpa": config["meta"]["use_sdpa"]}
    return PredictorSpec(model["pred_model_name"], options)


def _clip(config: Mapping[str, Any]) -> dict[str, Any]:
    """What encoder and predictor must agree on."""
    data = config["data"]
    return {
        "img_size": data["crop_size"],
        "patch_size": data["patch_size"],
        "num_frames": data["num_frames"],
        "tubelet_size": data["tubelet_size"],
        "uniform_power": config["model"]["uniform_power"],
    }


def describe_encoder(tensors: Mapping[str, Tensor], what: str) -> EncoderSpec:
    """Which encoder has these tensors (bare names), read off their names and shapes, and fixed positions' values.

    Raises:
        UserError: neither a ViT's nor a VideoMamba's names, a size that is not in the table, rotary positions, or
            positions that are those of no grid.
    """
    refuse_rotary(tensors, what)
    mixer = next((kind for kind, key in _FIRST_BLOCK.items() if key in tensors), None)
    kernel = tensors.get(PATCH)
    if mixer is None or kernel is None or kernel.dim() not in (4, 5) or POS not in tensors:
        wanted = f"{PATCH}, {POS} and {' or '.join(_FIRST_BLOCK.values())}"
        raise UserError(f"{what}: not an encoder: it should have {wanted}; it has {_first(tensors)}")
    width, depth = len(kernel), len({name.split(".")[1] for name in tensors if re.match(r"(blocks|layers)\.\d", name)})
    name = next((n for n, r in BACKBONES.items() if (r.mixer, r.embed_dim, r.depth) == (mixer, width, depth)), None)
    if name is None:
        kind = "ViT" if mixer == "attention" else "VideoMamba"
        raise UserError(f"{what}: a {kind} {width} wide and {depth} deep, which is not in src/models/registry.py")
    options: dict[str, Any] = {
        "patch_size": kernel.shape[-1],
        "tubelet_size": kernel.shape[2] if kernel.dim() == 5 else 1,
    }
    if mixer == "mamba":
        options |= {
            "pos_embed": "learned" if TIME in tensors or kernel.dim() == 4 else "sincos",
            "bidirectional": "layers.0.mixer.A_b_log" in tensors,
            "cls_token": CLS in tensors,
            "num_classes": len(tensors["head.weight"]) if "head.weight" in tensors else 0,
        }
    if options.get("pos_embed") == "learned":
        grid = _learned_grid(tensors, options["cls_token"], what)
    else:
        grid, options["uniform_power"] = _fixed_grid(tensors[POS], what)
    options |= {"img_size": grid.h * options["patch_size"], "num_frames": grid.t * options["tubelet_size"]}
    return EncoderSpec(name, options)


def refuse_rotary(tensors: Mapping[str, Tensor], what: str) -> None:
    """Raise UserError if these tensors (bare names) are a ViT's without positions: its attention turns its queries."""
    if PATCH in tensors and _FIRST_BLOCK["attention"] in tensors and POS not in tensors:
        raise UserError(
            f"{what}: a ViT without {POS}: it has rotary positions, as V-JEPA 2's models, or lost its own; "
            "only ViTs with fixed positions are read, such as V-JEPA's"
        )


def _learned_grid(tensors: Mapping[str, Tensor], cls_token: bool, what: str) -> Grid:
    """Grid of learned positions: square frames, and as many tubelets as have a position (16 if none has: an image)."""
    patches = tensors[POS].shape[1] - cls_token
    side = math.isqrt(patches)
    if side**2 != patches:
        raise UserError(f"{what}: {POS} has {patches} patches, which is no square frame")
    return Grid(tensors[TIME].shape[1] if TIME in tensors else _IMAGE_FRAMES, side, side)


def _fixed_grid(pos_1ND: Tensor, what: str) -> tuple[Grid, bool]:
    """Grid of square frames, and uniform_power, whose table of sin-cos positions this is: a file says neither."""
    _, N, D = pos_1ND.shape
    grids = [Grid(t, side, side) for t in range(1, N + 1) if (side := math.isqrt(N // t)) ** 2 * t == N]
    for grid in sorted(grids, key=lambda grid: abs(grid.t - 8)):  # the likely ones first
        for uniform_power in (True, False):
            if torch.allclose(pos_1ND.float(), sincos_pos_embed_3d(D, grid, uniform_power), atol=1e-2):
                return grid, uniform_power
    raise UserError(f"{what}: {POS} {tuple(pos_1ND.shape)} holds no sin-cos positions of square frames")


def describe_predictor(
    tensors: Mapping[str, Tensor], encoder: EncoderSpec, what: str, num_heads: int | None = None
) -> PredictorSpec:
    """Which predictor for `encoder` has these tensors (bare names).

    Heads leave no trace in a file. V-JEPA gives its predictor as many as its encoder has, and so does this.
    Raises UserError if it is no predictor.
    """
    firsts = ("predictor_blocks.0", "predictor_blocks.1")
    mixers = [kind for kind, key in _MIXER_KEY.items() if any(f"{block}.{key}" in tensors for block in firsts)]
    mixer = "hybrid" if len(mixers) == 2 else mixers[0] if mixers else None
    embed = tensors.get("predictor_embed.weight")
    if mixer is None or embed is None:
        raise UserError(f"{what}: not a predictor: it should have predictor_embed.weight; it has {_first(tensors)}")
    rows = BACKBONES | PREDICTOR_ONLY
    name = next(n for n, row in rows.items() if row.mixer == mixer)  # for its mixer: the sizes follow
    shared = ("img_size", "patch_size", "num_frames", "tubelet_size", "uniform_power")
    options = {key: encoder.options[key] for key in shared if key in encoder.options}
    options |= {
        "predictor_embed_dim": embed.shape[0],
        "embed_dim": embed.shape[1],
        "depth": len({key.split(".")[1] for key in tensors if key.startswith("predictor_blocks.")}),
        "num_mask_tokens": sum(key.startswith("mask_tokens.") for key in tensors),
        "num_heads": num_heads or BACKBONES[encoder.name].num_heads,
        "projector": next((kind for kind, key in _PROJECTOR_KEY.items() if key in tensors), None),
    }
    return PredictorSpec(name, options)


def _first(tensors: Mapping[str, Any], count: int = 3) -> str:
    return ", ".join(list(tensors)[:count]) + (", ..." if len(tensors) > count else "") or "nothing"
