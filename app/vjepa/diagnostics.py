"""Diagnostics of a run, every few steps: are features varied, is the encoder learning, which frames are hard.

They take one forward pass more on one batch of the step, on rank 0. They are written to `<tag>-diagnostics.csv` and to
the experiment loggers, with images of masks and features once an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from app.vjepa.config import PretrainConfig
from app.vjepa.utils import Run
from src.datasets.batch import Batch
from src.datasets.transforms import normalize
from src.jepa.objective import VideoJEPA
from src.jepa.target_norm import normalize_targets
from src.jepa.training_statistics import (
    feature_stats,
    grad_norms,
    loss_by_frame,
    state_space_stats,
    update_ratios,
    weight_copies,
)
from src.models.utils.attention import Block
from src.models.utils.mamba import MambaBlock, MambaMixer
from src.models.utils.patch_embed import PatchEmbed3D
from src.utils.csv_log import CSVLogger
from src.utils.experiment_loggers import ExperimentLogger
from src.utils.logging import get_logger
from src.utils.visualization import feature_picture, mask_picture

logger = get_logger(__name__)

# Thresholds of the warnings. Layer-normalised targets have mean square 1.
MIN_BETWEEN_CLIP_STD = 0.1  # of the targets, between samples at the same place
MIN_EFFECTIVE_RANK = 1 / 8  # of the targets, over the width
MIN_GRADIENT_RATIO = 1e-3  # of the encoder's norm over the predictor's

# What columns of the csv were called in earlier versions.
RENAMED_COLUMNS = {
    "target/sample_std": "target/between_clip_std",
    "target/sample_cosine": "target/between_clip_cosine",
    "prediction/sample_cosine": "prediction/between_clip_cosine",
}


class Diagnostics:
    """Every `logging.diagnose_every`-th step on rank 0: `with diagnostics.evaluate(batch): train_step(...)`."""

    def __init__(
        self, args: PretrainConfig, run: Run, loggers: ExperimentLogger, resumed: bool, enabled: bool = True
    ) -> None:
        self.args, self.run, self.loggers = args, run, loggers
        self.every = args.logging.diagnose_every if enabled else None
        self.modules = list(_parts(run))
        self.mixers = [(name, m) for name, m in run.encoder.named_modules() if isinstance(m, MambaMixer)]
        self.resume_at = divmod(run.step, run.steps_per_epoch) if resumed else None
        self.csv: CSVLogger | None = None
        self.pictured = -1  # the last epoch with pictures
        self.warned: set[str] = set()

    @contextmanager
    def evaluate(self, batch: Batch) -> Iterator[None]:
        """Around one training step, the first included; `batch` is one that the step uses."""
        if self.every is None or self.run.step % self.every:
            yield
            return
        before = weight_copies(self.modules)
        yield
        metrics = self._features(batch)
        metrics |= {f"update/{name}": value for name, value in update_ratios(before, self.modules).items()}
        # Clipping scales all gradients of encoder or predictor alike, so these are as applied, not as computed.
        metrics |= {f"gradient/{name}": value for name, value in grad_norms(self.modules).items()}
        metrics |= state_space_stats(self.mixers)
        self._write(metrics)
        if math.isfinite(metrics["gradient/encoder"] + metrics["gradient/predictor"]):  # else the step was skipped
            self._warn(metrics)

    @torch.no_grad()
    def _features(self, batch: Batch) -> dict[str, float]:
        """Statistics of targets and predictions on `batch` after the step, and the error by time index."""
        run = self.run
        batch = batch.to(next(run.encoder.parameters()).device)
        clips = normalize(batch.clips[0])
        h_BND = run.target(clips).float()
        targets_BND = F.layer_norm(h_BND, (run.encoder.embed_dim,))  # of one size whatever the recipe's targets are
        targets = normalize_targets(
            h_BND, batch.masks_pred, self.args.loss.target_norm, self.args.loss.clip_mean_weight
        )
        predictions = VideoJEPA(run.encoder, run.predictor)(clips, batch.masks_enc, batch.masks_pred)
        if self.loggers.active and run.step // run.steps_per_epoch != self.pictured:
            self._draw(batch, targets_BND)
        metrics = {f"target/{name}": value for name, value in feature_stats(targets_BND).items()}
        metrics |= {f"prediction/{name}": value for name, value in feature_stats(predictions[0]).items()}
        del metrics["prediction/between_clip_std"]  # rows of predictions are at other places in each sample
        grid = run.encoder.grid
        errors = loss_by_frame(predictions, targets, batch.masks_pred, grid.area, grid.t)
        return metrics | {f"error/time_{t}": error for t, error in enumerate(errors)}

    def _draw(self, batch: Batch, targets_BND: torch.Tensor) -> None:
        """Masks on a clip of `batch`, and the principal components of the targets beside some of its frames."""
        run, grid = self.run, self.run.encoder.grid
        enc, pred = ([mask[0] for mask in masks] for masks in (batch.masks_enc, batch.masks_pred))
        self.loggers.add_image("masks", mask_picture(batch.clips[0][0], enc, pred, grid), run.step)
        self.loggers.add_image("features", feature_picture(batch.clips[0], targets_BND, grid), run.step)
        self.pictured = run.step // run.steps_per_epoch

    def _write(self, metrics: dict[str, float]) -> None:
        epoch, itr = divmod(self.run.step, self.run.steps_per_epoch)
        if self.csv is None:
            columns = [("%d", "epoch"), ("%d", "itr"), *(("%.4e", name) for name in metrics)]
            self.csv = CSVLogger(
                diagnostics_path(self.args), *columns, resume_at=self.resume_at, renamed=RENAMED_COLUMNS
            )
        self.csv.log(epoch, itr, *metrics.values())
        self.loggers.add_scalars({f"diagnostics/{name}": value for name, value in metrics.items()}, self.run.step)

    def _warn(self, metrics: dict[str, float]) -> None:
        """One line for each thing that is wrong, when it begins."""
        width = self.run.encoder.embed_dim
        wrong = {
            "collapse": (
                metrics["target/between_clip_std"] < MIN_BETWEEN_CLIP_STD,
                "the targets of different clips hardly differ (standard deviation "
                f"{metrics['target/between_clip_std']:.2g} at the same place): the features are "
                "collapsing; raise optimization.ema or lower optimization.lr",
            ),
            "low rank": (
                metrics["target/effective_rank_centered"] < MIN_EFFECTIVE_RANK * width,
                f"the targets use {metrics['target/effective_rank_centered']:.0f} of {width} dimensions: "
                "the features are collapsing; raise optimization.ema or lower optimization.lr",
            ),
            # At step 0 a predictor that has learnt nothing yet passes little on.
            "dead encoder": (
                self.run.step > 0 and metrics["gradient/encoder"] < MIN_GRADIENT_RATIO * metrics["gradient/predictor"],
                f"the encoder's gradient ({metrics['gradient/encoder']:.1e}) is orders below the predictor's "
                f"({metrics['gradient/predictor']:.1e}): the encoder does not learn",
            ),
        }
        for name, (holds, message) in wrong.items():
            if holds and name not in self.warned:
                logger.warning(f"step {self.run.step}: {message}")
        self.warned = {name for name, (holds, _) in wrong.items() if holds}

    def close(self) -> None:
        """Write out what is still on its way."""
        if self.csv is not None:
            self.csv.close()


def diagnostics_path(args: PretrainConfig) -> Path:
    """The csv of the diagnostics."""
    return args.output_folder() / f"{args.logging.write_tag}-diagnostics.csv"


def _parts(run: Run) -> Iterator[tuple[str, nn.Module]]:
    """Encoder and predictor as wholes, and the patch embedding and every block of each."""
    for name, module in (("encoder", run.encoder), ("predictor", run.predictor)):
        yield name, module
        for inner, part in module.named_modules():
            if isinstance(part, (PatchEmbed3D, Block, MambaBlock)):
                yield f"{name}.{inner}", part
