"""The backbones as timm's models: `import src.models.timm_models`, then `timm.create_model("videomamba_tiny")`.

Importing this file registers every row of src/models/registry.py with timm (`pip install -e .[timm]`); nothing else
here imports timm. Names and arguments are those that timm's models have.

Legend: B batch, C channels, T H W clip, N tokens in raster order, D width, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import (
    build_model_with_cfg,
    checkpoint_seq,
    generate_default_cfgs,
    register_model,
)
from timm.models._features import feature_take_indices
from torch import nn

from src.models.decay import decays
from src.models.loading import load_encoder
from src.models.registry import BACKBONES, create_encoder
from src.utils.checkpoint import load_state_dict_strict
from src.utils.errors import UserError

POOLS = ("avg", "max", "")


class TimmVideoEncoder(nn.Module):
    """An encoder of the registry with pooling and a classifier, by timm's conventions.

    Takes clips (B, C, T, H, W), or images (B, C, H, W), which it sees as clips of `num_frames` equal frames.
    `encoder_options` go to the encoder (num_frames, tubelet_size, depth, pos_embed, ...).
    """

    def __init__(
        self,
        name: str,
        num_classes: int = 0,
        in_chans: int = 3,
        img_size: int = 224,
        num_frames: int = 16,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        **encoder_options: Any,
    ) -> None:
        super().__init__()
        self.encoder = create_encoder(
            name,
            img_size=img_size,
            in_chans=in_chans,
            num_frames=num_frames,
            drop_path_rate=drop_path_rate,
            **encoder_options,
        )
        if getattr(self.encoder, "cls_token", None) is not None:
            raise ValueError("cls_token=True: these models pool patch tokens, use src.models.videomamba itself")
        self.name, self.num_frames = name, num_frames
        self.num_features = self.head_hidden_size = self.embed_dim = self.encoder.embed_dim
        self.num_prefix_tokens = 0
        self.grad_checkpointing = False
        reduction = self.encoder.patch_size
        self.feature_info = [
            {"module": f"encoder.{self.encoder.blocks_name}.{i}", "num_chs": self.embed_dim, "reduction": reduction}
            for i in range(len(self.encoder.trunk[0]))
        ]
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier (none for 0 classes); `global_pool` is one of POOLS, None leaves it as it is."""
        if global_pool is not None:
            if global_pool not in POOLS:
                raise ValueError(f"global_pool {global_pool!r} is not one of {POOLS}")
            self.global_pool = global_pool
        self.num_classes = num_classes
        like = self.encoder.patch_embed.proj.weight
        self.head: nn.Module = nn.Identity()
        if num_classes:
            self.head = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)

    def get_classifier(self) -> nn.Module:
        """The classifier: a Linear, or an Identity where there is none."""
        return self.head

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens after the final norm, (B, N, D)."""
        blocks, norm = self.encoder.trunk
        clip = self._clip(x)
        if not (self.grad_checkpointing and self.training):
            return self.encoder(clip)
        order = self.encoder.scan_order_of(self.encoder.grid_of(clip))
        tokens = _scanned(self.encoder.embed(clip), order)
        return _raster(norm(checkpoint_seq(blocks, tokens, use_reentrant=False)), order)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Tokens (B, N, D) -> (B, K), or (B, D) with pre_logits or without a classifier; unpooled with pool ''."""
        if self.global_pool == "avg":
            x = x.mean(1)
        elif self.global_pool == "max":
            x = x.amax(1)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Clip (B, C, T, H, W) or image (B, C, H, W) -> logits (B, num_classes), or pooled features without classes."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Tokens after chosen blocks, (B, D, t, h, w) maps for 'NCHW' (time is an axis of its own) or (B, N, D)."""
        blocks, final = self.encoder.trunk
        taken, last = feature_take_indices(len(blocks), indices)
        clip, found = self._clip(x), []
        grid = self.encoder.grid_of(clip)
        order = self.encoder.scan_order_of(grid)
        tokens = _scanned(self.encoder.embed(clip), order)
        for i, block in enumerate(blocks[: last + 1] if stop_early else blocks):
            tokens = block(tokens)
            if i in taken:
                found.append(_raster(final(tokens) if norm else tokens, order))
        if output_fmt != "NLC":
            found = [y.transpose(1, 2).unflatten(2, grid).contiguous() for y in found]
        return found if intermediates_only else (_raster(final(tokens), order), found)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the intermediates at `indices` do not need; returns their positions."""
        blocks, _ = self.encoder.trunk
        taken, last = feature_take_indices(len(blocks), indices)
        setattr(self.encoder, self.encoder.blocks_name, blocks[: last + 1])
        if prune_norm:
            setattr(self.encoder, self.encoder.norm_name, nn.Identity())
        if prune_head:
            self.reset_classifier(0, "")
        return taken

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute blocks again in the backward pass instead of keeping what they computed."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of the matrices that must not decay; timm knows by itself that vectors do not."""
        return {name for name, p in self.named_parameters() if p.ndim > 1 and not decays(name, p)}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """How timm groups parameters into layers, for layer-wise learning rates."""
        blocks = rf"^encoder\.{self.encoder.blocks_name}\.(\d+)"
        stem = r"^encoder\.(?:patch_embed|pos_embed|temporal_pos_embedding)"
        return {"stem": stem, "blocks": [(blocks, None), (rf"^encoder\.{self.encoder.norm_name}", (99999,))]}

    def load_pretrained(self, path: str) -> None:
        """Weights of the encoder from any file that src.models.load_encoder reads, made to fit this model's sizes.

        timm calls it for `create_model(name, pretrained=True, pretrained_cfg_overlay={"file": path})`. Raises UserError
        for a file of another encoder, or of one with options that no tensor shows and this model does not have.
        """
        height, tubelet = self.encoder.grid.h * self.encoder.patch_size, self.encoder.tubelet_size
        sizes: dict[str, Any] = {"img_size": height, "num_frames": self.num_frames, "tubelet_size": tubelet}
        loaded = load_encoder(path, model_name=self.name, keep_cls_token=False, **sizes)
        for option, value in loaded.non_tensor_config.items():
            if self.encoder.non_tensor_config[option] != value:
                raise UserError(f"{path}: trained with {option}={value!r}: give it to timm.create_model too")
        load_state_dict_strict(self.encoder, loaded.state_dict(), str(path))

    def _clip(self, x: torch.Tensor) -> torch.Tensor:
        return x.unsqueeze(2).expand(-1, -1, self.num_frames, -1, -1) if x.ndim == 4 else x


