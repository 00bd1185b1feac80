"""Future prediction: is the feature predicted from the first frames nearest to that of the true future?

Legend: B clips, N candidates, F tubelets of the future.
"""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from evals.classification.results import print_table
from evals.config import FutureConfig
from evals.future_prediction.future_predictor import FuturePredictor, load_future_predictors
from evals.future_prediction.scoring import ALL, CANDIDATES, DISTRACTORS, Choice, choices, distances, make_candidates
from evals.future_prediction.strip import STRIP, save_strip
from src.config.loading import check_ready, save_config
from src.datasets.data_manager import Loader, init_data
from src.datasets.dataset_types import SHARDED
from src.datasets.transforms import EvalTransform, normalize
from src.masks.utils import generator
from src.probes.sample_list import SampleList, draw_subset, read_sample_list
from src.utils.distributed import barrier, current, gather_objects, is_main
from src.utils.errors import UserError
from src.utils.logging import get_logger, prepare_folder, quiet_other_ranks
from src.utils.progress import Progress

logger = get_logger(__name__)

SHOWN = 3  # clips in the picture


class Measured(NamedTuple):
    """Distances (B, N, F) of each model's predictions, and the first clips with their candidates for the picture."""

    distances: dict[str, np.ndarray]
    shown: dict[str, Tensor]


def main(args_eval: FutureConfig, resume_preempt: bool = False) -> dict[str, Any] | None:
    """Run the evaluation in this process; the main one returns what it wrote to the json.

    `resume_preempt` changes nothing: it takes minutes, and starts again.

    Raises:
        UserError: anything wrong with config, checkpoint or data.
    """
    check_ready(args_eval, "config")
    cfg, started = args_eval, time.monotonic()
    quiet_other_ranks(current().rank)
    models, trained_as, source = load_future_predictors(cfg.pretrain, cfg.context_tubelets)
    samples = _samples(cfg)
    if is_main():
        save_config(cfg, cfg.output_folder() / f"{cfg.pretrain.write_tag}-config.yaml")
        logger.info(f"pretrained: {source}")
    measured = measure(models, _loader(cfg, trained_as, samples), cfg.seed)
    parts = gather_objects(measured)
    if not is_main():
        return None
    found = {name: np.concatenate([part.distances[name] for part in parts]) for name in measured.distances}
    counted = len(found["pretrained"])
    if not counted:
        raise UserError(f"data.dataset_val: {samples.source}: fewer than two clips could be read: none has a rival")
    context = {
        "eval_name": cfg.eval_name,
        "tag": cfg.tag,
        "data": cfg.data.dataset_type,
        "checkpoint": source,
        "val": {"list": str(cfg.data.dataset_val), "samples": counted, "missing": len(samples) - counted},
        "context_tubelets": cfg.context_tubelets,
        "tubelets": cfg.context_tubelets + models["pretrained"].future_tubelets,
        "max_temporal_keep": [mask.get("max_temporal_keep") for mask in trained_as["mask"]],
        "seed": cfg.seed,
        "seconds": time.monotonic() - started,
    }
    results = write_files(cfg.output_folder(), cfg.pretrain.write_tag, found, context)
    save_strip(cfg.output_folder() / STRIP, *to_show(parts), models["pretrained"].context_frames)
    logger.info(f"results are in {cfg.output_folder()}")
    title = f"{cfg.tag or cfg.eval_name}: how often the true future is the nearest, in % of {counted} clips\n"
    title += f"{cfg.context_tubelets} of {context['tubelets']} tubelets are seen; in brackets: 95 % interval (Wilson)"
    print_table(build_table(title, [choice for name in found for choice in choices(name, found[name])]))
    return results


def to_show(parts: Sequence[Measured]) -> tuple[dict[str, Tensor], np.ndarray]:
    """The first clips that any process could read, with their candidates, and the distances (B, N, F) to those."""
    part = next(part for part in parts if part.shown)
    return part.shown, part.distances["pretrained"][: len(part.shown["true"])]


def _samples(cfg: FutureConfig) -> SampleList:
    """The clips to evaluate on, all or some; every process has a list of its own with the same content."""
    samples = read_sample_list(str(cfg.data.dataset_val), cfg.data.dataset_type, "data.dataset_val", labelled=False)
    prepare_folder(cfg.output_folder(), "folder")
    if cfg.data.max_val_samples is not None and cfg.data.max_val_samples < len(samples):
        ids = draw_subset(samples, cfg.data.max_val_samples, cfg.seed)
        name = f"{cfg.pretrain.write_tag}-val-samples-r{current().rank}.csv"
        samples = samples.subset(ids, cfg.output_folder() / name)
        barrier()
    if len(samples) < 2 * current().world_size:
        raise UserError(f"data.dataset_val: {samples.source} has {len(samples)} clips: each process needs two or more")
    return samples


