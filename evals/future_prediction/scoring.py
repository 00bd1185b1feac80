"""Which future a prediction is nearest to: the true one, or one that might be taken for it.

Legend: B clips, C channels, T H W a clip, M tokens of the future, D width, F tubelets of the future, N candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from evals.classification.results import wilson_interval

TRUE, DISTRACTORS = "true", ("other clip", "reversed", "static")
CANDIDATES = (TRUE, *DISTRACTORS)
ALL = "all"  # the true one among every candidate


class Choice(NamedTuple):
    """How often one model chose right. `tubelet` counts from 1, the first after the context; None: all together."""

    model: str
    against: str
    tubelet: int | None
    correct: int
    total: int
    chance: float

    @property
    def accuracy(self) -> float:
        """Share of right choices, 0 to 1."""
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % interval (Wilson 1927)."""
        return wilson_interval(self.correct, self.total)


def make_candidates(clips: Tensor, context_frames: int, rng: np.random.Generator) -> dict[str, Tensor]:
    """Clips (B, C, T, H, W) -> as many for each of CANDIDATES, which share the first `context_frames` frames.

    After those comes the true future; that of another clip of the batch; the clip running backwards from its last
    context frame, which is then seen twice, and forwards again from the first where the future is the longer part; or
    the last context frame over and over. Raises ValueError for a single clip, beside which there is no other.
    """
    if len(clips) < 2:
        raise ValueError("a clip alone has no other one's future beside it")
    seen, T = np.arange(context_frames), clips.shape[2]
    order = rng.permutation(len(clips))
    other = np.empty_like(order)
    other[order] = np.roll(order, 1)  # one cycle through the batch: never the clip itself
    backwards, still = (np.pad(seen, (0, T - context_frames), mode) for mode in ("symmetric", "edge"))
    spliced = torch.cat([clips[:, :, :context_frames], clips[other][:, :, context_frames:]], dim=2)
    return dict(zip(CANDIDATES, (clips, spliced, clips[:, :, backwards], clips[:, :, still])))


def distances(prediction_BMD: Tensor, candidates: Mapping[str, Tensor], tubelets: int) -> Tensor:
    """Mean absolute difference to the features (B, M, D) of each candidate, tubelet by tubelet -> (B, N, F)."""
    apart = [(prediction_BMD - candidates[name]).abs().mean(-1) for name in CANDIDATES]
    return torch.stack(apart, dim=1).unflatten(-1, (tubelets, -1)).mean(-1)


def hits(distances_BN: np.ndarray) -> np.ndarray:
    """Whether the first candidate is nearer than every other, bool (B,); a tie is no hit."""
    return distances_BN[:, 0] < distances_BN[:, 1:].min(axis=1)


def choices(model: str, distances_BNF: np.ndarray) -> list[Choice]:
    """Every choice that the distances answer: against each distractor and among all, over all tubelets and each."""
    found = []
    for against in (*DISTRACTORS, ALL):
        rivals = range(1, len(CANDIDATES)) if against == ALL else [CANDIDATES.index(against)]
        chosen = distances_BNF[:, [0, *rivals]]
        for tubelet in (None, *range(1, chosen.shape[2] + 1)):
            right = hits(chosen.mean(axis=2) if tubelet is None else chosen[:, :, tubelet - 1])
            found.append(Choice(model, against, tubelet, int(right.sum()), len(right), 1 / chosen.shape[1]))
    return found