def _scanned(x_BND: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    """Tokens in raster order, in that of the blocks."""
    return x_BND if order is None else x_BND.take_along_dim(order[..., None], dim=1)


def _raster(x_BND: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    """Tokens in the blocks' order, in raster order again."""
    return _scanned(x_BND, None if order is None else order.argsort(dim=1))


def _default_cfg() -> dict[str, Any]:
    return {
        "input_size": (3, 224, 224),
        "num_classes": 0,
        "pool_size": None,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "encoder.patch_embed.proj",
        "classifier": "head",
        "license": "mit",
        "custom_load": True,
    }


default_cfgs = generate_default_cfgs({name: _default_cfg() for name in BACKBONES})


def _register(name: str) -> None:
    def build(pretrained: bool = False, **options: Any) -> nn.Module:
        features = {"out_indices": 3, "feature_cls": "getter"}
        # timm takes another file for one of its own format, unless it is told again that load_pretrained reads it.
        options["pretrained_cfg_overlay"] = {"custom_load": True, **(options.get("pretrained_cfg_overlay") or {})}
        return build_model_with_cfg(TimmVideoEncoder, name, pretrained, feature_cfg=features, name=name, **options)

    build.__name__, build.__doc__ = name, f"`{name}` of src/models/registry.py."
    register_model(build)


for _name in BACKBONES:
    _register(_name)
