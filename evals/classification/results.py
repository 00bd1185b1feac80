"""What an evaluation hands over: intervals, per-class metrics, a csv, a json, a picture and the closing table.

Legend: M samples, C classes.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

Z_95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
MAX_CONFUSION_CLASSES = 1000  # classes of a confusion matrix that the json holds; of 10,000 it would take gigabytes


@dataclass(frozen=True)
class Score:
    """How one probe did on one encoder; `predictions` and `labels` (M,) are in the order of the validation list."""

    row: str
    probe: str
    labels: np.ndarray
    predictions: np.ndarray
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def correct(self) -> int:
        return int((self.labels == self.predictions).sum())

    @property
    def total(self) -> int:
        return len(self.labels)

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0 to 1."""
        return self.correct / self.total

    @property
    def balanced_accuracy(self) -> float:
        """Mean over the classes that have samples of the share of right answers in each, 0 to 1."""
        right_C, total_C = self._by_class()
        return float((right_C / total_C).mean())

    @property
    def balanced_interval(self) -> tuple[float, float]:
        """95 % interval of the balanced accuracy: normal, each class's variance at its share by Laplace's rule.

        (right + 1) / (total + 2) keeps the variance of a class with few samples, or none wrong, above 0.
        """
        right_C, total_C = self._by_class()
        share_C = (right_C + 1) / (total_C + 2)
        half = Z_95 * float(np.sqrt((share_C * (1 - share_C) / total_C).sum())) / len(total_C)
        return max(0.0, self.balanced_accuracy - half), min(1.0, self.balanced_accuracy + half)

    @property
    def balanced_chance(self) -> float:
        """The balanced accuracy of any answer that does not depend on the sample: 1 / classes that have samples."""
        return 1 / len(np.unique(self.labels))

    @property
    def scenes(self) -> tuple[int, int]:
        """Right scenes and samples, where labels are 2 x scene + direction."""
        return int((self.labels // 2 == self.predictions // 2).sum()), self.total

    @property
    def directions(self) -> tuple[int, int]:
        """Right directions, and samples whose scene is right: chance is a half of these."""
        return self.correct, self.scenes[0]

    def _by_class(self) -> tuple[np.ndarray, np.ndarray]:
        """Right answers and samples of each class that has samples."""
        _, class_M, total_C = np.unique(self.labels, return_inverse=True, return_counts=True)
        return np.bincount(class_M, self.labels == self.predictions), total_C


def wilson_interval(correct: int, total: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927), 0 to 1: unlike the normal one it stays inside [0, 1]."""
    if not 0 <= correct <= total or total == 0:
        raise ValueError(f"{correct} of {total} is not a share")
    share = correct / total
    centre = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts (C, C): row = true class, column = predicted class."""
    flat = labels.astype(np.int64) * num_classes + predictions.astype(np.int64)
    return np.bincount(flat, minlength=num_classes * num_classes).reshape(num_classes, num_classes)


def per_class_accuracy(confusion: np.ndarray) -> list[float | None]:
    """Share of right answers for each true class; None where the class has no sample."""
    totals = confusion.sum(axis=1)
    return [float(confusion[c, c] / n) if n else None for c, n in enumerate(totals)]


def chance_level(labels: np.ndarray, num_classes: int) -> float:
    """What can be had without looking: the share of the most common class in `labels`, at least 1/C."""
    counts = np.bincount(labels, minlength=num_classes)
    return max(float(counts.max() / counts.sum()), 1.0 / num_classes)


def scene_chance(score: Score) -> float:
    """What can be had of scenes without looking: the share of the most common one."""
    scenes = score.labels // 2
    return chance_level(scenes, int(scenes.max()) + 1)


def is_balanced(chance: float, balanced_chance: float) -> bool:
    """Whether all classes have as many samples, so that balanced accuracy is the accuracy."""
    return math.isclose(chance, balanced_chance, rel_tol=1e-6)


def describe(score: Score, num_classes: int, paired: bool = False) -> dict[str, Any]:
    """Everything about one score as plain numbers, ready for json; `paired`: labels are 2 x scene + direction."""
    low, high = wilson_interval(score.correct, score.total)
    confusion = confusion_matrix(score.labels, score.predictions, num_classes)
    parts = {"scene": score.scenes, "direction": score.directions} if paired else {}
    pairs: dict[str, Any] = {}
    for name, (right, total) in parts.items():
        pairs[f"{name}_accuracy"] = right / total if total else None
        pairs[f"{name}_ci95"] = [*wilson_interval(right, total)] if total else [None, None]
    return {
        "row": score.row,
        "probe": score.probe,
        "accuracy": score.accuracy,
        "ci95": [low, high],
        "balanced_accuracy": score.balanced_accuracy,
        "balanced_ci95": [*score.balanced_interval],
        **pairs,
        "correct": score.correct,
        "total": score.total,
        "note": score.note,
        "per_class_accuracy": per_class_accuracy(confusion),
        "confusion_matrix": confusion.tolist() if num_classes <= MAX_CONFUSION_CLASSES else None,
        **score.details,
    }


def write_files(
    folder: Path,
    prefix: str,
    scores: Sequence[Score],
    chance: float,
    num_classes: int,
    context: dict[str, Any],
    paired: bool = False,
) -> dict[str, Any]:
    """Write `<prefix>-results.json`, `-results.csv`, pictures of the confusion matrices; return the json's content."""
    described = [describe(score, num_classes, paired) for score in scores]
    path_json = folder / f"{prefix}-results.json"
    chances = {"chance": chance, "balanced_chance": scores[0].balanced_chance}
    payload = {**context, "num_classes": num_classes, **chances, "scores": described}
    path_json.write_text(json.dumps(payload, indent=1) + "\n", encoding="utf-8")

    path_csv = folder / f"{prefix}-results.csv"
    with path_csv.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        columns = ["row", "probe", "accuracy", "ci95_low", "ci95_high", "correct", "total", "note"]
        columns += ["balanced_accuracy", "balanced_ci95_low", "balanced_ci95_high"]
        parts = ["scene", "direction"] if paired else []
        columns += [f"{part}_{what}" for part in parts for what in ("accuracy", "ci95_low", "ci95_high")]
        writer.writerow(columns)
        for d in described:
            shares = [f"{share:.6f}" for share in (d["accuracy"], *d["ci95"])]
            balanced = [f"{share:.6f}" for share in (d["balanced_accuracy"], *d["balanced_ci95"])]
            pairs = [share for part in parts for share in (d[f"{part}_accuracy"], *d[f"{part}_ci95"])]
            of_pairs = ["" if share is None else f"{share:.6f}" for share in pairs]
            row = [d["row"], d["probe"], *shares, d["correct"], d["total"], d["note"], *balanced, *of_pairs]
            writer.writerow(row)
        balanced_chance = f"{chances['balanced_chance']:.6f}"
        row = ["chance", "", f"{chance:.6f}", "", "", "", "", "", balanced_chance, "", ""]
        of_pairs = [f"{scene_chance(scores[0]):.6f}", "", "", "0.500000", "", ""] if paired else []
        writer.writerow(row + of_pairs)

    for score in scores:
        path = folder / f"{prefix}-confusion-{score.row}-{score.probe}.png"
        save_confusion_picture(path, confusion_matrix(score.labels, score.predictions, num_classes))
    return payload


def save_confusion_picture(path: Path, confusion: np.ndarray, min_side: int = 320) -> None:
    """Write the row-normalised confusion matrix (C, C) as a PNG: rows true, columns predicted, dark = often.

    Plain pixels, so that 1,000 classes stay readable and no plotting package is needed.
    """
    from PIL import Image

    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    cell = max(1, -(-min_side // len(confusion)))
    pixels = np.kron(np.round(255 * (1 - shares)).astype(np.uint8), np.ones((cell, cell), dtype=np.uint8))
    if cell >= 8:  # thin lines between the cells
        pixels[cell - 1 :: cell, :] = np.minimum(pixels[cell - 1 :: cell, :], 200)
        pixels[:, cell - 1 :: cell] = np.minimum(pixels[:, cell - 1 :: cell], 200)
    Image.fromarray(pixels).save(path)


def build_table(
    title: str, scores: Sequence[Score], probes: Sequence[str], chance: float, paired: bool = False
) -> Table:
    """Rows: encoders, then chance. Columns: probes, each `accuracy [95 % interval]` in percent.

    Where classes have unequal numbers of samples, each row has one of balanced accuracies below it; where labels are
    2 x scene + direction, one of right scenes and one of right directions among these.
    """
    chances = {"": chance}
    if not is_balanced(chance, scores[0].balanced_chance):
        chances["  balanced"] = scores[0].balanced_chance
    if paired:
        chances |= {"  scene": scene_chance(scores[0]), "  direction": 0.5}
    table = Table(title=title)
    table.add_column("encoder", no_wrap=True)
    for probe in probes:
        table.add_column(probe, justify="right", no_wrap=True)
    for row in dict.fromkeys(score.row for score in scores):
        cells = {score.probe: score for score in scores if score.row == row}
        for measure in chances:
            found = {probe: _cell(_measured(score, measure)) for probe, score in cells.items()}
            table.add_row(measure or row, *(found.get(probe, "-") for probe in probes))
    for measure, share in chances.items():
        table.add_row(measure or "chance", *[f"{100 * share:.1f}"] * len(probes))
    return table


def _measured(score: Score, measure: str) -> tuple[float, float, float] | None:
    """A share and its interval; None where no sample counts."""
    if measure == "  balanced":
        return score.balanced_accuracy, *score.balanced_interval
    counts = {"  scene": score.scenes, "  direction": score.directions}
    right, total = counts.get(measure, (score.correct, score.total))
    return (right / total, *wilson_interval(right, total)) if total else None


def _cell(found: tuple[float, float, float] | None) -> str:
    if found is None:
        return "-"
    share, low, high = found
    return f"{100 * share:.1f} \\[{100 * low:.1f}, {100 * high:.1f}]"


def build_heads_table(heads: dict[str, list[dict[str, Any]]]) -> Table:
    """All heads that trained side by side, by encoder; the star is at the one whose figure counts."""
    title = "attentive heads side by side: accuracy in %\n* is reported: best on the inner validation samples"
    table = Table(title=title)
    for column in ("encoder", "lr", "weight decay", "train", "inner val", "val"):
        table.add_column(column, justify="left" if column == "encoder" else "right", no_wrap=True)
    for name, rows in heads.items():
        for head in rows:
            shares = [head[f"{what}_accuracy"] for what in ("train", "inner_val", "val")]
            metrics = [f"{100 * share:.1f}" if share is not None else "-" for share in shares]
            star = " *" if head["reported"] else ""
            table.add_row(name + star, f"{head['lr']:g}", f"{head['weight_decay']:g}", *metrics)
    return table


def print_table(table: Table) -> None:
    """Print to stdout, wide enough that a pipe or a narrow log does not cut cells."""
    needed = Console(width=10_000).measure(table).maximum
    Console(width=max(Console().width, 100, needed)).print(table)
