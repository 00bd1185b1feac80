"""The collator that every kind of mask shares; the kinds differ in the generator they plug in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from src.utils.errors import UserError
from src.utils.token_grid import Grid

# (batch size, key of the draw, place of the batch in its step) -> context (B, K), targets (B, M), int64 token indices
Generator = Callable[[int, tuple[int, ...], int], tuple[np.ndarray, np.ndarray]]


class BaseMaskCollator:
    """Collates samples and draws, per mask config, which tokens are context and which are targets.

    The masks are a function of the seed, the optimizer step, the batch's place among those of the step, and the batch
    size: workers and resuming do not change them, nor whether the batches of a step are computed side by side or one
    after another. Subclasses build one generator per config in `make_generator`.

    Args:
        cfgs_mask: one dict per mask; each gives one context and one target tensor.
        crop_size: pixels, a side or (height, width).
        num_frames: frames per clip.
        patch_size: pixels, a side or (height, width).
        tubelet_size: frames per token.
        seed: of the run.
        rank, world_size: this process, and how many there are.
        accumulate: batches of a process that make one optimizer step.

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
        world_size: int = 1,
        accumulate: int = 1,
    ) -> None:
        if not cfgs_mask:
            raise UserError("mask: the list is empty; give at least one mask")
        if seed < 0:
            raise UserError(f"meta.seed must be 0 or more, got {seed}")
        self.grid = Grid.from_clip(crop_size, num_frames, patch_size, tubelet_size)
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not in a run of {world_size} processes")
        self.seed, self.rank, self.world_size, self.accumulate, self.next_step = seed, rank, world_size, accumulate, 0
        self.generators = [self.make_generator(cfg, f"mask.{index}") for index, cfg in enumerate(cfgs_mask)]

    def make_generator(self, cfg: Mapping[str, Any], where: str) -> Generator:
        """Check one mask config (`where` names it in messages) and return its generator."""
        raise NotImplementedError

    def masks(self, batch_size: int, step: int) -> tuple[list[Tensor], list[Tensor]]:
        """Context and targets of the step-th batch of this process.

        Two lists of int64 tensors (B, K_i), one per config, rows ascending.
        """
        optimizer_step, place = divmod(step * self.world_size + self.rank, self.accumulate * self.world_size)
        masks_enc, masks_pred = [], []
        for index, generate in enumerate(self.generators):
            context_BK, target_BM = generate(batch_size, (self.seed, optimizer_step, index), place)
            masks_enc.append(torch.from_numpy(context_BK))
            masks_pred.append(torch.from_numpy(target_BM))
        return masks_enc, masks_pred

    def __call__(self, samples: Sequence[Any], step: int | None = None) -> tuple[Any, list[Tensor], list[Tensor]]:
        """`(batch, masks_enc, masks_pred)`; without a step, an own counter starting at 0 is used."""
        if step is None:
            step, self.next_step = self.next_step, self.next_step + 1
        masks_enc, masks_pred = self.masks(len(samples), step)
        return default_collate(list(samples)), masks_enc, masks_pred
