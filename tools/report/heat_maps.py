"""Heat maps of what the diagnostics say block by block: gradients, updates, and Mamba's step sizes and decay rates."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm, LogNorm, Normalize
from matplotlib.figure import Figure

from src.utils.plotting import Margins, figure, to_svg
from tools.report.page_parts import Part, Picture
from tools.report.run_folder import Log, RunFolder

MOST_TICKS = 12
MOST_COLUMNS = 300  # of a map: later ones are thinned out


class Kind(NamedTuple):
    """One kind of column, `<name>/<block>`; `relative`: shown as its change since the first step."""

    name: str
    title: str
    unit: str
    relative: bool = False


GRADIENTS = (
    Kind("gradient", "Gradient norm, as applied", "L2 norm"),
    Kind("update", "Update ratio", "|change| / |weights|"),
)
STATES = (Kind("dt", "Step size dt at zero input", "change, %", True), Kind("A", "Decay rate A", "change, %", True))


def block_maps(run: RunFolder) -> list[Part]:
    """Pictures of a run that has diagnostics of two steps or more; none otherwise."""
    if not run.diagnostics or len(run.diagnostics["step"]) < 2:
        return []
    caption = (
        "One row for each part, first above last, colours on a logarithmic scale. Rows orders of magnitude darker than "
        "others are parts that hardly learn."
    )
    parts: list[Part] = [_maps(run.diagnostics, GRADIENTS, caption)]
    if any(name.startswith("dt/") for name in run.diagnostics):
        caption = (
            "Medians over the channels of each Mamba layer, relative to the run's first step. One over the product of "
            "the two is for how many tokens a layer's state remembers: where dt or A grows (red) it forgets sooner, "
            "where they shrink (blue) later; white is unchanged."
        )
        parts.append(_maps(run.diagnostics, STATES, caption))
    return parts


def _maps(diagnostics: Log, kinds: tuple[Kind, ...], caption: str) -> Picture:
    """Maps side by side."""
    with figure(1, len(kinds), 4.2, margins=Margins(left=0.95, right=0.55, between=1.5)) as (fig, grid):
        for axes, kind in zip(grid.flat, kinds):
            names = [name for name in diagnostics if re.match(rf"{kind.name}/.*(\.\d+|patch_embed)", name)]
            values = np.array([diagnostics[name] for name in names])
            _map(fig, axes, diagnostics["step"], values, [_short(name) for name in names], kind)
        return Picture(to_svg(fig), f"{' and '.join(kind.title for kind in kinds)}, by block, over the steps", caption)


def _short(name: str) -> str:
    """`encoder 3` for gradient/encoder.layers.3, `layer 3` for dt/layers.3.mixer, `patches` for the embedding."""
    if "patch_embed" in name:
        return "patches"
    found = re.match(r"\w+/(encoder|predictor|).*\.(\d+)", name)
    assert found, "only names of blocks are drawn"
    owner, number = found.groups()
    return f"{owner or 'layer'} {number}"


def _map(fig: Figure, axes: Axes, step: np.ndarray, values: np.ndarray, rows: list[str], kind: Kind) -> None:
    every = -(-len(step) // MOST_COLUMNS)
    step, values = step[::every], values[:, ::every]
    norm: Normalize
    if kind.relative:
        values = 100 * (values / values[:, :1] - 1)
        norm, colors = CenteredNorm(halfrange=max(float(np.nanmax(np.abs(values))), 1e-6)), "RdBu_r"
    else:
        positive = values[values > 0]
        norm = LogNorm(*((positive.min(), positive.max()) if positive.size else (1e-6, 1)))
        colors = "viridis"
    half = (step[-1] - step[0]) / (len(step) - 1) / 2
    extent = (step[0] - half, step[-1] + half, len(rows) - 0.5, -0.5)
    image = axes.imshow(values, aspect="auto", extent=extent, interpolation="nearest", norm=norm, cmap=colors)
    shown = range(0, len(rows), -(-len(rows) // MOST_TICKS))
    axes.set_yticks(list(shown), [rows[i] for i in shown])
    axes.set(title=kind.title, xlabel="optimizer step")
    axes.grid(False)
    fig.colorbar(image, ax=axes, label=kind.unit, shrink=0.9)
