"""Figures of a run's health, every few steps: are features varied, is the encoder learning, which frames are hard.

One forward pass on one batch more than the training step itself, on rank 0. Written to `<tag>-diagnostics.csv` and to
the board, with pictures of masks and features once an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from app.vjepa.config import PretrainConfig
from app.vjepa.objective import VideoJEPA, normalised_targets
from app.vjepa.utils import Run
from src.datasets.batch import Batch
from src.datasets.transforms import normalize
from src.models.utils.attention import Block
from src.models.utils.mamba import MambaBlock, MambaMixer
from src.models.utils.patch_embed import PatchEmbed3D
from src.utils.board import Board
from src.utils.csv_log import CSVLogger
from src.utils.diagnostics import (
    feature_stats,
    grad_norms,
    loss_by_frame,
    state_space_stats,
    update_ratios,
    weight_copies,
)
from src.utils.logging import get_logger
from src.utils.pictures import feature_picture, mask_picture

logger = get_logger(__name__)

# Layer-normalised targets have mean square 1. Below these, a run is not worth its electricity.
LEAST_SAMPLE_STD = 0.1  # of the targets, between samples at the same place
LEAST_RANK = 1 / 8  # of the targets, over the width
LEAST_GRADIENT = 1e-3  # of the encoder's norm over the predictor's


class Health:
    """Looks at every `args.logging.diagnose_every`-th step, on rank 0: `with health.watch(batch): train_step(...)`."""

    def __init__(self, args: PretrainConfig, run: Run, board: Board, resumed: bool, enabled: bool = True) -> None:
        self.args, self.run, self.board = args, run, board
        self.every = args.logging.diagnose_every if enabled else None
        self.modules = list(_parts(run))
        self.mixers = [(name, m) for name, m in run.encoder.named_modules() if isinstance(m, MambaMixer)]
        self.resume_at = divmod(run.step, run.steps_per_epoch) if resumed else None
        self.csv: CSVLogger | None = None
        self.pictured = -1  # the last epoch with pictures
        self.warned: set[str] = set()

    @contextmanager
    def watch(self, batch: Batch) -> Iterator[None]:
        """Around one training step, the first included; `batch` is one that the step uses."""
        if self.every is None or self.run.step % self.every:
            yield
            return
        before = weight_copies(self.modules)
        yield
        figures = self._features(batch)
        figures |= {f"update/{name}": value for name, value in update_ratios(before, self.modules).items()}
        # Clipping scales all gradients of encoder or predictor alike, so these are as applied, not as computed.
        figures |= {f"gradient/{name}": value for name, value in grad_norms(self.modules).items()}
        figures |= state_space_stats(self.mixers)
        self._write(figures)
        self._warn(figures)

    @torch.no_grad()
    def _features(self, batch: Batch) -> dict[str, float]:
        """Statistics of targets and predictions on `batch` after the step, and the error by time index."""
        run = self.run
        batch = batch.to(next(run.encoder.parameters()).device)
        clips = normalize(batch.clips[0])
        h_BND = run.target(clips).float()
        targets_BND = F.layer_norm(h_BND, (run.encoder.embed_dim,))  # of one size whatever the recipe's targets are
        targets = normalised_targets(h_BND, batch.masks_pred, self.args.loss.target_norm, self.args.loss.target_pooled)
        predictions = VideoJEPA(run.encoder, run.predictor)(clips, batch.masks_enc, batch.masks_pred)
        if self.board.watched and run.step // run.steps_per_epoch != self.pictured:
            self._draw(batch, targets_BND)
        figures = {f"target/{name}": value for name, value in feature_stats(targets_BND).items()}
        figures |= {f"prediction/{name}": value for name, value in feature_stats(predictions[0]).items()}
        del figures["prediction/sample_std"]  # rows of predictions are at other places in each sample
        grid = run.encoder.grid
        errors = loss_by_frame(predictions, targets, batch.masks_pred, grid.h * grid.w, grid.t)
        return figures | {f"error/time_{t}": error for t, error in enumerate(errors)}

    def _draw(self, batch: Batch, targets_BND: torch.Tensor) -> None:
        """Masks on a clip of `batch`, and the targets' colours beside some of its frames."""
        run, grid = self.run, self.run.encoder.grid
        masks = [[mask[0] for mask in masks] for masks in (batch.masks_enc, batch.masks_pred)]
        self.board.add_image("masks", mask_picture(batch.clips[0][0], *masks, grid), run.step)
        self.board.add_image("features", feature_picture(batch.clips[0], targets_BND, grid), run.step)
        self.pictured = run.step // run.steps_per_epoch

    def _write(self, figures: dict[str, float]) -> None:
        epoch, itr = divmod(self.run.step, self.run.steps_per_epoch)
        if self.csv is None:
            columns = [("%d", "epoch"), ("%d", "itr"), *(("%.4e", name) for name in figures)]
            self.csv = CSVLogger(diagnostics_path(self.args), *columns, resume_at=self.resume_at)
        self.csv.log(epoch, itr, *figures.values())
        self.board.add_scalars({f"diagnostics/{name}": value for name, value in figures.items()}, self.run.step)

    def _warn(self, figures: dict[str, float]) -> None:
        """One line for each thing that is wrong, when it begins."""
        width = self.run.encoder.embed_dim
        wrong = {
            "collapse": (
                figures["target/sample_std"] < LEAST_SAMPLE_STD,
                f"the targets of different clips hardly differ (standard deviation {figures['target/sample_std']:.2g} "
                "at the same place): the features are collapsing; raise optimization.ema or lower optimization.lr",
            ),
            "low rank": (
                figures["target/effective_rank_centered"] < LEAST_RANK * width,
                f"the targets use {figures['target/effective_rank_centered']:.0f} of {width} dimensions: "
                "the features are collapsing; raise optimization.ema or lower optimization.lr",
            ),
            # At step 0 a predictor that has learnt nothing yet passes little on.
            "dead encoder": (
                self.run.step > 0 and figures["gradient/encoder"] < LEAST_GRADIENT * figures["gradient/predictor"],
                f"the encoder's gradient ({figures['gradient/encoder']:.1e}) is orders below the predictor's "
                f"({figures['gradient/predictor']:.1e}): the encoder does not learn",
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
    """The csv of the figures."""
    return args.output_folder() / f"{args.logging.write_tag}-diagnostics.csv"


def _parts(run: Run) -> Iterator[tuple[str, nn.Module]]:
    """Encoder and predictor as wholes, and the patch embedding and every block of each."""
    for name, module in (("encoder", run.encoder), ("predictor", run.predictor)):
        yield name, module
        for inner, part in module.named_modules():
            if isinstance(part, (PatchEmbed3D, Block, MambaBlock)):
                yield f"{name}.{inner}", part
