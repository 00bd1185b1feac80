"""A pretraining checkpoint as a predictor of the future: it sees the first tubelets and predicts features of the rest.

Legend: B clips, C channels, T H W a clip, K tokens of the context, M of the future, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evals.config_sections import CheckpointConfig
from src.jepa.build import build_encoder_and_predictor, make_target_encoder
from src.jepa.checkpoint_config import checkpoint_config
from src.jepa.checkpoint_weights import load_weights
from src.jepa.objective import VideoJEPA
from src.jepa.target_norm import normalize_targets
from src.models.loading import open_weights
from src.utils.errors import UserError
from src.utils.token_grid import Grid


class FuturePredictor(nn.Module):
    """Encoder, predictor and target encoder of a run, as it began or with the weights of `state`, which `path` held.

    The future is one mask set of its own, whose mask token is the first of the predictor's (index 0).

    Raises:
        UserError: `context_tubelets` leaves nothing to predict, or the weights are of another architecture.
    """

    context: Tensor  # indices (1, K) of the context's tokens
    last: Tensor  # of its last tubelet
    future: Tensor  # (1, M)

    def __init__(
        self, config: Mapping[str, Any], context_tubelets: int, path: Path, state: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        data, loss = config["data"], config["loss"]
        grid = Grid.from_clip(data["crop_size"], data["num_frames"], data["patch_size"], data["tubelet_size"])
        if context_tubelets >= grid.t:
            raise UserError(
                f"context_tubelets={context_tubelets} leaves nothing to predict: the clips of {path} have "
                f"{grid.t} tubelets: set it below that"
            )
        encoder, predictor = build_encoder_and_predictor(config)
        self.target_encoder = make_target_encoder(encoder)
        self.target_projector = make_target_encoder(predictor.projector)
        if state is not None:
            load_weights(state, path, encoder, predictor, self.target_encoder, self.target_projector)
        self.jepa = VideoJEPA(encoder, predictor)
        self.how = (loss["target_norm"], loss["clip_mean_weight"])
        self.context_frames = context_tubelets * data["tubelet_size"]
        self.future_tubelets = grid.t - context_tubelets
        context = context_tubelets * grid.area
        self.register_buffer("context", torch.arange(context)[None])
        self.register_buffer("last", torch.arange(context - grid.area, context)[None])
        self.register_buffer("future", torch.arange(context, grid.size)[None])
        self.requires_grad_(False).eval()

    def predict(self, clips: Tensor) -> Tensor:
        """What the predictor makes of the first tubelets of clips (B, C, T, H, W) -> (B, M, D), float32."""
        context, future = (mask.expand(len(clips), -1) for mask in (self.context, self.future))
        return self.jepa(clips, [context], [future])[0].float()

    def copy_last(self, clips: Tensor) -> Tensor:
        """The target features of the last context tubelet, for every tubelet of the future -> (B, M, D).

        The target encoder sees the context alone: of a whole clip it would put the future into every token.
        """
        context, last = (mask.expand(len(clips), -1) for mask in (self.context, self.last))
        hidden = self.target_projector(self.target_encoder(clips, context))
        return normalize_targets(hidden, [last], *self.how)[0].repeat(1, self.future_tubelets, 1)

    def targets(self, candidates: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Target features of the future of clips {name: (B, C, T, H, W)}, 'true' among them -> {name: (B, M, D)}.

        Each clip is encoded whole, and where targets are normalised over the batch it is by the true clips' statistics.
        """
        hidden = {name: self.target_projector(self.target_encoder(clips)) for name, clips in candidates.items()}
        masks = [self.future.expand(len(hidden["true"]), -1)]
        return {name: normalize_targets(h, masks, *self.how, like_BND=hidden["true"])[0] for name, h in hidden.items()}


def load_future_predictors(
    checkpoint: CheckpointConfig, context_tubelets: int
) -> tuple[dict[str, FuturePredictor], dict[str, Any], str]:
    """The checkpoint's model as 'pretrained', and as 'random' the one it was before training.

    Returns:
        (models, config of their pretraining, where the checkpoint stands in words)

    Raises:
        UserError: no such file, damaged, not a whole pretraining checkpoint, or one whose parts do not fit.
    """
    path = checkpoint.require()
    state = open_weights(path).state
    config = checkpoint_config(state, path)
    missing = [key for key in ("encoder", "predictor", "target_encoder", "config") if not state.get(key)]
    if missing or config is None:
        raise UserError(
            f"{path} has no {', '.join(missing)}: predicting takes a whole checkpoint of pretraining "
            "(<logging.folder>/jepa-latest.pth.tar), not an encoder alone"
        )
    with torch.random.fork_rng(devices=[]):  # the caller's random state is left alone
        models = {
            "pretrained": FuturePredictor(config, context_tubelets, path, state),
            "random": FuturePredictor(config, context_tubelets, path),
        }
    where = f"step {state['step']}" if "step" in state else f"epoch {state.get('epoch', 'unknown')}"
    return models, config, f"{path}, {where}"
