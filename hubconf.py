"""Entry points of torch.hub, one for each backbone of src/models/registry.py.

encoder = torch.hub.load("PATH/TO/CHECKOUT", "videomamba_tiny", source="local", checkpoint="jepa-latest.pth.tar")
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from src.models.backbone import VideoEncoder
from src.models.loading import load_encoder
from src.models.registry import BACKBONES, create_encoder

dependencies = ["torch", "numpy", "safetensors"]


def _entry_point(name: str) -> Callable[..., VideoEncoder]:
    def build(checkpoint: str | None = None, **options: Any) -> VideoEncoder:
        if checkpoint is not None:
            return load_encoder(checkpoint, model_name=name, **options)
        return create_encoder(name, **options).eval()

    build.__name__ = name
    build.__doc__ = f"""{name} in eval mode: clips (B, 3, T, H, W) -> tokens (B, N, {BACKBONES[name].embed_dim}).

    Args:
        checkpoint: our checkpoint or export, or weights published by V-JEPA or VideoMamba. None: random weights.
        options: with a checkpoint those of src.models.load_encoder (key, img_size, num_frames, ...); without one those
            of the constructor (img_size, patch_size, num_frames, tubelet_size, ...).

    Raises:
        UserError: the checkpoint is missing, damaged, or of another model.
    """
    return build


for _name in BACKBONES:
    globals()[_name] = _entry_point(_name)
