"""What evaluations of a run found: tables with intervals, side by side for several runs, and confusion matrices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.lines import Line2D

from evals.classification.results import is_balanced
from src.utils.plotting import COLORS, GREY, INCH, figure, to_svg
from tools.report.future_prediction import FUTURES, future_parts
from tools.report.page_parts import Heading, Note, Part, Picture, Table
from tools.report.run_folder import RunFolder

MOST_TICKS = 20


class Result(NamedTuple):
    """One score of one encoder."""

    run: RunFolder
    row: str
    probe: str
    accuracy: float
    interval: tuple[float, float]
    confusion: np.ndarray | None
    balanced: tuple[float, float, float] | None  # with its interval; None where classes are equal or it is not there


def probe_parts(runs: Sequence[RunFolder]) -> list[Part]:
    """All evaluations, those of the same name and tag together."""
    named: dict[str, list[tuple[RunFolder, dict[str, Any]]]] = {}
    parts: list[Part] = []
    futures: list[Part] = []
    for run in runs:
        if not run.results:
            parts.append(Note(f"{run.name}: no evaluation yet: python -m evals.main writes into the run's folder."))
        for path, found in run.results.items():
            if not found:
                parts.append(Note(f"{path} cannot be read: it is cut short, or still being written."))
                continue
            if found.get("eval_name") == FUTURES:
                futures += [Heading(_title(path, run.folder)), *future_parts(path, run.name, found)]
                continue
            named.setdefault(_title(path, run.folder), []).append((run, found))
    for title, results in named.items():
        parts += [Heading(title), *_evaluation(results, len(runs) > 1)]
    return [*parts, *futures]


def _title(path: Path, folder: Path) -> str:
    """`video_classification_frozen, motion`: the folders between a run and its results."""
    return ", ".join(path.relative_to(folder).parts[:-1]).replace("_", " ") or path.stem


def _evaluation(results: Sequence[tuple[RunFolder, dict[str, Any]]], several: bool) -> list[Part]:
    scores = [score for run, found in results for score in _scores(run, found)]
    if not scores:
        return [part for run, found in results for part in _plain_tables(run.name if several else "", found)]
    chance = _common(results, "chance")
    parts: list[Part] = [_table(scores, results, several, chance), _chart(scores, several, chance)]
    first = next((score.probe for score in scores if score.confusion is not None), None)
    shown = [score for score in scores if score.confusion is not None and score.probe == first]
    return [*parts, _confusions(shown, several)] if shown else parts


def _common(results: Sequence[tuple[RunFolder, dict[str, Any]]], key: str) -> float | None:
    """What all results say under a key; None where they differ or do not say."""
    values = {found[key] for _, found in results if key in found}
    return values.pop() if len(values) == 1 else None


def _scores(run: RunFolder, found: dict[str, Any]) -> list[Result]:
    """The scores of an evaluation that has the form of evals/classification/results.py."""
    scores = found.get("scores", [])
    if not all({"row", "probe", "accuracy", "ci95"} <= set(score) for score in scores):
        return []
    unequal = "balanced_chance" in found and not is_balanced(found["chance"], found["balanced_chance"])
    results = []
    for s in scores:
        matrix = s.get("confusion_matrix")
        confusion = None if matrix is None else np.asarray(matrix)
        balanced = (s["balanced_accuracy"], *s["balanced_ci95"]) if unequal else None
        results.append(Result(run, s["row"], s["probe"], s["accuracy"], tuple(s["ci95"]), confusion, balanced))
    return results


def _plain_tables(name: str, found: dict[str, Any]) -> list[Part]:
    """Every list of flat rows in a json of another form, as it stands."""
    parts: list[Part] = []
    for key, rows in found.items():
        if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows):
            columns = [c for c in dict.fromkeys(c for row in rows for c in row) if _is_flat([r.get(c) for r in rows])]
            caption = " ".join(word for word in (name, key.replace("_", " ")) if word)
            parts.append(Table(columns, [[_text(row.get(column)) for column in columns] for row in rows], caption))
    return parts or [Note("This evaluation's json holds no table.")]


def _is_flat(values: Sequence[object]) -> bool:
    return not any(isinstance(value, (list, dict)) for value in values)


def _text(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(
    scores: Sequence[Result],
    results: Sequence[tuple[RunFolder, dict[str, Any]]],
    several: bool,
    chance: float | None,
) -> Table:
    probes = list(dict.fromkeys(score.probe for score in scores))
    rows = []
    for run, row in dict.fromkeys((score.run.name, score.row) for score in scores):
        cells = {score.probe: score for score in scores if (score.run.name, score.row) == (run, row)}
        plain = {probe: _cell(score.accuracy, *score.interval) for probe, score in cells.items()}
        balanced = {probe: _cell(*score.balanced) for probe, score in cells.items() if score.balanced}
        for name, texts in ((row, plain), (f"{row}, balanced", balanced)):
            if texts:
                rows.append([*([run] if several else []), name, *(texts.get(probe, "–") for probe in probes)])
    chances = {"chance": chance}
    if any(score.balanced for score in scores):
        chances["chance, balanced"] = _common(results, "balanced_chance")
    for name, share in chances.items():
        if share is not None:
            rows.append([*([""] if several else []), name, *[f"{100 * share:.1f}"] * len(probes)])
    samples = {found["val"]["samples"] for _, found in results if "val" in found}
    on = f" on {' and '.join(map(str, sorted(samples)))} validation samples" if samples else ""
    caption = (
        f"Accuracy in %{on}, with its 95 % interval (Wilson). Read the rows together: what the random encoder reaches "
        "was not learned in pretraining."
    )
    if any(score.balanced for score in scores):
        caption += (
            " Classes have unequal numbers of samples: chance is the share of the most common one. Balanced accuracy "
            "is the mean of the classes' accuracies, with a normal interval."
        )
    return Table([*(["run"] if several else []), "encoder", *probes], rows, caption, headings=1 + several)


def _cell(share: float, low: float, high: float) -> str:
    return f"{100 * share:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _color(score: Result, several: bool) -> str:
    return score.run.color if several else COLORS[0 if score.row != "random" else 1]


def _chart(scores: Sequence[Result], several: bool, chance: float | None) -> Picture:
    """The table as dots with their intervals; hollow is random."""
    probes = list(dict.fromkeys(score.probe for score in scores))
    keys = list(dict.fromkeys((score.run.name, score.row) for score in scores))
    with figure(1, 1, 0.9 + 0.24 * len(keys) * len(probes), 7.6) as (fig, ((axes,),)):
        handles = {}
        for score in scores:
            key = (score.run.name, score.row)
            y = probes.index(score.probe) + (keys.index(key) - (len(keys) - 1) / 2) * min(0.22, 0.8 / len(keys))
            low, high = (100 * share for share in score.interval)
            color = _color(score, several)
            face = "white" if score.row == "random" else color
            axes.plot([low, high], [y, y], color=color, linewidth=1.8, solid_capstyle="butt")
            axes.plot(100 * score.accuracy, y, "o", color=color, markerfacecolor=face, markersize=6)
            label = f"{score.run.name}, {score.row}" if several else score.row
            handles[key] = Line2D([], [], marker="o", color=color, markerfacecolor=face, label=label)
        if chance is not None:
            axes.axvline(100 * chance, color=GREY, linestyle=":", linewidth=1)
            handles["", "chance"] = Line2D([], [], color=GREY, linestyle=":", label="chance")
        axes.set_yticks(range(len(probes)), probes)
        axes.set_ylim(len(probes) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.set_xlabel("accuracy, %")
        axes.grid(axis="y", visible=False)
        fig.legend(handles=list(handles.values()), loc="outside right upper")
        caption = "Dots: accuracy. Lines: 95 % intervals. Filled: pretrained; hollow: the same encoder, never trained."
        return Picture(to_svg(fig), "Accuracies with their intervals", caption, width=760)


def _confusions(scores: Sequence[Result], several: bool) -> Picture:
    """Row-normalised confusion matrices of one probe, side by side."""
    columns = min(len(scores), 3)
    rows = -(-len(scores) // columns)
    width = min(11.0, 4.0 * columns)
    with figure(rows, columns, 3.7 * rows, width) as (fig, grid):
        for axes in grid.flat[len(scores) :]:
            axes.set_axis_off()
        for axes, score in zip(grid.flat, scores):
            counts = score.confusion
            assert counts is not None, "only scores that have one are drawn"
            shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
            image = axes.imshow(shares, vmin=0, vmax=100, cmap="Blues", interpolation="nearest")
            axes.grid(False)
            ticks = range(0, len(counts), -(-len(counts) // MOST_TICKS))
            axes.set_xticks(ticks)
            axes.set_yticks(ticks)
            axes.tick_params(labelsize=8)
            name = f"{score.run.name}, {score.row}" if several else score.row
            axes.set(title=name, xlabel="predicted class", ylabel="true class")
        fig.colorbar(image, ax=grid, label="% of the true class", shrink=0.8)
        caption = (
            f"Confusion matrices of the {scores[0].probe} probe: each row is a true class and adds up to 100 %, the "
            "diagonal is right. Classes that are taken for one another show as dark cells off the diagonal."
        )
        alt = f"Confusion matrices of the {scores[0].probe} probe"
        return Picture(to_svg(fig), alt, caption, width=round(INCH * width))
