"""From a pretraining config, or a checkpoint that carries one, to an encoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from src.models.backbone import VideoEncoder
from src.models.registry import backbone, create_encoder
from src.utils.checkpoint import load, load_state_dict_strict, strip_prefixes
from src.utils.errors import UserError


def build_encoder(config: Mapping[str, Any]) -> VideoEncoder:
    """Encoder of a pretraining config, as plain dictionaries with the YAML's sections and every default filled in."""
    data, model = config["data"], config["model"]
    options = {
        "img_size": data["crop_size"],
        "patch_size": data["patch_size"],
        "num_frames": data["num_frames"],
        "tubelet_size": data["tubelet_size"],
        "uniform_power": model["uniform_power"],
        "drop_path_rate": model["drop_path_rate"],
    }
    if backbone(model["model_name"]).mixer == "mamba":
        options |= {"pos_embed": model["pos_embed"], "bidirectional": model["bidirectional"]}
    else:
        options |= {"use_sdpa": config["meta"]["use_sdpa"]}
    return create_encoder(model["model_name"], **options)


def load_encoder(path: str | Path, key: str = "target_encoder") -> VideoEncoder:
    """Encoder of one of our pretraining checkpoints, in eval mode, on the CPU.

    Its forward takes normalised clips (B, C, T, H, W), ImageNet's mean and deviation, and gives tokens (B, N, D).
    Raises UserError if the file is not such a checkpoint.
    """
    state = load(path)
    missing = [name for name in (key, "config") if name not in state]
    if missing:
        raise UserError(f"{path}: not a checkpoint of this code base: it has no {', '.join(missing)}")
    encoder = build_encoder(state["config"])
    load_state_dict_strict(encoder, strip_prefixes(state[key]), f"{path}: {key}")
    return encoder.eval()
