"""What trained heads say about a list: views averaged, all processes' samples together, each counted once.

Legend: B batch, C classes, G heads, M samples, V views.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from evals.classification.feature_cache import FeatureBatch
from evals.classification.probe_checkpoint import ProbeSettings
from src.probes.attentive_heads import HeadGrid
from src.utils.distributed import gather_objects


class FeatureSource(Protocol):
    """Where batches come from: a cache (feature_cache.py) or an encoder that runs each time (feature_extraction.py)."""

    def __len__(self) -> int:
        """Steps of an epoch, the same on every process."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[FeatureBatch]:
        """This process's batches of one epoch, in training from step `start` on."""


def autocast(device: torch.device, settings: ProbeSettings) -> torch.autocast:
    """bfloat16 on a GPU if the settings ask for it; the CPU computes in float32."""
    enabled = settings.use_bfloat16 and device.type == "cuda"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def mean_probability(logits: list[Tensor]) -> Tensor:
    """Average of the views' probabilities: V tensors (G, B, C) -> (G, B, C)."""
    return torch.stack([x.softmax(-1) for x in logits]).mean(0)


@torch.no_grad()
def predict(
    heads: HeadGrid, source: FeatureSource, settings: ProbeSettings, device: torch.device
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Every sample of a list once, gathered from all processes and sorted by its position.

    Returns:
        ids (M,), labels (M,), predictions (G, M), losses (G, M).
    """
    heads.eval()
    ids, labels, predictions, losses = [], [], [], []
    for batch in source.epoch(0):
        if not len(batch.labels_B):
            continue
        target = batch.labels_B.to(device)
        views = [view.to(device) for view in batch.views_BLD]
        with autocast(device, settings):
            probability_GBC = mean_probability([heads(view) for view in views])
        right = probability_GBC.gather(-1, target.expand(len(heads), -1).unsqueeze(-1)).squeeze(-1)
        ids.append(batch.ids_B.numpy())
        labels.append(batch.labels_B.numpy())
        predictions.append(probability_GBC.argmax(-1).cpu().numpy())
        losses.append(-right.clamp_min(1e-12).log().cpu().numpy())
    nothing, nothing_each = np.empty(0, np.int64), np.empty((len(heads), 0))
    mine = [(nothing, nothing, nothing_each.astype(np.int64), nothing_each)]
    mine += list(zip(ids, labels, predictions, losses))
    parts = gather_objects(tuple(np.concatenate(x, axis=-1) for x in zip(*mine)))
    ids_M, labels_M, predictions_GM, losses_GM = (np.concatenate(x, axis=-1) for x in zip(*parts))
    order = np.argsort(ids_M)
    if len(np.unique(ids_M)) != len(ids_M):
        raise AssertionError("a sample was counted twice")
    return ids_M[order], labels_M[order], predictions_GM[:, order], losses_GM[:, order]
