"""`python -m tools.study SWEEP --probe EVAL`: run a sweep, probe every run, and gather what came out in one csv.

Training is `app.main` and probing `evals.main`, one run after the other; what is finished is not done again, so the
same command goes on after an interruption. On a cluster, submit the sweep first (docs/slurm.md): this then only probes.
The csv has a row for each run and encoder (pretrained, random) with the accuracy of each probe; a second one,
NAME-diagnostics.csv, has the diagnostics of the runs over their steps. `python -m tools.study.page` makes tables and
plots of both.
"""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app import scaffold
from app.vjepa.config import DataConfig
from app.vjepa.diagnostics import RENAMED_COLUMNS
from app.vjepa.run_status import read_status
from evals import scaffold as eval_scaffold
from evals.config import VideoProbeConfig
from evals.config_sections import VideoDataConfig
from src.config.sweep import Planned, plan
from src.config.yaml_io import apply_overrides, dump_yaml, read_mapping
from src.datasets.embedded.scenes import classes_of
from src.launch.cli import Parser
from src.utils.csv_log import write_csv
from src.utils.errors import EXIT_INTERRUPTED, UserError, run_cli
from src.utils.logging import get_logger
from src.utils.paths import path_argument
from tools.study.records import COLUMNS, DIAGNOSTICS, DIAGNOSTICS_COLUMNS, diagnostics_path

logger = get_logger(__name__)


