"""The encoder under evaluation: built as it was trained, loaded strictly, frozen, run over several clips of a video.

Legend: B batch, C channels, T H W a clip, N tokens of a clip, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from evals.config_sections import PretrainedConfig
from src.jepa.build import build_encoder_and_predictor
from src.jepa.checkpoint_config import checkpoint_config
from src.models.backbone import VideoEncoder
from src.models.loading import adapt_state_dict, open_weights
from src.models.registry import backbone_config, default_num_heads
from src.models.utils.pos_embs import sincos_pos_embed_3d
from src.utils.errors import UserError
from src.utils.logging import get_logger
from src.utils.token_grid import Grid

logger = get_logger(__name__)

MAX_FRAMES = 10_000  # positions of clips in a video, in frames, as in V-JEPA


class LoadedEncoder(NamedTuple):
    """An encoder, what it is in words, the settings that its numbers depend on beside its weights, and its config."""

    encoder: VideoEncoder
    source: str
    settings: dict[str, Any]
    config: dict[str, Any] | None = None  # of its pretraining, where the checkpoint has it


def freeze(encoder: VideoEncoder) -> VideoEncoder:
    """No gradients, no dropout or stochastic depth."""
    return encoder.requires_grad_(False).eval()


def load_encoders(
    pretrain: PretrainedConfig,
    seed: int,
    with_random: bool,
    prepare: Callable[[VideoEncoder], VideoEncoder] = freeze,
) -> dict[str, LoadedEncoder]:
    """The checkpoint's encoder as 'pretrained' and, if asked for, the same encoder before training as 'random'.

    The configuration stored in the checkpoint says how the encoder is built; the YAML may repeat but not contradict it.
    Published weights (V-JEPA's, VideoMamba's) say it by their tensors' names and shapes; frames_per_clip and
    tubelet_size of the YAML are then what they are made to fit.

    Raises:
        UserError: no such checkpoint or key in it, weights that do not fit, a YAML that contradicts the checkpoint.
    """
    path = pretrain.require()
    source = open_weights(path, pretrain.checkpoint_key if "checkpoint_key" in pretrain.model_fields_set else None)
    trained_as = checkpoint_config(source.state, path)
    sizes: dict[str, Any] = {}
    if trained_as is not None:
        data = trained_as["data"]
        check_agreement(pretrain, {"tubelet_size": data["tubelet_size"], "frames_per_clip": data["num_frames"]}, path)
    else:
        keys = {"frames_per_clip": "num_frames", "tubelet_size": "tubelet_size"}
        sizes = {to: getattr(pretrain, key) for key, to in keys.items() if key in pretrain.model_fields_set}
    weights = adapt_state_dict(
        source, keep_cls_token=pretrain.keep_cls_token, allow_unused=pretrain.allow_unused, **sizes
    )
    check_agreement(pretrain, {"model_name": weights.spec.name, **weights.spec.options}, path)
    if "use_sdpa" in pretrain.model_fields_set and backbone_config(weights.spec.name).mixer == "attention":
        weights.spec.options["use_sdpa"] = pretrain.use_sdpa

    settings = weights.spec._asdict()
    epoch = f", epoch {source.state['epoch']}" if "epoch" in source.state else ""
    logger.info(str(weights.report))
    loaded = {"pretrained": LoadedEncoder(prepare(weights.build()), f"{source.what}{epoch}", settings, trained_as)}
    if with_random:
        with torch.random.fork_rng(devices=[]):  # the caller's random state is left alone
            torch.manual_seed(seed)
            untrained = build_encoder_and_predictor(trained_as)[0] if trained_as else weights.spec.build()
        described = "the same encoder as initialised, never trained"
        loaded["random"] = LoadedEncoder(prepare(untrained), described, settings, trained_as)
    return loaded


def check_agreement(pretrain: PretrainedConfig, truth: Mapping[str, Any], path: Path) -> None:
    """Raise UserError for the first key that the YAML sets otherwise than what the checkpoint says of itself."""
    for key in ("model_name", "patch_size", "tubelet_size", "frames_per_clip", "uniform_power", "pos_embed",
                "bidirectional"):  # fmt: skip
        given, value = getattr(pretrain, key), truth.get(key, getattr(pretrain, key))
        if key in pretrain.model_fields_set and given != value:
            raise UserError(
                f"pretrain.{key} is {given}, but {path} was trained with {value}: set pretrain.{key}={value}"
            )


def probe_heads(encoder: VideoEncoder) -> int:
    """Attention heads of the probe: the encoder's own number, or that of a ViT of its width."""
    return getattr(encoder, "num_heads", None) or default_num_heads(encoder.embed_dim)


class ClipAggregation(nn.Module):
    """Runs an encoder over the segments and views of a video and arranges the tokens for the probe.

    With `attend_across_segments` the probe sees the tokens of all segments of a view in one sequence, else each clip is
    classified by itself; what forward returns separately has its probabilities averaged. `use_pos_embed` adds to each
    token the position of its frame in the video (V-JEPA's option; needs clip_indices).
    """

    def __init__(
        self,
        encoder: VideoEncoder,
        tubelet_size: int,
        attend_across_segments: bool = False,
        use_pos_embed: bool = False,
    ) -> None:
        super().__init__()
        self.encoder, self.tubelet_size = encoder, tubelet_size
        self.attend_across_segments = attend_across_segments
        self.register_buffer("pos_embed", None, persistent=False)
        if use_pos_embed:
            # Of twice the width, time takes the first half: that half is the one-dimensional code of the full width.
            code = sincos_pos_embed_3d(2 * encoder.embed_dim, Grid(MAX_FRAMES, 1, 1))
            self.pos_embed = code[0, :, : encoder.embed_dim]

    def forward(self, clips: Sequence[Sequence[Tensor]], clip_indices: Sequence[Tensor] | None = None) -> list[Tensor]:
        """`clips[segment][view]` (B, C, T, H, W), `clip_indices[segment]` (B, T) -> tensors (B, tokens, D).

        One tensor for each view with attend_across_segments, tokens in the order of the segments; else one for each
        segment and view.
        """
        segments, views, B = len(clips), len(clips[0]), len(clips[0][0])
        flat = torch.cat([view for segment in clips for view in segment])
        tokens = self.encoder(flat).unflatten(0, (segments, views, B))
        if self.pos_embed is not None:
            if clip_indices is None:
                raise ValueError("use_pos_embed needs the frames' indices in the video")
            tokens = tokens + self._positions(clip_indices, tokens.shape[3])[:, None].to(tokens.dtype)
        if not self.attend_across_segments:
            return [tokens[s, v] for s in range(segments) for v in range(views)]
        return [torch.cat(tuple(tokens[:, v]), dim=1) for v in range(views)]

    def _positions(self, clip_indices: Sequence[Tensor], num_tokens: int) -> Tensor:
        """Codes of the tubelets' first frames, (segments, B, N, D)."""
        frames = torch.stack(list(clip_indices))[:, :, :: self.tubelet_size].to(self.pos_embed.device)
        codes = self.pos_embed[frames.clamp(0, MAX_FRAMES - 1)]
        return codes.repeat_interleave(num_tokens // frames.shape[-1], dim=2)
