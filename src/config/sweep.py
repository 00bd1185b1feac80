"""A sweep file: many runs from one or more base files, each run with its own folder.

    base: configs/pretrain/vm_tiny.yaml     # or a list of files
    folder: runs/vm_tiny_lr                 # a run writes to a folder of its own name in here
    runs:                                   # named rows: what each sets, one factor at a time
      as_is: {}
      no_warmup: {optimization.warmup: 0}
    grid:                                   # and every combination of these
      meta.seed: [0, 1, 2]

docs/slurm.md has the rules.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, Field, field_validator

from src.config.fields import PathText
from src.config.loading import Section, from_dict, load_config, save_config
from src.config.schema import present_key
from src.config.yaml_io import dump_yaml, read_mapping, read_yaml, set_key
from src.utils.errors import UserError
from src.utils.logging import prepare_folder

RECORD = "sweep.yaml"
_LONGEST_NAME = 200  # file systems take 255 bytes, and files of a run may add the folder's name to theirs

Check = Callable[..., tuple[str, Section]]  # (raw, source, overridden) -> (name, config)
Row = Annotated[dict[str, Any], BeforeValidator(lambda value: {} if value is None else value)]


class SweepConfig(Section):
    """The keys of a sweep file."""

    base: str | list[str] = Field(..., description="config that every run starts from, or a list of them")
    folder: PathText | None = Field(None, min_length=1, description="holds the folders of the runs")
    runs: dict[str, Row] = Field(default_factory=dict, description="name -> keys that this run sets")
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(
        default_factory=dict, description="key -> values; every combination is a run"
    )

    @field_validator("base", mode="before")
    @classmethod
    def _base(cls, value: object) -> object:
        files = value if isinstance(value, list) else [value]
        if not files or not all(isinstance(file, str) and file for file in files):
            raise ValueError("name a config file, or a list of them")
        return value


class Planned(NamedTuple):
    """A run before its config is checked."""

    source: str  # for messages
    raw: dict[str, Any]
    label: str = ""  # within a sweep
    settings: Mapping[str, Any] = MappingProxyType({})  # what the sweep sets, by dotted key


def plan(path: str | Path, check: Check, folder_key: str) -> tuple[list[Planned], Path | None]:
    """The runs that a `--batch-launch` file stands for.

    Args:
        path: a YAML list of config files, or a sweep.
        check: makes a config of a mapping; a base file has to pass it as it is.
        folder_key: the key that says where a run writes.

    Returns:
        (runs, the folder that holds those of a sweep)

    Raises:
        UserError: one line that names the file, the run and the key.
    """
    raw = read_yaml(path)
    if isinstance(raw, list) and raw and all(isinstance(file, str) for file in raw):
        return [Planned(file, read_mapping(file)) for file in raw], None
    if not isinstance(raw, dict) or "base" not in raw:
        raise UserError(
            f"{path}: --batch-launch wants a YAML list of config files ('- configs/pretrain/vm_tiny.yaml') "
            "or a sweep (base, folder, grid)"
        )
    sweep = from_dict(raw, SweepConfig, str(path))
    folder = Path(sweep.folder) if sweep.folder else None
    return expand(sweep, str(path), check, folder_key), folder


def expand(sweep: SweepConfig, path: str, check: Check, folder_key: str) -> list[Planned]:
    """Every base with every row with every combination of the grid, in the order of the file.

    Raises:
        UserError: nothing to run, a key set twice, a name that no folder can have, or two runs of one name.
    """
    if not sweep.runs and not sweep.grid:
        raise UserError(f"{path}: there is nothing to run: give a grid (key: [values]) or runs (name: {{key: value}})")
    if folder_key in sweep.grid or any(folder_key in row for row in sweep.runs.values()):
        raise UserError(f"{path}: {folder_key} is made from `folder` and the run's name: set `folder`")
    short = _short_keys(list(sweep.grid))
    planned: dict[str, Planned] = {}
    for base in [sweep.base] if isinstance(sweep.base, str) else sweep.base:
        raw = read_mapping(base)
        _, config = check(copy.deepcopy(raw), base)
        _check_set_once(sweep, path, type(config))
        for row, values in itertools.product(sweep.runs or {"": {}}, itertools.product(*sweep.grid.values())):
            grid = dict(zip(sweep.grid, values))
            parts = [Path(base).stem] if isinstance(sweep.base, list) else []
            parts += [row] if row else []
            parts += [f"{short[key]}={_shown(value)}" for key, value in grid.items()]
            label = "-".join(parts)
            if not re.fullmatch(r"\w[\w.+=-]*", label, re.ASCII) or len(label) > _LONGEST_NAME:
                raise UserError(
                    f"{path}: run '{label[:60]}' is no name for a folder: name it under `runs`, in letters, digits and "
                    f". + = - _, {_LONGEST_NAME} at most"
                )
            settings = {**sweep.runs.get(row, {}), **grid}
            source = f"{path}: run {label}"
            mine = copy.deepcopy(raw)
            for key, value in settings.items():
                set_key(mine, key, copy.deepcopy(value), source)
            if sweep.folder:
                set_key(mine, folder_key, str(Path(sweep.folder) / label), source)
            other = planned.get(label.casefold())  # some file systems do not tell A from a
            if other is not None:
                raise UserError(f"{source}: its folder is that of run {other.label} too: name both under `runs`")
            planned[label.casefold()] = Planned(source, mine, label, settings)
    return list(planned.values())


def _check_set_once(sweep: SweepConfig, path: str, schema: type[Section]) -> None:
    """UserError where a row sets what the grid sets, under whichever name."""
    grid = {present_key(schema, key) for key in sweep.grid}
    for row, settings in sweep.runs.items():
        for key in settings:
            if present_key(schema, key) in grid:
                raise UserError(f"{path}: {key} is set by runs.{row} and by the grid: leave it in one of them")


def _short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Each dotted key by as few of its last parts as tell it from the others: `lr`, but `0.ratio` and `1.ratio`."""
    short = {}
    for key in keys:
        parts = key.split(".")
        endings = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        alone = [e for e in endings if not any(o != key and f".{o}".endswith(f".{e}") for o in keys)]
        short[key] = (alone or endings)[0]
    return short


