"""The plots of a study: every run as a dot, accuracy over length or another number, diagnostics over the steps."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from src.utils.errors import UserError
from src.utils.plotting import GREY, INK, STYLE
from tools.study.records import BALANCED, PREDICTED, RANK, STD, Records, Runs, collect, probes_of

BLUE, ORANGE = "tab:blue", "tab:orange"  # VideoMamba, ViT
MANY = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:cyan")


def draw(kind: str, records: Records, words: Sequence[str], path: Path, digest: str) -> None:
    """Write the plot that a block of the page asks for; the file holds the digest of its csv."""
    figures = {"dots": dots, "curve": curve, "diagnostics": diagnostics}
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
        if chance and not probe.endswith(BALANCED):
            axis.axvline(100 * statistics.mean(chance), color=GREY, linewidth=0.8, linestyle=":")
        axis.set(title=probe, xlabel="accuracy, %", ylim=(len(rows) - 0.4, -0.6))
        axis.set_yticks(range(len(rows)), [*rows] if axis is axes[0] else [""] * len(rows))
    handles = {}
    kinds = (("videomamba", "VideoMamba", BLUE, BLUE), ("vit", "ViT", ORANGE, ORANGE))
    for kind, label, color, face in (*kinds, ("", "the same encoder at random", GREY, "none")):
        if any(row.model.startswith(kind) for row in rows.values()):
            handles[label] = Line2D([], [], marker="o", linestyle="", color=color, markerfacecolor=face, markersize=5)
    if words:
        handles[f"mean of {words[0]}"] = Line2D([], [], color=INK, linewidth=0.8)
    if chance:
        handles["chance"] = Line2D([], [], color=GREY, linewidth=0.8, linestyle=":")
    fig.legend([*handles.values()], [*handles], loc="outside upper center", ncols=len(handles))
    return fig


def _dots(axis: Axes, values: Sequence[float], y: float, color: str, face: str | None = None) -> None:
    xs = [100 * value for value in values]
    axis.plot(xs, [y] * len(xs), "o", color=color, markerfacecolor=face or color, markersize=4.5, alpha=0.8)


def curve(records: Records, words: Sequence[str]) -> Figure:
    """A panel for each probe: accuracy over a number that rows have in their names, and of the untrained encoders.

    `words` names it: `px` where rows are called px_0.3, px_0.6, ...; `steps`, the default, for the length of training.
    Rows that differ in nothing else are one curve through their means, hollow and dashed where untrained.
    """
    rows, probes = collect(records), probes_of(records)
    key = words[0] if words else "steps"
    named = re.compile(
        r"-?\b(?:epochs|ipe|steps)=\d+"
        if key == "steps"
        else rf"-?\b{re.escape(key)}[_=](\d+(?:\.\d+)?(?:e[+-]?\d+)?)(?=-|$)"
    )
    curves: dict[str, dict[float, Runs]] = {}
    for row in rows.values():
        found = named.search(row.name)
        if row.pretrained and (found or key == "steps"):
            x = float(found.group(1)) if found and key != "steps" else max(row.steps)
            points = curves.setdefault(named.sub("", row.name).strip("-") or "all", {})
            if x in points:
                raise UserError(f"rows {points[x].name} and {row.name} are one point of a curve over {key}")
            points[x] = row
    if not curves:
        raise UserError(f"no row has a number called '{key}' in its name; rows: {', '.join(rows)}")
    layout = ConstrainedLayoutEngine(wspace=0.06)  # the outer tick labels of neighbours do not touch
    fig = Figure(figsize=(max(7.0, 1.0 + 3.6 * len(probes)), 3.8), layout=layout)
    ticks = sorted({x for points in curves.values() for x in points})
    for axis, probe in zip(fig.subplots(1, len(probes), squeeze=False, sharey=True)[0], probes):
        for color, (name, points) in zip(_colors(curves), curves.items()):
            _curve(axis, {x: points[x].random.get(probe, {}) for x in sorted(points)}, color, trained=False)
            _curve(axis, {x: points[x].pretrained.get(probe, {}) for x in sorted(points)}, color, label=name)
        axis.set(title=probe, xlabel="optimizer steps" if key == "steps" else key, ylim=(0, 102))
        axis.set_xscale("log" if ticks[0] > 0 else "linear")
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
    fig.axes[0].set_ylabel("accuracy, %")
    handles, labels = fig.axes[0].get_legend_handles_labels()
    handles.append(Line2D([], [], marker="o", color=GREY, linestyle="--", markerfacecolor="none", markersize=4.5))
    fig.legend(handles, [*labels, "untrained"], loc="outside upper center", ncols=min(len(labels) + 1, 4))
    return fig


def _curve(axis: Axes, seeds: dict[float, dict[str, float]], color: str, trained: bool = True, label: str = "") -> None:
    """One curve: a dot for each seed at each x, a line through the means."""
    seeds = {x: by for x, by in seeds.items() if by}
    style = {"color": color} if trained else {"color": color, "alpha": 0.5}
    means = [100 * statistics.mean(by.values()) for by in seeds.values()]
    axis.plot([*seeds], means, "-" if trained else "--", label=label or None, **style)
    for x, by in seeds.items():
        values = [100 * value for value in by.values()]
        axis.plot([x] * len(values), values, "o", markersize=4.5, markerfacecolor=None if trained else "none", **style)


def _colors(curves: dict[str, dict[float, Runs]]) -> list[str]:
    """Each family's own where there is a curve of each, any where there are more."""
    families = ["vit" if next(iter(points.values())).model.startswith("vit") else "vm" for points in curves.values()]
    if len(set(families)) == len(families):
        return [ORANGE if family == "vit" else BLUE for family in families]
    return [*MANY] * len(curves)


def diagnostics(records: Records, words: Sequence[str]) -> Figure:
    """Standard deviation of predictions and targets, effective rank of targets over the steps: a line for each run."""
    rows = list(dict.fromkeys(record["row"] for record in records))
    for word in words:
        if word not in rows:
            raise UserError(f"there is no row '{word}'; rows: {', '.join(rows)}")
    shown = list(words) or rows[: len(MANY)]
    fig = Figure(figsize=(12.0, 3.8), layout="constrained")
    panels = (
        (PREDICTED, "standard deviation of predictions"),
        (STD, "between-clip standard deviation of targets"),
        (RANK, "effective rank of targets"),
    )
    for axis, (name, title) in zip(fig.subplots(1, len(panels)), panels):
        for color, row in zip(MANY * len(shown), shown):
            runs = dict.fromkeys(record["run"] for record in records if record["row"] == row)
            for i, run in enumerate(runs):
                points = [(int(r["step"]), float(r[name])) for r in records if r["run"] == run and r[name]]
                axis.plot(*zip(*points), color=color, linewidth=1.2, alpha=0.8, label=row if i == 0 else None)
        axis.set(title=title, xlabel="optimizer steps", ylim=(0, None))
    ncols = max(1, min(len(shown), 130 // (max(map(len, shown)) + 8)))  # as many as fit across the page
    fig.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=ncols)
    return fig
