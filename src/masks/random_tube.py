"""Random tubes: the same randomly chosen spatial positions are masked in every tubelet of a clip."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from src.masks.collator import BaseMaskCollator, Generator
from src.masks.utils import generator, num_kept, pick, read_ratio, tubes_to_tokens
from src.utils.token_grid import Grid


class MaskCollator(BaseMaskCollator):
    """Config keys: `ratio`, the share of spatial positions that is masked. All samples have exactly the same counts."""

    def make_generator(self, cfg: Mapping[str, Any], where: str) -> Generator:
        """The generator of one mask config."""
        kept = num_kept(self.grid.area, read_ratio(cfg, where), "spatial positions", where)
        return partial(random_tubes, self.grid, kept)


def random_tubes(
    grid: Grid, kept: int, batch_size: int, key: tuple[int, ...], place: int
) -> tuple[np.ndarray, np.ndarray]:
    """Context of `kept` tubes (B, T * kept) and targets (B, T * (H*W - kept)), ascending token indices."""
    context = pick(np.ones((batch_size, grid.area), dtype=bool), kept, generator(*key, place))
    masked = np.ones((batch_size, grid.area), dtype=bool)
    np.put_along_axis(masked, context, False, axis=1)
    target = pick(masked, grid.area - kept, None)
    return tubes_to_tokens(context, grid), tubes_to_tokens(target, grid)
