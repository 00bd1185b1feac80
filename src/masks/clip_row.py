"""Clip-row masking (VideoMamba, Li et al. 2024): whole rows of patches masked, the same in all frames of a clip.

A row is a contiguous stretch of the scan, so a masked row cannot be copied from a neighbour the scan has just passed.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from src.masks.collator import BaseMaskCollator, Generator
from src.masks.utils import generator, num_kept, pick, read_ratio, tubes_to_tokens
from src.utils.token_grid import Grid


class MaskCollator(BaseMaskCollator):
    """Config keys: `ratio`, the share of rows that is masked. All samples have exactly the same counts."""

    def make_generator(self, cfg: Mapping[str, Any], where: str) -> Generator:
        """The generator of one mask config."""
        kept = num_kept(self.grid.h, read_ratio(cfg, where), "rows of patches", where)
        return partial(clip_rows, self.grid, kept)


def clip_rows(
    grid: Grid, kept: int, batch_size: int, key: tuple[int, ...], place: int
) -> tuple[np.ndarray, np.ndarray]:
    """Context of `kept` rows (B, T * kept * W) and targets of all others, ascending token indices."""
    rows = pick(np.ones((batch_size, grid.h), dtype=bool), kept, generator(*key, place))
    masked_BH = np.ones((batch_size, grid.h), dtype=bool)
    np.put_along_axis(masked_BH, rows, False, axis=1)
    masked = np.repeat(masked_BH, grid.w, axis=1)
    context = pick(~masked, kept * grid.w, None)
    target = pick(masked, (grid.h - kept) * grid.w, None)
    return tubes_to_tokens(context, grid), tubes_to_tokens(target, grid)