def main() -> int:
    """The command line. Returns the exit code."""
    parser = Parser("tools.study", "Run a sweep, probe every run, gather the results in one csv.")
    parser.usage = "%(prog)s SWEEP --probe EVAL [options] [key=value ...]"
    parser.epilog = (
        "key=value sets a key in every run, as data.crop_size=112. Probes take their clips' sizes from the run; those "
        "on an embedded set are on the run's own where it has the same classes. The same command again goes on where "
        "it was stopped."
    )
    parser.add_argument("sweep", metavar="SWEEP", help="sweep file, as configs/sweeps/why_it_failed.yaml")
    parser.add_argument("--probe", metavar="EVAL", required=True, help="YAML of the evaluation, for every run")
    parser.add_argument(
        "--out",
        metavar="CSV",
        type=path_argument,
        help="default, of the sweep as it stands: docs/results/NAME-OF-THE-SWEEP.csv",
    )
    parser.add_argument("--only", metavar="ROW", nargs="+", help="rows of the sweep to run (default: all)")
    parser.add_argument("--folder", type=path_argument, help="holds the folders of the runs (default: the sweep's)")
    parser.add_argument("--dry-run", action="store_true", help="check and list the runs, do nothing")
    args = parser.parse(None)
    out = args.out or Path("docs/results") / f"{Path(args.sweep).stem}.csv"
    own = bool(args.overrides or args.folder)  # the csv of the sweep as it stands is not this call's to write
    if own and not (args.out or args.dry_run):
        raise UserError(f"command line: --out: key=value and --folder make other runs than {out} is of: name a csv")
    evaluation_of(args.probe)
    planned, _ = plan(args.sweep, scaffold.check, "logging.folder")
    for run in planned:
        apply_overrides(run.raw, args.overrides)
        if args.folder:
            run.raw["logging"]["folder"] = str(args.folder / run.label)
    if not planned[0].label:
        raise UserError(f"{args.sweep}: a list of configs is no sweep: give base, folder, and runs or grid")
    rows = {_row_of(run) for run in planned}
    for row in args.only or []:
        if row not in rows:
            raise UserError(f"command line: --only: {args.sweep} has no row '{row}'; rows: {', '.join(sorted(rows))}")
    for path, columns in ((out, COLUMNS[:4]), (diagnostics_path(out), DIAGNOSTICS_COLUMNS)):
        if path.exists() and not path.read_text(encoding="utf-8").startswith(",".join(columns)):
            raise UserError(f"command line: --out: {path} is another csv: give another name")
    chosen = [run for run in planned if args.only is None or _row_of(run) in args.only]
    if args.dry_run:
        for run in chosen:
            _, config = scaffold.check(run.raw, run.source)
            print(f"{run.label}  {'trained' if config.finished() else 'to do'}  {config.output_folder()}")
        return 0
    for number, run in enumerate(chosen, start=1):
        logger.info(f"{run.label} ({number} of {len(chosen)})")
        if train(run):
            probe(run, args.probe)
        gather(planned, args.probe, out, keep=not own)
    failed = [run.label for run in chosen if results_of(run, args.probe) is None]
    print(f"{out}: {len(chosen)} runs" + (f"; without results: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def train(run: Planned) -> bool:
    """Pretrain a run in a process of its own, unless it is finished. Returns whether it is; if not, stderr says why."""
    _, config = scaffold.check(run.raw, run.source)
    if config.finished():
        return True
    folder = config.output_folder()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.yaml"
    raw = run.raw | {"meta": run.raw.get("meta", {}) | {"load_checkpoint": True}}
    path.write_text(dump_yaml(raw), encoding="utf-8")
    return _call("app.main", "--fname", str(path))


def probe(run: Planned, eval_file: str) -> bool:
    """Probe a run's encoder on clips as it knows them, unless its results are there. Returns whether they are."""
    if results_of(run, eval_file) is not None:
        return True
    _, config = scaffold.check(run.raw, run.source)
    model, data = config.model, config.data
    keys = {
        "pretrain.folder": config.output_folder(),
        "pretrain.model_name": model.model_name,
        "pretrain.frames_per_clip": data.num_frames,
        "pretrain.tubelet_size": data.tubelet_size,
        "pretrain.patch_size": data.patch_size,
        "pretrain.uniform_power": str(model.uniform_power).lower(),
        "data.frames_per_clip": data.num_frames,
        "data.frame_step": data.sampling_rate,
        "optimization.resolution": data.crop_size,
    } | own_set(data, evaluation_of(eval_file).data)
    return _call("evals.main", "--fname", eval_file, *(f"{key}={value}" for key, value in keys.items()))


def evaluation_of(eval_file: str) -> VideoProbeConfig:
    """The config of the evaluation of the runs. Raises UserError if it is no frozen probe of videos."""
    name, evaluation = eval_scaffold.load(eval_file)
    if name != "video_classification_frozen" or not isinstance(evaluation, VideoProbeConfig):
        raise UserError(f"{eval_file}: eval_name {name}: a study evaluates by video_classification_frozen")
    return evaluation


def own_set(trained_on: DataConfig, probed_on: VideoDataConfig) -> dict[str, Any]:
    """Keys that put an evaluation on the embedded set of a run, where that is another one of the same classes."""
    kind, other = trained_on.dataset_type, probed_on.dataset_type
    if kind == other or not classes_of(kind) or classes_of(kind) != classes_of(other):
        return {}
    root = Path(trained_on.datasets[0]).parent
    lists = {"data.dataset_train": probed_on.dataset_train, "data.dataset_val": probed_on.dataset_val}
    return {"data.dataset_type": kind} | {key: root / Path(path).name for key, path in lists.items() if path}


def _call(*command: str) -> bool:
    """Run one of our commands. Ctrl-C and a run that was asked to stop end the study; a run that fails does not."""
    code = subprocess.run([sys.executable, "-m", *command], check=False).returncode
    if code >= EXIT_INTERRUPTED - 2 or code < 0:  # 128 and more: signals
        raise SystemExit(code if code > 0 else 128 - code)
    return code == 0


def results_of(run: Planned, eval_file: str) -> dict[str, Any] | None:
    """What the evaluation of a run wrote, or None."""
    evaluation = read_mapping(eval_file)
    tag = str(evaluation.get("tag") or "")
    found = sorted(Path(run.raw["logging"]["folder"], evaluation["eval_name"], tag).glob("*-results.json"))
    return json.loads(found[0].read_text(encoding="utf-8")) if found else None


def gather(planned: Sequence[Planned], eval_file: str, out: Path, keep: bool = True) -> None:
    """Write the csv of all runs that have begun, and beside it that of their diagnostics.

    With `keep`, what the files already say of runs of the sweep that were made on another machine, and have no results
    here, stays in them. A run is known by its name alone, which does not tell of keys for all runs (with those, nothing
    is kept), nor of what has changed in the sweep, its bases or the evaluation since: after such a change, begin a new
    csv.
    """
    known, known_diagnostics = (_by_run(out), _by_run(_written_diagnostics(out))) if keep else ({}, {})
    rows: list[dict[str, Any]] = []
    diagnostics_rows: list[dict[str, Any]] = []
    for run in planned:
        status = read_status(Path(run.raw["logging"]["folder"]))
        found = results_of(run, eval_file)
        probed = any(line["encoder"] != "none" for line in known.get(run.label, []))
        if not status.step or (probed and found is None):
            rows += known.get(run.label, [])
            diagnostics_rows += known_diagnostics.get(run.label, [])
            continue
        what = {"run": run.label, "row": _row_of(run), "seed": run.raw.get("meta", {}).get("seed", 0)}
        diagnostics = diagnostics_of(run)
        for step, values in diagnostics:
            diagnostics_rows.append(what | {"step": step} | {name: values.get(name, "") for name in DIAGNOSTICS})
        what |= {"model": run.raw["model"]["model_name"], "steps": status.step}
        what |= {"loss": "" if status.loss is None else f"{status.loss:.5f}"}
        what |= {name: diagnostics[-1][1].get(name, "") for name in DIAGNOSTICS if diagnostics}
        rows += [what | scores for scores in _scores(found)]
    probes = dict.fromkeys(name for row in rows for name in row if name not in COLUMNS)
    out.parent.mkdir(parents=True, exist_ok=True)
    tables = (
        (out, [*COLUMNS, *probes], rows),
        (diagnostics_path(out), [*DIAGNOSTICS_COLUMNS], diagnostics_rows),
    )
    for path, columns, lines in tables:
        write_csv(path, columns, [[line.get(name, "") for name in columns] for line in lines])


def _scores(found: dict[str, Any] | None) -> list[dict[str, str]]:
    """Each encoder that was probed and its accuracy by probe; for a run without results one row that says so."""
    if found is None or not found["scores"]:
        return [{"encoder": "none"}]
    encoders: dict[str, dict[str, str]] = {}
    for score in found["scores"]:
        encoder = encoders.setdefault(score["row"], {"encoder": score["row"], "chance": f"{found['chance']:.4f}"})
        encoder[score["probe"]] = f"{score['accuracy']:.4f}"
    return [*encoders.values()]


def _written_diagnostics(out: Path) -> Path:
    """The csv of diagnostics that there is: an earlier version called it NAME-health.csv."""
    now, before = diagnostics_path(out), out.with_name(f"{out.stem}-health.csv")
    return before if before.exists() and not now.exists() else now


def _by_run(path: Path) -> dict[str, list[dict[str, str]]]:
    """The lines of a csv of a study by their run, under the names of this version; none if it is not there."""
    lines: dict[str, list[dict[str, str]]] = {}
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                line = {RENAMED_COLUMNS.get(name, name): value for name, value in line.items()}
                lines.setdefault(line["run"], []).append(line)
    return lines


def diagnostics_of(run: Planned) -> list[tuple[int, dict[str, str]]]:
    """(step, row) of a run's diagnostics; empty where there are none."""
    logging = run.raw["logging"]
    path = Path(logging["folder"]) / f"{logging.get('write_tag', 'jepa')}-diagnostics.csv"
    if not path.exists():
        return []
    status = read_status(Path(logging["folder"]))
    per_epoch = status.steps // status.epochs if status.steps and status.epochs else 0
    with path.open(newline="", encoding="utf-8") as file:
        rows = [{RENAMED_COLUMNS.get(name, name): value for name, value in row.items()} for row in csv.DictReader(file)]
    return [(int(row["epoch"]) * per_epoch + int(row["itr"]), row) for row in rows]


def _row_of(run: Planned) -> str:
    """What a run has in common with those of other seeds: its name without the seed."""
    return re.sub(r"-?\bseed=\d+", "", run.label) or run.label


if __name__ == "__main__":
    run_cli(main)
