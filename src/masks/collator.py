"""The collator that every kind of mask shares; the kinds differ in the generator they plug in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from src.masks.utils import Grid
from src.utils.errors import UserError

# (batch size, key of the draw, rank) -> context (B, K), targets (B, M), int64 token indices
Generator = Callable[[int, tuple[int, ...], int], tuple[np.ndarray, np.ndarray]]


class BaseMaskCollator:
    """Collates samples and draws, per mask config, which tokens are context and which are targets.

    The masks are a function of (seed, step, rank) and the batch size: workers, their number and resuming do not change
    them. Subclasses build one generator per config in `make_generator`.

    Args:
        cfgs_mask: one dict per mask; each gives one context and one target tensor.
        crop_size: pixels, a side or (height, width).
        num_frames: frames per clip.
        patch_size: pixels, a side or (height, width).
        tubelet_size: frames per token.
        seed: of the run.
        rank: of the process; ranks draw different masks of the same kind.

    Raises:
        UserError: a clip that does not divide into tokens, or a mask that can leave no context or no target.
    """

    def __init__(
        self,
        cfgs_mask: Sequence[Mapping[str, Any]],
        crop_size: int | Sequence[int],
        num_frames: int,
        patch_size: int | Sequence[int],
        tubelet_size: int,
        seed: int = 0,
        *,
        rank: int = 0,
    ) -> None:
        if not cfgs_mask:
            raise UserError("mask: the list is empty; give at least one mask")
        if seed < 0:
            raise UserError(f"meta.seed must be 0 or more, got {seed}")
        self.grid = Grid.from_clip(crop_size, num_frames, patch_size, tubelet_size)
        self.seed, self.rank, self.next_step = seed, rank, 0
        self.generators = [self.make_generator(cfg, f"mask.{index}") for index, cfg in enumerate(cfgs_mask)]

    def make_generator(self, cfg: Mapping[str, Any], where: str) -> Generator:
        """Check one mask config (`where` names it in messages) and return its generator."""
        raise NotImplementedError

    def masks(self, batch_size: int, step: int) -> tuple[list[Tensor], list[Tensor]]:
        """Context and targets of one step: two lists of int64 tensors (B, K_i), one per config, rows ascending."""
        masks_enc, masks_pred = [], []
        for index, generate in enumerate(self.generators):
            context_BK, target_BM = generate(batch_size, (self.seed, step, index), self.rank)
            masks_enc.append(torch.from_numpy(context_BK))
            masks_pred.append(torch.from_numpy(target_BM))
        return masks_enc, masks_pred

    def __call__(self, samples: Sequence[Any], step: int | None = None) -> tuple[Any, list[Tensor], list[Tensor]]:
        """`(batch, masks_enc, masks_pred)`; without a step, an own counter starting at 0 is used."""
        if step is None:
            step, self.next_step = self.next_step, self.next_step + 1
        masks_enc, masks_pred = self.masks(len(samples), step)
        return default_collate(list(samples)), masks_enc, masks_pred
