"""A run's model on a few of its own clips: what it is shown, what it has to predict, and how far off it is.

Legend: B clips, C channels, T H W a clip, N tokens (t, h, w their grid), D width.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.vjepa.train import autocast, make_loader
from app.vjepa.utils import init_video_model
from src.datasets.embedded.scenes import EMBEDDED
from src.datasets.transforms import normalize
from src.jepa.build import make_target_encoder
from src.jepa.checkpoint_weights import load_weights
from src.jepa.objective import VideoJEPA
from src.jepa.target_norm import normalize_targets
from src.launch.devices import resolve_devices
from src.utils.checkpoint import load_newest
from src.utils.errors import UserError
from src.utils.token_grid import Grid
from tools.report.run_folder import RunFolder

MOST_CLIPS, TOKENS = 24, 12_000  # where no number is given: seconds on a CPU for a tiny encoder
BATCH = 8  # clips at a time


@dataclass(frozen=True)
class SampleClips:
    """Clips as training sees them.

    Attributes:
        clips: uint8 (B, C, T, H, W).
        masks_enc, masks_pred: for each batch and each mask set the token indices, (clips of the batch, K).
        grid: size of a clip in tokens.
    """

    clips: Tensor
    masks_enc: list[list[Tensor]]
    masks_pred: list[list[Tensor]]
    grid: Grid

    def context(self, mask: int) -> np.ndarray:
        """Which tokens of each clip the encoder sees in a mask set, bool (B, N)."""
        return self._flags([masks[mask] for masks in self.masks_enc])

    def targets(self, mask: int) -> np.ndarray:
        """Which are to be predicted, bool (B, N); one that is dropped to make lengths equal is neither."""
        return self._flags([masks[mask] for masks in self.masks_pred])

    def _flags(self, indices: Sequence[Tensor]) -> np.ndarray:
        flags = [torch.zeros(len(i), self.grid.size, dtype=torch.bool).scatter_(1, i, True) for i in indices]
        return torch.cat(flags).numpy()


@dataclass(frozen=True)
class SamplePredictions:
    """What a checkpoint makes of them.

    Attributes:
        source: the checkpoint, and its step.
        features: of the target encoder, layer-normalised, (B, N, D).
        initial: the same of the encoder before training.
        errors: mean absolute error of the predictions at each token where it was predicted, (t, h, w) for each mask
            set; NaN where it never was.
        constant: for each mask set the error of always answering with the mean of the other clips' targets there.
    """

    source: str
    features: Tensor
    initial: Tensor
    errors: list[np.ndarray]
    constant: list[float]


@dataclass(frozen=True)
class Models:
    """A run's modules: the encoder before training, its EMA and the projector behind that, encoder and predictor."""

    initial: nn.Module
    target_encoder: nn.Module
    target_projector: nn.Module
    jepa: VideoJEPA
    source: str


