"""The picture of an evaluation: a few clips with the futures they might have, and how far the prediction is from each.

Legend: B clips, C channels, T H W a clip, N candidates, F tubelets of the future.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from evals.future_prediction.scoring import CANDIDATES
from src.utils.plotting import COLORS, GREY, INCH, figure

STRIP = "strip.png"  # its name in the folder of the results
WIDTH, PANEL, PLOT = 12.0, 3.4, 2.3  # inches: the picture, one clip in it, the height of what is below the frames
COLUMNS = 8  # most frames of a clip
GAP = 0.03  # between frames, of their side


def save_strip(path: Path, shown: Mapping[str, Tensor], distances_BNF: np.ndarray, context_frames: int) -> None:
    """Write clips {candidate: uint8 (B, C, T, H, W)} and below each the distances of its prediction, as a PNG.

    Of every tubelet the first frame is shown, or of as many as there is room for.
    """
    clips, T, F = len(shown["true"]), shown["true"].shape[2], distances_BNF.shape[2]
    starts = range(0, T, (T - context_frames) // F)
    frames = sorted({starts[round(i)] for i in np.linspace(0, len(starts) - 1, COLUMNS)})
    columns, border = len(frames), sum(t < context_frames for t in frames)  # frames left of the border are seen
    ahead = border + (columns - border) / F * (np.arange(F) + 0.5)
    height = PANEL * len(CANDIDATES) / columns
    with figure(2, clips, height + PLOT + 1, WIDTH) as (fig, grid):
        grid[0, 0].get_gridspec().set_height_ratios([height, PLOT])
        for clip, (above, below) in enumerate(grid.T):
            rows = [np.concatenate([_spaced(shown[name][clip, :, t]) for t in frames], axis=1) for name in CANDIDATES]
            above.imshow(np.concatenate(rows), extent=(0, columns, len(CANDIDATES), 0), aspect="equal")
            above.set_yticks(np.arange(len(CANDIDATES)) + 0.5, CANDIDATES if clip == 0 else [""] * len(CANDIDATES))
            above.set_xticks([border / 2, (border + columns) / 2], ["seen", "future"])
            above.tick_params(length=0)
            above.spines[:].set_visible(False)
            above.set_title(f"clip {clip + 1}")
            above.grid(visible=False)
            for n, name in enumerate(CANDIDATES):
                style = {"color": COLORS[n], "linewidth": 2.5 if n == 0 else 1.5, "marker": "o", "markersize": 5}
                below.plot(ahead, distances_BNF[clip, n], label=name, **style)
            below.set(xlim=(0, columns), ylim=(0, 1.08 * distances_BNF.max()), xlabel="tubelets ahead")
            below.set_xticks(ahead, [f"+{f + 1}" for f in range(F)])
            below.grid(axis="x", visible=False)
            for axes in (above, below):
                axes.axvline(border, color=GREY, linewidth=1.5)
        grid[1, 0].set_ylabel("distance of the prediction")
        fig.legend(*grid[1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(CANDIDATES))
        fig.savefig(path, dpi=INCH)


def _spaced(frame: Tensor) -> np.ndarray:
    """A frame (C, H, W) with white around it, (H', W', C)."""
    edge = max(1, round(GAP * frame.shape[-1]))
    return np.pad(frame.permute(1, 2, 0).numpy(), ((edge, edge), (edge, edge), (0, 0)), constant_values=255)
