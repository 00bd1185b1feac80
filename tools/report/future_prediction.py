"""What evals/future_prediction wrote: how often predicted features pick out the true future, and its picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evals.future_prediction.strip import STRIP
from src.utils.plotting import data_uri
from tools.report.page_parts import Note, Part, Picture, Table

FUTURES = "future_prediction"


def future_parts(path: Path, run: str, found: dict[str, Any]) -> list[Part]:
    """The table of a results json at `path`, and the picture beside it."""
    parts = [_table(run, found)]
    strip = path.with_name(STRIP)
    if not strip.exists():
        return [*parts, Note(f"{strip} is not there: python -m evals.main writes it with the results.")]
    caption = (
        "Clips of the validation list. Above, the first frame of each tubelet: all four have the same beginning, which "
        "is what the model is shown. Below, the mean absolute difference between what it predicts and what the target "
        "encoder makes of each future: the prediction picks the lowest line."
    )
    uri = data_uri("png", strip.read_bytes())
    return [*parts, Picture(uri, "Clips, their possible futures and the distance of the prediction to each", caption)]


def _table(run: str, found: dict[str, Any]) -> Table:
    """Rows: predictions over the whole future and each tubelet of it, then chance. Columns: what they choose from."""
    cells: dict[tuple[str, int | None], dict[str, str]] = {}
    chances: dict[str, str] = {}
    for choice in found["choices"]:
        metrics = (100 * choice[key] for key in ("accuracy", "ci95_low", "ci95_high"))
        row = cells.setdefault((choice["model"], choice["tubelet"]), {})
        row[choice["against"]] = "{:.1f} [{:.1f}, {:.1f}]".format(*metrics)
        chances[choice["against"]] = f"{100 * choice['chance']:.1f}"
    rows = [[m if t is None else f"{m}, +{t}", *(row[a] for a in chances)] for (m, t), row in cells.items()]
    columns = ["prediction", *(against if against == "all" else f"or {against}" for against in chances)]
    caption = (
        f"{run}: how often the prediction from the first {found['context_tubelets']} of {found['tubelets']} tubelets "
        f"is nearest to the true future, in % of {found['val']['samples']} clips, with its 95 % interval (Wilson); +1 "
        "is the first tubelet that is not seen. Read the rows together: where mean and random are far from chance, a "
        "future is told apart by how usual its features are, not by what was predicted."
    )
    return Table(columns, [*rows, ["chance", *chances.values()]], caption)