def draw_clips(run: RunFolder, count: int | None) -> SampleClips:
    """The first clips of the run's own training data, cut and masked as in training.

    Raises:
        UserError: the data is not there, or cannot be read.
    """
    config, data = run.config, run.config.data
    grid = Grid.from_clip(data.crop_size, data.num_frames, data.patch_size, data.tubelet_size)
    if data.dataset_type in EMBEDDED:  # would be written where it is absent, into whatever folder this is
        missing = [path for path in data.datasets if not Path(path).exists()]
        if missing:
            raise UserError(f"{missing[0]} does not exist: relative paths are those of the folder the run started in")
    count = count or max(BATCH, min(MOST_CLIPS, TOKENS // grid.size))
    batch_size = min(BATCH, count)
    with tempfile.TemporaryDirectory() as elsewhere:  # reports of unreadable videos are not added to the run's
        parts = {
            "data": data.model_copy(update={"batch_size": batch_size, "num_clips": 1, "num_workers": 0}),
            "logging": config.logging.model_copy(update={"folder": elsewhere}),
            "optimization": config.optimization.model_copy(update={"accumulate_steps": 1}),
        }
        loader = make_loader(config.model_copy(update=parts), rank=0, world_size=1)
        loader.total_steps = -(-count // batch_size)
        batches = list(loader)
    clips = torch.cat([batch.clips[0] for batch in batches])
    return SampleClips(clips, [b.masks_enc for b in batches], [b.masks_pred for b in batches], grid)


@torch.no_grad()
def predict_samples(run: RunFolder, drawn: SampleClips) -> SamplePredictions:
    """Run the newest whole checkpoint of `run` on the clips.

    Raises:
        UserError: there is none, or it is of another architecture.
    """
    device = resolve_devices(None)[0]
    models = load_models(run)
    for module in (models.initial, models.target_encoder, models.target_projector, models.jepa):
        module.to(device).eval()
    features, initial = [], []
    predictions: list[list[Tensor]] = [[] for _ in run.config.mask]
    targets: list[list[Tensor]] = [[] for _ in run.config.mask]
    for clips, enc, pred in zip(drawn.clips.split(BATCH), drawn.masks_enc, drawn.masks_pred):
        clips = normalize(clips.to(device))
        enc, pred = ([mask.to(device) for mask in masks] for masks in (enc, pred))
        with autocast(run.config, device):
            hidden = models.target_encoder(clips)
            features.append(_normalised(hidden))
            initial.append(_normalised(models.initial(clips)))
            how = (run.config.loss.target_norm, run.config.loss.clip_mean_weight)
            wanted = normalize_targets(models.target_projector(hidden), pred, *how)
            for mask, (z, h) in enumerate(zip(models.jepa(clips, enc, pred), wanted)):
                predictions[mask].append(z.float().cpu())
                targets[mask].append(h.float().cpu())
    errors, constant = [], []
    for mask, (z_batches, h_batches) in enumerate(zip(predictions, targets)):
        error, alternative = _errors(z_batches, h_batches, [masks[mask] for masks in drawn.masks_pred], drawn.grid.size)
        errors.append(error.reshape(drawn.grid.t, drawn.grid.h, drawn.grid.w))
        constant.append(alternative)
    return SamplePredictions(models.source, torch.cat(features), torch.cat(initial), errors, constant)


def _normalised(x_BND: Tensor) -> Tensor:
    return F.layer_norm(x_BND.float(), (x_BND.shape[-1],)).cpu()


def _errors(
    predictions: Sequence[Tensor], targets: Sequence[Tensor], masks: Sequence[Tensor], N: int
) -> tuple[np.ndarray, float]:
    """Of batches (B, M, D) at tokens (B, M): the mean error at each token (N,), and that of the other clips' mean.

    The latter is over the tokens that two clips or more have to predict; NaN if there are none.
    """
    z, h = (torch.cat([x.flatten(0, 1) for x in batches]) for batches in (predictions, targets))
    places = torch.cat([mask.flatten() for mask in masks])
    count = torch.zeros(N).index_add_(0, places, torch.ones(len(places)))
    total = torch.zeros(N).index_add_(0, places, (z - h).abs().mean(-1))
    sums = torch.zeros(N, h.shape[-1]).index_add_(0, places, h)
    shared = count[places] > 1
    others = (sums[places] - h)[shared] / (count[places][shared, None] - 1)
    return (total / count).numpy(), float((others - h[shared]).abs().mean())


def load_models(run: RunFolder) -> Models:
    """The modules of the newest whole checkpoint, on the CPU. Raises UserError as `predict_samples` does."""
    tag = run.config.logging.write_tag
    there = [path for which in ("latest", "previous") if (path := run.folder / f"{tag}-{which}.pth.tar").exists()]
    if not there:
        raise UserError(f"{run.folder} has no checkpoint yet ({tag}-latest.pth.tar)")
    state, path = load_newest(there)
    encoder, predictor = init_video_model(run.config)
    initial, target_encoder = make_target_encoder(encoder), make_target_encoder(encoder)
    target_projector = make_target_encoder(predictor.projector)
    load_weights(state, path, encoder, predictor, target_encoder, target_projector)
    step = f"step {state['step']}" if "step" in state else f"epoch {state.get('epoch', 'unknown')}"
    return Models(initial, target_encoder, target_projector, VideoJEPA(encoder, predictor), f"{path.name}, {step}")
