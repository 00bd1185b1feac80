"""The page: which parts there are, in which order, and the html around them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.resources import files

from jinja2 import Environment

from app.vjepa.run_status import Status, flat_keys
from src.config.yaml_io import dump_yaml
from src.utils.errors import UserError, one_line
from src.utils.logging import get_logger
from tools.report.curves import diagnostics_curves, training_curves
from tools.report.heat_maps import block_maps
from tools.report.masks_and_features import feature_picture, mask_pictures
from tools.report.page_parts import FoldedText, Heading, Note, Part, Section, Table
from tools.report.prediction_errors import error_maps, error_table
from tools.report.probes import probe_parts
from tools.report.run_folder import RunFolder
from tools.report.sample_predictions import SampleClips, SamplePredictions, draw_clips, predict_samples

logger = get_logger(__name__)


def build_page(runs: Sequence[RunFolder], clips: int | None = None) -> str:
    """The report of one run, or a comparison of several, as one html that needs nothing else.

    Args:
        clips: how many clips the model is run on; None: as many as take seconds.
    """
    logger.info("curves and evaluations")
    sections = [
        Section("Overview", parts=[overview(runs)]),
        Section("Training", "What the log of the steps says.", training_curves(runs)),
        Section(
            "Diagnostics",
            "Whether features stay varied and every part learns.",
            [*diagnostics_curves(runs), *_blocks(runs)],
        ),
        Section("Probes", "What a frozen encoder is good for, beside the same encoder untrained.", probe_parts(runs)),
        *sample_sections(runs, clips),
        Section("Configuration", parts=config_parts(runs)),
        Section("Environment", "Where each start of a run ran.", environment_parts(runs)),
    ]
    names = " beside ".join(run.name for run in runs)
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    )
    return template.render(title=names, runs=runs, sections=sections, made=time.strftime("%Y-%m-%d %H:%M"))


def overview(runs: Sequence[RunFolder]) -> Table:
    """What the runs are and how far, a column for each."""
    facts: dict[str, list[str]] = {}
    for run in runs:
        data, model = run.config.data, run.config.model
        side, T = data.crop_size // data.patch_size, data.num_frames // data.tubelet_size
        told = {
            "folder": str(run.folder),
            "state": _state(run.status),
            "loss": "–" if run.status.loss is None else f"{run.status.loss:.4f}, mean of the last 20 steps",
            "encoder": model.model_name,
            "predictor": f"{model.pred_model_name}, {model.pred_depth} blocks of {model.pred_embed_dim}",
            "data": f"{data.dataset_type}: {', '.join(data.datasets)}",
            "clip": f"{data.num_frames} frames of {data.crop_size} px, {T} x {side} x {side} tokens",
            "batch": f"{data.batch_size} clips a process, {run.config.optimization.accumulate_steps} accumulated",
            "masks": f"{data.mask_type}, {len(run.config.mask)} sets",
            "seed": str(run.config.meta.seed),
        }
        for key, value in told.items():
            facts.setdefault(key, []).append(value)
    return Table(["", *(run.name for run in runs)], [[key, *row] for key, row in facts.items()], numbers=False)


def _state(status: Status) -> str:
    step = "no step yet" if not status.step else f"{status.step} of {status.steps or 'unknown'} steps"
    words = {"stale": "not finished, and nothing is being written", "waiting": "not started"}
    return f"{words.get(status.state, status.state)}: {step}" + (f" ({status.reason})" if status.reason else "")


def _blocks(runs: Sequence[RunFolder]) -> list[Part]:
    maps = [(run, block_maps(run)) for run in runs]
    return [part for run, parts in maps if parts for part in (*_named(run, runs), *parts)]


def _named(run: RunFolder, runs: Sequence[RunFolder]) -> list[Part]:
    """The run's name as a heading, where there are several."""
    return [Heading(run.name, run.color)] if len(runs) > 1 else []


def sample_sections(runs: Sequence[RunFolder], clips: int | None) -> list[Section]:
    """What needs data or a checkpoint: masks, features, errors. What cannot be had says why."""
    masks = Section(
        "Masks", "What is shown to the encoder and what has to be predicted, on clips of the training data."
    )
    features = Section("Features", "What the target encoder, which the probes use, makes of the clips over time.")
    errors = Section("Prediction error", "Where the predictor is wrong, over space and time.")
    seen: list[tuple[RunFolder, SamplePredictions]] = []
    for run in runs:
        logger.info(f"{run.name}: clips and features")
        drawn: SampleClips | None = None
        try:
            drawn = draw_clips(run, clips)
            masks.parts.extend([*_named(run, runs), *mask_pictures(drawn, run.config.mask_dicts())])
        except UserError as error:
            masks.parts.append(Note(f"{run.name}: no clips to show: {one_line(error)}."))
        if drawn is None:
            features.parts.append(Note(f"{run.name}: no clips, so no features and no errors (see Masks)."))
            continue
        try:
            found = predict_samples(run, drawn)
        except UserError as error:
            features.parts.append(Note(f"{run.name}: no features and no errors: {one_line(error)}."))
            continue
        seen.append((run, found))
        features.parts.extend([*_named(run, runs), feature_picture(drawn, found)])
    if seen:
        errors.parts.extend([error_maps(seen), error_table(seen)])
    else:
        errors.parts.append(Note("No errors without clips and a checkpoint (see Features)."))
    return [masks, features, errors]


def config_parts(runs: Sequence[RunFolder]) -> list[Part]:
    """The keys in which the runs differ, then every key of each."""
    configs = [flat_keys(run.config.model_dump(mode="json")) for run in runs]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    differ = [key for key in keys if len({repr(config.get(key)) for config in configs}) > 1]
    parts: list[Part] = []
    if len(runs) > 1:
        rows = [[key, *(_value(config, key) for config in configs)] for key in differ]
        caption = f"The {len(differ)} keys in which the runs differ; {len(keys) - len(differ)} others are equal."
        parts.append(Table(["key", *(run.name for run in runs)], rows, caption, numbers=False))
    for run in runs:
        text = dump_yaml(run.config.model_dump(mode="json"))
        parts.append(FoldedText(f"Every key of {run.name}, defaults included", text))
    return parts


def _value(config: dict, key: str) -> str:
    return "–" if key not in config else "unset" if config[key] is None else str(config[key])


def environment_parts(runs: Sequence[RunFolder]) -> list[Part]:
    """Machine, versions and command of the last start of each run, and how many starts there were."""
    parts: list[Part] = []
    for run in runs:
        if not run.environment:
            parts.append(Note(f"{run.name}: its folder does not say where it ran."))
            continue
        last = run.environment[-1]
        facts = {**last, "packages": ", ".join(f"{name} {version}" for name, version in last["packages"].items())}
        rows = [[key, str(value)] for key, value in facts.items()]
        caption = "" if len(run.environment) == 1 else f"The last of {len(run.environment)} starts."
        parts += [*_named(run, runs), Table(["", ""], rows, caption, numbers=False)]
    return parts
