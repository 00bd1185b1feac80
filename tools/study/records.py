"""The csv files of a study: their columns, and their rows by name.

NAME.csv has a row for each run and encoder; NAME-diagnostics.csv has the diagnostics of the runs over their steps.
"""

from __future__ import annotations

import csv
import hashlib
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from src.utils.errors import UserError

STD, RANK, PREDICTED = "target/between_clip_std", "target/effective_rank_centered", "prediction/feature_std"
# The last diagnostics of a run, beside its accuracies.
DIAGNOSTICS = (STD, RANK, PREDICTED, "gradient/encoder")
COLUMNS = ("run", "row", "seed", "model", "encoder", "steps", "loss", *DIAGNOSTICS, "chance")
BALANCED = " balanced"  # end of the name of a column with balanced accuracies, where classes are unequal
DIAGNOSTICS_COLUMNS = ("run", "row", "seed", "step", *DIAGNOSTICS)

Records = list[dict[str, str]]


@dataclass
class Runs:
    """All runs of one row of a sweep; accuracies by probe, one for each seed that has results."""

    name: str
    model: str = ""
    count: int = 0
    steps: set[int] = field(default_factory=set)
    pretrained: dict[str, dict[str, float]] = field(default_factory=dict)  # probe -> seed -> accuracy
    random: dict[str, dict[str, float]] = field(default_factory=dict)
    last: dict[str, list[float]] = field(default_factory=dict)  # metric -> its last value in each run


def probes_of(records: Records) -> list[str]:
    """Columns that hold accuracies, plain ones and BALANCED ones."""
    return [name for name in records[0] if name not in COLUMNS]


def collect(records: Records) -> dict[str, Runs]:
    """The rows of a study's csv, by their name, in the order of the file."""
    rows: dict[str, Runs] = {}
    for record in records:
        row = rows.setdefault(record["row"], Runs(record["row"], record["model"]))
        accuracies = row.random if record["encoder"] == "random" else row.pretrained
        for probe in probes_of(records):
            if record[probe]:
                accuracies.setdefault(probe, {})[record["seed"]] = float(record[probe])
        if record["encoder"] == "random":
            continue
        row.count += 1
        row.steps.add(int(record["steps"]))
        for name in ("loss", STD, RANK):
            if record[name]:
                row.last.setdefault(name, []).append(float(record[name]))
    return rows


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; NaN of one value."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def difference(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Difference of the means, and its standard error; NaN where one of them is a single run."""
    (mean, std), (other, other_std) = spread(ours), spread(theirs)
    return mean - other, math.sqrt(std**2 / len(ours) + other_std**2 / len(theirs))


def read(path: Path, columns: Sequence[str] = COLUMNS) -> Records:
    """A csv of `tools.study`; empty if it is not there. Raises UserError for another one."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            raise UserError(f"{path} is no csv of a study: it has no column {missing[0]}")
        return list(reader)


def digest(path: Path) -> str:
    """What tells whether a plot was drawn from this file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def diagnostics_path(out: Path) -> Path:
    """The csv of the runs' diagnostics, beside that of their results."""
    return out.with_name(f"{out.stem}-diagnostics.csv")
