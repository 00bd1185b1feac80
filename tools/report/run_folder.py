"""What a run's folder holds, read once; what is not there stays empty, and the page says so."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from app import scaffold
from app.vjepa.config import PretrainConfig
from app.vjepa.diagnostics import RENAMED_COLUMNS
from app.vjepa.run_status import PARAMS, Status, read_status
from src.config.yaml_io import read_mapping
from src.models.registry import backbone_config
from src.utils.environment import read_environment
from src.utils.errors import UserError
from src.utils.plotting import COLORS

Log = dict[str, np.ndarray]  # columns of a csv, and `step`


@dataclass(frozen=True)
class RunFolder:
    """A run, as its folder tells it.

    Attributes:
        name: what tells it from the others on the page.
        color: its own, in every chart.
        log: a row for every step.
        diagnostics: a row for every step with diagnostics.
        results: what evaluations wrote, by their file.
        environment: a dictionary for every start of the run.
    """

    folder: Path
    name: str
    color: str
    config: PretrainConfig
    status: Status
    log: Log
    diagnostics: Log
    results: dict[Path, dict[str, Any]]
    environment: list[dict[str, Any]]


def read_runs(folders: Sequence[Path]) -> list[RunFolder]:
    """The runs in `folders`. Raises UserError for a folder that holds none, or one that is named twice."""
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("command line: a folder is named twice: a report compares different runs")
    configs = [read_config(folder) for folder in folders]
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    return [_read(*run) for run in zip(folders, names, _colors(configs), configs)]


def read_config(folder: Path) -> PretrainConfig:
    """The config that a run wrote into its folder.

    Raises:
        UserError: no run is in the folder (names those below it, if there are any), or its config is not a valid one.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder: name the logging.folder of a run")
    path = folder / PARAMS
    if not path.exists():
        inside = sorted(str(found.parent) for found in folder.glob(f"*/{PARAMS}"))
        instead = f"; there are runs in {', '.join(inside[:4])}" if inside else ""
        raise UserError(f"{folder} is not a run: it has no {PARAMS}{instead or ': name the logging.folder of one'}")
    return scaffold.check(read_mapping(path), str(path))[1]


def _colors(configs: Sequence[PretrainConfig]) -> list[str]:
    """VideoMamba's and ViT's own where they are free, else the next."""
    taken: list[str] = []
    for config in configs:
        wanted = COLORS[0 if backbone_config(config.model.model_name).mixer == "mamba" else 1]
        order = (wanted, *COLORS[2:], *COLORS[:2])
        taken.append(next((c for c in order if c not in taken), COLORS[len(taken) % len(COLORS)]))
    return taken


def _read(folder: Path, name: str, color: str, config: PretrainConfig) -> RunFolder:
    tag = config.logging.write_tag
    log = read_csv(folder / f"{tag}_r0.csv")
    per_epoch = config.optimization.ipe or (log["itr"].max() + 1 if log else 0)
    diagnostics = read_csv(folder / f"{tag}-diagnostics.csv")
    for table in (log, diagnostics):
        if table:
            table["step"] = table["epoch"] * per_epoch + table["itr"]
    return RunFolder(
        folder,
        name,
        color,
        config,
        read_status(folder),
        log,
        diagnostics,
        {path: _results(path) for path in sorted(folder.rglob("*-results.json"))},
        read_environment(folder),
    )


def read_csv(path: Path) -> Log:
    """Columns of a csv of numbers that may be growing: what is not a whole row is left out. Empty without any row."""
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    names = lines[0].split(",") if lines else []
    rows = []
    for line in lines[1:]:
        fields = line.split(",")
        try:
            if len(fields) == len(names):
                rows.append([float(field) for field in fields])
        except ValueError:
            continue  # two processes wrote at once, or a disk was full: the other rows still stand
    names = [RENAMED_COLUMNS.get(name, name) for name in names]
    return dict(zip(names, np.array(rows).T)) if rows else {}


def _results(path: Path) -> dict[str, Any]:
    """An evaluation's json; empty while it is being written, or if it is something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}
