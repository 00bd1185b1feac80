"""Where predictions are wrong: maps over space, one for each time index."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from src.utils.plotting import INCH, figure, hide, to_svg
from tools.report.page_parts import Picture, Table
from tools.report.run_folder import RunFolder
from tools.report.sample_predictions import SamplePredictions

COLUMNS = 8  # most time indices that are shown


def error_maps(seen: Sequence[tuple[RunFolder, SamplePredictions]]) -> Picture:
    """A row for each run and mask set, a column for each time index, one scale for all."""
    rows = [
        (f"{run.name}\n" * (len(seen) > 1) + f"mask set {number + 1}", error)
        for run, found in seen
        for number, error in enumerate(found.errors)
    ]
    known = np.concatenate([error[np.isfinite(error)] for _, error in rows])
    scale = {"vmin": known.min(), "vmax": known.max(), "cmap": "viridis", "interpolation": "nearest"}
    columns = max(min(COLUMNS, len(error)) for _, error in rows)
    width = min(11.0, 1.8 + 1.55 * columns)
    cell = (width - 1.8) / columns
    with figure(len(rows), columns, len(rows) * (cell + 0.3) + 0.2, width) as (fig, grid):
        for (name, error), line in zip(rows, grid):
            times = sorted({round(t) for t in np.linspace(0, len(error) - 1, min(columns, len(error)))})
            hide(line[len(times) :])
            for axes, t in zip(line, times):
                image = axes.imshow(error[t], **scale)
                axes.set_facecolor("#e3e6ea")
                axes.set_xticks([])
                axes.set_yticks([])
                axes.grid(False)
                axes.spines[:].set_visible(False)
                mean = f"{np.nanmean(error[t]):.3f}" if np.isfinite(error[t]).any() else "none"
                axes.set_title(f"time {t}: {mean}", fontsize=9, fontweight="normal", pad=4)
            line[0].set_ylabel(name, fontweight="bold", labelpad=8)
        fig.colorbar(image, ax=grid, label="mean |prediction - target|", shrink=0.8, aspect=30)
        clips = " and ".join(str(len(found.features)) for _, found in seen[:1])
        caption = (
            f"Mean absolute error at each place of the frame and each time index (tubelet), over {clips} clips of the "
            "training data, in the units of the targets, which are normalised to a mean square of 1; above each map "
            "its mean. Grey places were never hidden in these clips."
        )
        alt = "Heat maps of the prediction error over space and time"
        return Picture(to_svg(fig), alt, caption, width=round(INCH * width))


def error_table(seen: Sequence[tuple[RunFolder, SamplePredictions]]) -> Table:
    """The mean errors beside those of a constant answer."""
    rows = []
    for run, found in seen:
        for number, (error, constant) in enumerate(zip(found.errors, found.constant)):
            mean = float(np.nanmean(error))
            figures = [f"{x:.3f}" for x in (mean, constant, mean / constant)]
            rows.append([run.name, f"mask set {number + 1}", *figures])
    caption = (
        "A predictor that knows nothing of the clip can answer with the mean of the other clips' targets at the same "
        "place: a ratio of 1 is no better than that."
    )
    return Table(["run", "", "error", "error of the mean", "ratio"], rows, caption, headings=2)
