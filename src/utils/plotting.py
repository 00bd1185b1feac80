"""The style of all charts, and a chart as a data URI."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

INK, GREY, PALE = "#22262b", "#6b7480", "#e3e6ea"
# The first is VideoMamba's and the pretrained encoder's, the second ViT's and the random encoder's.
COLORS = ("#1f5f99", "#d1661b", "#3b8f5a", "#8a4fa3", "#b3394c", "#5b6770", "#9a7b13", "#2a9aa8")
STYLE: Any = {  # matplotlib types its keys one by one
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": PALE,
    "text.color": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.5,
    "svg.fonttype": "path",  # glyphs as outlines: the same on every machine
    "svg.hashsalt": "report",  # the same page from the same run
}
INCH = 100  # CSS pixels of an inch of a figure: 9.5 points are 13 pixels
LINES: tuple[Literal["-", "--", ":"], ...] = ("-", "--", ":")  # of the figures that share a panel
MOST_POINTS = 400  # of a curve: more than there are pixels for in a panel


class Margins(NamedTuple):
    """Room around panels and between them, inches. Laying out by measuring every label takes three times as long."""

    left: float = 0.9
    right: float = 0.2
    top: float = 0.4
    bottom: float = 0.55
    between: float = 1.0


@contextmanager
def figure(
    rows: int, columns: int, height: float, width: float = 11.0, margins: Margins | None = None
) -> Iterator[tuple[Figure, np.ndarray]]:
    """A grid of panels, `width` x `height` inches: yields the figure and its axes (rows, columns).

    Without margins, where there is no telling how long labels are, they are measured.
    """
    with mpl.rc_context(STYLE):
        layout = None if margins else ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
        fig = Figure(figsize=(width, height), layout=layout)
        axes = fig.subplots(rows, columns, squeeze=False)
        if margins:
            m, panel = margins, (width - margins.left - margins.right - (columns - 1) * margins.between) / columns
            fig.subplots_adjust(m.left / width, m.bottom / height, 1 - m.right / width, 1 - m.top / height)
            fig.subplots_adjust(wspace=m.between / panel)
        yield fig, axes


def to_svg(fig: Figure) -> str:
    """The figure as a data URI."""
    content = io.BytesIO()
    with mpl.rc_context(STYLE):
        fig.savefig(content, format="svg", metadata={"Date": None})
    return data_uri("svg+xml", content.getvalue())


def thin(step: np.ndarray, value: np.ndarray, most: int = MOST_POINTS) -> tuple[np.ndarray, ...]:
    """A curve of at most `most` points: step, mean, lowest and highest value of runs of neighbouring rows."""
    starts = np.unique(np.arange(most) * len(step) // most)  # every row its own where there are few
    counts = np.diff([*starts, len(step)])
    means = [np.add.reduceat(x, starts) / counts for x in (step, value)]
    return *means, np.minimum.reduceat(value, starts), np.maximum.reduceat(value, starts)


def draw_curve(
    axes: Axes, step: np.ndarray, value: np.ndarray, color: str, style: str = "-", band: bool = False
) -> None:
    """One thinned curve; `band` shades what its points are the means of. A single row is a dot."""
    x, mean, low, high = thin(step, value)
    if band and len(x) < len(step):
        axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    axes.plot(x, mean, style, color=color, marker="o" if len(x) == 1 else None, markersize=4)


def finish(
    axes: Axes, title: str, unit: str, figures: Sequence[str] = (), log: bool = False, zero: bool = False
) -> None:
    """Title, units and scale of a panel whose x axis is the optimizer step; `zero`: y starts at 0.

    `figures` names what the line styles stand for: the legend is of those, colours belong to the runs.
    """
    axes.set(title=title, xlabel="optimizer step", ylabel=unit)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if log:
        axes.set_yscale("log")
    if zero:
        axes.set_ylim(bottom=0)
    if len(figures) > 1:
        lines = [Line2D([], [], color=INK, linestyle=style, label=name) for style, name in zip(LINES, figures)]
        axes.legend(handles=lines, loc="best")


def hide(panels: Sequence[Axes]) -> None:
    """Leave the places of panels empty that have nothing to show."""
    for axes in panels:
        axes.set_axis_off()


def data_uri(kind: str, content: bytes) -> str:
    """`data:image/<kind>;base64,...`."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