def _shown(value: Any) -> str:
    """A value as YAML writes it, with only what every file system takes in a name: `0.0003`, `0.996_1.0`."""
    return re.sub(r"[^\w.+-]+", "_", dump_yaml(value).replace("\n...\n", ""), flags=re.ASCII).strip("_")


class RunRecord(Section):
    """What is known of one run of a sweep beside its own folder."""

    label: str
    folder: str
    settings: dict[str, Any]
    job: str | None = None  # the last one that had it
    logs: str | None = None


class SweepRecord(Section):
    """`sweep.yaml` in a sweep's folder: the runs it stands for, those that have not begun too, and their jobs."""

    file: str
    runs: list[RunRecord]


def read_record(folder: Path) -> SweepRecord | None:
    """The record in a folder, or None where no sweep was submitted to."""
    path = folder / RECORD
    return load_config(path, SweepRecord) if path.exists() else None


class Record:
    """Keeps a sweep's record while its runs are submitted. Runs of earlier submissions stay in it."""

    def __init__(self, folder: Path, file: str, runs: Sequence[tuple[Planned, Path]]) -> None:
        self.folder, self.file = folder, file
        self.runs = {
            run.label: RunRecord(label=run.label, folder=str(place), settings=dict(run.settings)) for run, place in runs
        }
        before = read_record(folder)
        for run in before.runs if before else []:
            mine = self.runs.setdefault(run.label, run)
            mine.job, mine.logs = run.job, run.logs

    def jobs(self) -> dict[str, str | None]:
        """The last job of each run."""
        return {label: run.job for label, run in self.runs.items()}

    def note(self, label: str, job: str, logs: Path) -> None:
        """Remember which job has a run now."""
        self.runs[label].job, self.runs[label].logs = job, str(logs)
        self.write()

    def write(self) -> None:
        """Write it to its folder. Raises UserError if that cannot be done."""
        prepare_folder(self.folder, "folder")
        save_config(SweepRecord(file=self.file, runs=list(self.runs.values())), self.folder / RECORD)
