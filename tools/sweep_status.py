"""`python -m tools.sweep_status FOLDER [--sort loss]`: how far the runs in a folder are, from their files alone."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

from app.vjepa.run_status import LOSS_STEPS, PARAMS, Status, read_status
from src.config.sweep import read_record
from src.launch.cli import Parser
from src.utils.errors import UserError, run_cli
from src.utils.paths import path_argument
from src.utils.progress import format_seconds
from src.utils.table import print_table

# Sorting by a column begins with its best; what has no value comes last.
_SMALLEST_FIRST = ("run", "state", "loss", "saved")


class RunRow(NamedTuple):
    """A run, and the accuracies (0 to 1) of its probes: (probe, encoder) -> accuracy."""

    label: str
    status: Status
    accuracies: dict[tuple[str, str], float]


def main() -> int:
    """The command line. Returns the exit code."""
    parser = Parser("tools.sweep_status", "Show each run in a folder: state, epoch, step, loss, probe accuracy.")
    parser.usage = "%(prog)s FOLDER [--sort COLUMN]"
    parser.epilog = f"The loss is the mean over the last {LOSS_STEPS} steps; in brackets the same encoder untrained."
    parser.add_argument(
        "run_folder", type=path_argument, metavar="FOLDER", help="folder of a sweep, or any that has runs in it"
    )
    parser.add_argument("--sort", metavar="COLUMN", default=None, help="column to sort by (default: the sweep's order)")
    parser.add_argument(
        "--stale", type=float, default=10.0, metavar="MINUTES", help="quiet for so long is not running (default 10)"
    )
    args = parser.parse_args()
    rows = read_runs(args.run_folder, 60 * args.stale)
    probes = list(dict.fromkeys(probe for row in rows for probe, _ in row.accuracies))
    columns = ["run", "state", "epoch", "step", "loss", "saved", *probes]
    if args.sort is not None:
        if args.sort not in columns:
            raise UserError(f"command line: --sort: there is no column '{args.sort}'; columns: {', '.join(columns)}")
        rows.sort(key=lambda row: _sort_key(row, args.sort))
    print_table([*columns, "reason"], [[*_cells(row), *_shares(row, probes), row.status.reason] for row in rows])
    return 0


def read_runs(folder: Path, stale_s: float) -> list[RunRow]:
    """The runs of a sweep in its order, begun or not, and then whatever else in `folder` is a run.

    Raises:
        UserError: there is none.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    record = read_record(folder)
    known = record.runs if record else []
    found = {Path(run.folder).resolve(): (run.label, Path(run.logs) if run.logs else None, run.job) for run in known}
    for params in sorted(folder.rglob(PARAMS)):
        label = str(params.parent.relative_to(folder))
        found.setdefault(params.parent.resolve(), (folder.name if label == "." else label, None, None))
    if not found:
        raise UserError(f"{folder}: there are no runs in it (no sweep.yaml, and no {PARAMS} below it)")
    return [
        RunRow(label, read_status(place, logs, job, stale_s), read_accuracies(place))
        for place, (label, logs, job) in found.items()
    ]


def read_accuracies(folder: Path) -> dict[tuple[str, str], float]:
    """What the evaluations below a run's folder have found; where there are several they go by their tags."""
    results = []
    for path in sorted(folder.rglob("*-results.json")):
        try:
            results.append(json.loads(path.read_text(encoding="utf-8")))
        except json.JSONDecodeError:
            continue  # it is just being written
    found = {}
    for result in results:
        name = f"{result['tag'] or result['eval_name']} " if len(results) > 1 else ""
        for score in result["scores"]:
            found[name + score["probe"], score["row"]] = score["accuracy"]
    return found


def _cells(row: RunRow) -> list[str]:
    s = row.status
    saved = f"{format_seconds(time.time() - s.saved)} ago" if s.saved is not None else "-"
    loss = f"{s.loss:.4f}" if s.loss is not None else "-"
    return [row.label, s.state, _of(s.epoch, s.epochs), _of(s.step, s.steps), loss, saved]


def _of(done: int | None, total: int | None) -> str:
    """`3/5`, with a dash for what is not known."""
    return "-" if done is None and total is None else f"{done or 0}/{'?' if total is None else total}"


def _shares(row: RunRow, probes: list[str]) -> list[str]:
    cells = []
    for probe in probes:
        mine, random = (row.accuracies.get((probe, encoder)) for encoder in ("pretrained", "random"))
        beside = f" ({100 * random:.1f})" if random is not None else ""
        cells.append("-" if mine is None else f"{100 * mine:.1f} %{beside}")
    return cells


def _sort_key(row: RunRow, column: str) -> tuple[bool, Any]:
    """Sorts by value, and what has none (or has diverged) last."""
    s = row.status
    values: dict[str, Any] = {"run": row.label, "state": s.state, "epoch": s.epoch, "step": s.step, "loss": s.loss}
    values["saved"] = None if s.saved is None else -s.saved
    value = values[column] if column in values else row.accuracies.get((column, "pretrained"))
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True, 0
    return False, value if column in _SMALLEST_FIRST else -value


if __name__ == "__main__":
    run_cli(main)