def _loader(cfg: FutureConfig, trained_as: dict[str, Any], samples: SampleList) -> Loader:
    """Clips as the model knows them, in batches of equal size as far as that goes: their statistics are alike then."""
    data, (rank, world_size, device) = trained_as["data"], current()
    own = math.ceil(len(samples) / world_size)
    return init_data(
        dataset_type="WebVideoDataset" if cfg.data.dataset_type in SHARDED else "VideoDataset",
        datasets=[samples.source],
        batch_size=math.ceil(own / math.ceil(own / cfg.data.batch_size)),
        transform=EvalTransform(data["crop_size"]),
        num_frames=data["num_frames"],
        sampling_rate=cfg.data.frame_step or data["sampling_rate"],
        clip_duration=None if cfg.data.frame_step else data["clip_duration"],
        random_clip_sampling=False,
        decoder=cfg.data.decoder,
        max_skip_fraction=cfg.data.max_skip_fraction,
        num_workers=cfg.data.num_workers,
        pin_mem=cfg.data.pin_mem and device.type == "cuda",
        rank=rank,
        world_size=world_size,
        seed=cfg.seed,
        training=False,
        folder=cfg.output_folder(),
        labelled=False,
    )


@torch.no_grad()
def measure(models: dict[str, FuturePredictor], loader: Loader, seed: int) -> Measured:
    """Distances of what 'pretrained', 'copy last', 'mean' and 'random' say, on this process's share of the clips.

    A batch of one clip, in which there is no other and nothing to normalise by, is left out.
    """
    rank, world_size, device = current()
    found: dict[str, list[Tensor]] = {"pretrained": [], "copy last": [], "mean": [], "random": []}
    shown: dict[str, Tensor] = {}
    for model in models.values():
        model.to(device)
    with Progress(len(loader), what="futures", enabled=is_main()) as progress:
        for batch in progress.waiting_for(loader):
            clips = batch.clips[0]
            if len(clips) < 2:
                continue
            frames = models["pretrained"].context_frames
            candidates = make_candidates(clips, frames, generator(seed, rank, batch.step))
            shown = shown or {name: clips[:SHOWN].clone() for name, clips in candidates.items()}
            inputs = {name: normalize(clips.to(device)) for name, clips in candidates.items()}
            for name, model in models.items():
                targets = model.targets(inputs)
                predictions = {name: model.predict(inputs["true"])}
                if name == "pretrained":
                    predictions["copy last"] = model.copy_last(inputs["true"])
                    predictions["mean"] = mean_of_others(targets["true"])
                for row, prediction in predictions.items():
                    found[row].append(distances(prediction, targets, model.future_tubelets).cpu())
            progress.advance(len(clips) * world_size)
    shape = (0, len(CANDIDATES), models["pretrained"].future_tubelets)
    return Measured({name: torch.cat([torch.empty(shape), *x]).numpy() for name, x in found.items()}, shown)


def mean_of_others(targets_BMD: Tensor) -> Tensor:
    """The blind baseline: the mean of the other clips' targets at each place, (B, M, D)."""
    return (targets_BMD.sum(0) - targets_BMD) / (len(targets_BMD) - 1)


def write_files(folder: Path, prefix: str, found: dict[str, np.ndarray], context: dict[str, Any]) -> dict[str, Any]:
    """Write `<prefix>-results.json` and `-results.csv`; return the json's content. `found`: distances (B, N, F)."""
    rows = []
    for choice in (choice for name, x in found.items() for choice in choices(name, x)):
        low, high = choice.interval
        rows.append({**choice._asdict(), "accuracy": choice.accuracy, "ci95_low": low, "ci95_high": high})
    means = [
        {"model": name, "candidate": candidate, "tubelet": f + 1, "distance": float(x[:, n, f].mean())}
        for name, x in found.items()
        for n, candidate in enumerate(CANDIDATES)
        for f in range(x.shape[2])
    ]
    payload = {**context, "choices": rows, "distances": means}
    (folder / f"{prefix}-results.json").write_text(json.dumps(payload, indent=1) + "\n", encoding="utf-8")
    with (folder / f"{prefix}-results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return payload


def build_table(title: str, found: Sequence[Choice]) -> Table:
    """Rows: models, over the whole future and then each tubelet of it (+1, ...); chance. Columns: distractors; all."""
    table = Table(title=title)
    table.add_column("prediction", no_wrap=True)
    for against in (*DISTRACTORS, ALL):
        table.add_column(against if against == ALL else f"or {against}", justify="right", no_wrap=True)
    for model, tubelet in dict.fromkeys((choice.model, choice.tubelet) for choice in found):
        cells = [c for c in found if (c.model, c.tubelet) == (model, tubelet)]
        texts = [f"{100 * c.accuracy:.1f} \\[{100 * c.interval[0]:.1f}, {100 * c.interval[1]:.1f}]" for c in cells]
        table.add_row(model if tubelet is None else f"{model} +{tubelet}", *texts)
    chances = {choice.against: choice.chance for choice in found}
    table.add_row("chance", *(f"{100 * chances[against]:.1f}" for against in (*DISTRACTORS, ALL)))
    return table
