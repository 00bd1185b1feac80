"""The plots of a study: every run as a dot, accuracy over the length of training, health over its course."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from app.reporting.drawing import GREY, INK, STYLE
from app.study_page import PREDICTED, RANK, STD, Records, collect, probes_of
from src.utils.errors import UserError

BLUE, ORANGE = "tab:blue", "tab:orange"  # VideoMamba, ViT
MANY = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:cyan")


def draw(kind: str, records: Records, words: Sequence[str], path: Path, digest: str) -> None:
    """Write the plot that a block of the page asks for; the file holds the digest of its csv."""
    figures = {"dots": dots, "length": length, "health": health}
    with rc_context(STYLE):
        figures[kind](records, words).savefig(path, dpi=130, metadata={"Source": digest})


def dots(records: Records, words: Sequence[str]) -> Figure:
    """A panel for each probe, a line for each row, a dot for each seed; hollow: the same encoder untrained.

    `words` may name the row whose mean is drawn as a line through all.
    """
    rows, probes = collect(records), probes_of(records)
    if words and words[0] not in rows:
        raise UserError(f"there is no row '{words[0]}'; rows: {', '.join(rows)}")
    fig = Figure(figsize=(max(7.0, 2.2 + 3.2 * len(probes)), 1.5 + 0.27 * len(rows)), layout="constrained")
    axes = fig.subplots(1, len(probes), squeeze=False)[0]
    chance = [float(record["chance"]) for record in records if record["chance"]]
    for axis, probe in zip(axes, probes):
        for y, row in enumerate(rows.values()):
            color = ORANGE if row.model.startswith("vit") else BLUE
            trained, random = ([*by.get(probe, {}).values()] for by in (row.pretrained, row.random))
            _dots(axis, random, y + 0.18, GREY, face="none")
            _dots(axis, trained, y, color)
            if trained:
                mean = 100 * statistics.mean(trained)
                axis.plot([mean, mean], [y - 0.3, y + 0.3], color=color, linewidth=2)
        if words and rows[words[0]].pretrained.get(probe):
            axis.axvline(100 * statistics.mean(rows[words[0]].pretrained[probe].values()), color=INK, linewidth=0.8)
        if chance:
            axis.axvline(100 * statistics.mean(chance), color=GREY, linewidth=0.8, linestyle=":")
        axis.set(title=probe, xlabel="accuracy, %", ylim=(len(rows) - 0.4, -0.6))
        axis.set_yticks(range(len(rows)), [*rows] if axis is axes[0] else [""] * len(rows))
    handles = [
        Line2D([], [], marker="o", linestyle="", color=color, markerfacecolor=face, markersize=5)
        for color, face in ((BLUE, BLUE), (ORANGE, ORANGE), (GREY, "none"))
    ]
    labels = ["VideoMamba", "ViT", "the same encoder at random"]
    kept = [
        i for i, kind in enumerate(("videomamba", "vit", "")) if any(r.model.startswith(kind) for r in rows.values())
    ]
    handles, labels = [handles[i] for i in kept], [labels[i] for i in kept]
    if words:
        handles, labels = [*handles, Line2D([], [], color=INK, linewidth=0.8)], [*labels, f"mean of {words[0]}"]
    if chance:
        handles, labels = [*handles, Line2D([], [], color=GREY, linewidth=0.8, linestyle=":")], [*labels, "chance"]
    fig.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return fig


def _dots(axis: Axes, values: Sequence[float], y: float, color: str, face: str | None = None) -> None:
    xs = [100 * value for value in values]
    axis.plot(xs, [y] * len(xs), "o", color=color, markerfacecolor=face or color, markersize=4.5, alpha=0.8)


def length(records: Records, words: Sequence[str]) -> Figure:
    """Accuracy over steps: a curve for all rows of a name that differ in their length only; `words` names the probe."""
    rows, probes = collect(records), probes_of(records)
    probe = words[0] if words else probes[0]
    if probe not in probes:
        raise UserError(f"there is no probe '{probe}'; probes: {', '.join(probes)}")
    curves: dict[str, dict[int, list[float]]] = {}
    for row in rows.values():
        values = [*row.pretrained.get(probe, {}).values()]
        if values:
            curves.setdefault(_without_length(row.name), {}).setdefault(max(row.steps), []).extend(values)
    fig = Figure(figsize=(7.0, 4.0), layout="constrained")
    axis = fig.subplots()
    for color, (name, points) in zip(MANY * len(curves), curves.items()):
        steps = sorted(points)
        means = [100 * statistics.mean(points[step]) for step in steps]
        axis.plot(steps, means, color=color, label=name)
        for step in steps:
            axis.plot([step] * len(points[step]), [100 * x for x in points[step]], "o", color=color, markersize=4.5)
    axis.set(xlabel="optimizer steps", ylabel=f"{probe}, accuracy in %", xscale="log")
    ticks = sorted({step for points in curves.values() for step in points})
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.legend(loc="best")
    return fig


def _without_length(name: str) -> str:
    """What rows of several lengths have in common."""
    return re.sub(r"-?\b(epochs|ipe|steps)=\d+", "", name).strip("-") or "all"


def health(records: Records, words: Sequence[str]) -> Figure:
    """Spread of predictions and targets, effective rank of targets over the steps: a thin line for each run of rows."""
    rows = list(dict.fromkeys(record["row"] for record in records))
    for word in words:
        if word not in rows:
            raise UserError(f"there is no row '{word}'; rows: {', '.join(rows)}")
    shown = list(words) or rows[: len(MANY)]
    fig = Figure(figsize=(12.0, 3.8), layout="constrained")
    panels = (
        (PREDICTED, "spread of predictions"),
        (STD, "spread of targets between clips"),
        (RANK, "effective rank of targets"),
    )
    for axis, (name, title) in zip(fig.subplots(1, len(panels)), panels):
        for color, row in zip(MANY * len(shown), shown):
            runs = dict.fromkeys(record["run"] for record in records if record["row"] == row)
            for i, run in enumerate(runs):
                points = [(int(r["step"]), float(r[name])) for r in records if r["run"] == run and r[name]]
                axis.plot(*zip(*points), color=color, linewidth=1.2, alpha=0.8, label=row if i == 0 else None)
        axis.set(title=title, xlabel="optimizer steps", ylim=(0, None))
    fig.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=min(len(shown), 5))
    return fig
