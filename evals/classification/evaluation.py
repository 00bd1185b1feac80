"""One evaluation from config to table: encoders x probes, the same for videos and images.

What differs between the two, how samples are loaded and cut into views, comes in a `Task` from their eval.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np

from evals.classification import results
from evals.classification.feature_cache import CachedSource, FeatureTable, digest, list_digest, module_digest
from evals.classification.feature_extraction import ClipEncoder, LiveSource, cached_table
from evals.classification.frozen_encoder import ClipAggregation, LoadedEncoder, freeze, load_encoders
from evals.classification.inference import FeatureSource
from evals.classification.probe_trainer import ProbeOutcome, train_probe
from evals.classification.results import Score
from evals.classification.task import Task, probe_settings
from evals.config import ProbeConfig
from src.config.loading import check_ready, save_config
from src.datasets.dataset_types import PAIRED
from src.probes import linear_knn
from src.probes.sample_list import (
    SampleList,
    check_labels,
    describe_unseen,
    draw_subset,
    hold_out,
    read_sample_list,
    unseen_labels,
)
from src.utils.distributed import barrier, current, is_main
from src.utils.errors import UserError
from src.utils.logging import get_logger, prepare_folder, quiet_other_ranks

logger = get_logger(__name__)

Config = TypeVar("Config", bound=ProbeConfig)


class Evaluation:
    """State shared by the steps of one evaluation."""

    def __init__(self, cfg: ProbeConfig, task: Task, resume: bool) -> None:
        self.cfg, self.task, self.resume = cfg, task, resume
        self.process = current()
        quiet_other_ranks(self.process.rank)
        cfg.pretrain.require()  # before anything is written beside it
        self.name = cfg.tag or cfg.eval_name
        self.prefix = cfg.pretrain.write_tag  # of the files, as in V-JEPA
        self.folder = cfg.output_folder()
        self.train = self._samples(task.train, cfg.data.max_train_samples, "train")
        self.val = self._samples(task.val, cfg.data.max_val_samples, "val", self.train.classes)
        self._check_classes()

    def _check_classes(self) -> None:
        """Refuse classes that no training sample has; say it where it is a drawn subset that has none of them."""
        data = self.cfg.data
        if unseen := describe_unseen(self.train, self.val):
            if data.max_train_samples is None:
                raise UserError(f"{unseen}: no probe can be right on them: mend the lists")
            self.log(f"data.max_train_samples={data.max_train_samples}: {unseen}: no probe can be right on them")
        if (found := len(np.unique(self.train.labels))) < data.num_classes:
            self.log(f"data.num_classes={data.num_classes}, and the training samples are of {found} classes")

    def _samples(self, source: str, limit: int | None, split: str, classes: Sequence[str] | None = None) -> SampleList:
        task = self.task
        samples = read_sample_list(source, task.dataset_type, task.keys[split], classes, label_key=task.label_key)
        check_labels(samples, self.cfg.data.num_classes)
        prepare_folder(self.folder, "folder")
        if limit is None or limit >= len(samples):
            return samples
        return self._written_subset(samples, draw_subset(samples, limit, self.cfg.seed), f"{split}-samples")

    def _written_subset(self, samples: SampleList, ids: np.ndarray, name: str) -> SampleList:
        """All processes write the same list, each in one rename; none reads it before all have."""
        subset = samples.subset(ids, self.folder / f"{self.prefix}-{name}-r{self.process.rank}.csv")
        barrier()
        return subset

    def log(self, text: str) -> None:
        if is_main():
            logger.info(text)

    def run(self) -> dict[str, Any] | None:
        """Every encoder with every probe; the main process writes files, prints a table, returns the json."""
        started = time.monotonic()
        cfg = self.cfg
        if is_main():
            save_config(cfg, self.folder / f"{self.prefix}-config.yaml")
        prepare = self.task.tuning.prepare if self.task.tuning else freeze
        encoders = load_encoders(cfg.pretrain, cfg.seed, cfg.random_baseline, prepare)
        if "attentive" in cfg.probes:
            probe_settings(cfg, encoders["pretrained"])  # a mistake in it shows before the encoder runs for hours
        scores: list[Score] = []
        outcomes: dict[str, ProbeOutcome] = {}
        for name, loaded in encoders.items():
            self.log(f"{name}: {loaded.source}")
            model = ClipAggregation(
                loaded.encoder, loaded.encoder.tubelet_size, self.task.attend_across_segments, self.task.clip_positions
            ).to(self.process.device)
            model.eval()
            scores += self._evaluate(name, loaded, model, outcomes)
        if not is_main():
            return None
        return self._report(scores, outcomes, encoders, time.monotonic() - started)

    def _evaluate(
        self, name: str, loaded: LoadedEncoder, model: ClipAggregation, outcomes: dict[str, ProbeOutcome]
    ) -> list[Score]:
        """Scores of one encoder, in the order of cfg.probes."""
        cached = self.cfg.data.cache_features
        found: dict[str, Score] = {}
        pooled_probes = bool({"linear", "knn"} & set(self.cfg.probes))
        tables: tuple[FeatureTable, FeatureTable] | None = None
        if cached or pooled_probes:
            key = module_digest(loaded.encoder)
            pool = not cached
            tables = (
                self._table(name, "train", key, loaded, model, pool),
                self._table(name, "val", key, loaded, model, pool),
            )
        if pooled_probes and tables:
            found |= self._linear_and_knn(name, *tables)
        barrier()
        if "attentive" in self.cfg.probes:
            outcome = outcomes[name] = self._attentive(name, loaded, model, tables if cached else None)
            found["attentive"] = self._score(name, "attentive", outcome.ids, outcome.predictions, self._note(outcome))
        return [found[probe] for probe in dict.fromkeys(self.cfg.probes) if probe in found]

    def _score(self, row: str, probe: str, ids: np.ndarray, predictions: np.ndarray, note: str) -> Score:
        return Score(row, probe, self.val.labels[ids], predictions, note, {"missing": len(self.val) - len(ids)})

    def _note(self, outcome: ProbeOutcome) -> str:
        head = outcome.heads[outcome.best]
        if len(outcome.heads) == 1:
            return f"lr {head.lr:g}, wd {head.weight_decay:g}, last epoch"
        return (
            f"lr {head.lr:g}, wd {head.weight_decay:g}, last epoch, "
            f"best of {len(outcome.heads)} on held-out training samples"
        )

    def _encoder(self, model: ClipAggregation) -> ClipEncoder:
        return ClipEncoder(model, self.task.segments, self.process.device, self.cfg.optimization.use_bfloat16)

    def _key(self, weights: str, loaded: LoadedEncoder, model: ClipAggregation) -> dict[str, Any]:
        """Everything that features depend on, but for the list."""
        return {
            "weights": weights,
            "encoder": loaded.settings,
            "task": self.task.settings,
            "segments": [self.task.segments, self.task.attend_across_segments, self.task.clip_positions],
            "resolution": self.task.resolution,
            "bfloat16": self._encoder(model).autocast,
        }

    def _table(
        self, name: str, split: str, weights: str, loaded: LoadedEncoder, model: ClipAggregation, pool: bool
    ) -> FeatureTable:
        samples = self.train if split == "train" else self.val
        key = digest([self._key(weights, loaded, model), list_digest(samples.files, samples.labels), split, pool])
        return cached_table(
            self.folder / "features" / f"{self.prefix}-{name}-{split}{'-pooled' if pool else ''}",
            key,
            lambda: self.task.make_loader(samples, "plain" if split == "train" else "val", self.cfg.seed),
            lambda: self._encoder(model),
            pool,
            f"{name}, {split} features",
            self.log,
        )

    def _linear_and_knn(self, name: str, train: FeatureTable, val: FeatureTable) -> dict[str, Score]:
        """On mean-pooled features: the linear probe on the main process, kNN's queries shared out between all."""
        probes = [p for p in ("linear", "knn") if p in self.cfg.probes and (p == "knn" or is_main())]
        if not probes:
            return {}
        x, y, x_val = train.pooled(), train.labels_M[train.ids], val.pooled()
        found: dict[str, Score] = {}
        for probe in probes:
            if probe == "linear":
                result = linear_knn.linear_probe(x, y, x_val, self.cfg.seed)
            else:
                result = linear_knn.knn_probe(x, y, x_val, self.cfg.data.num_classes, seed=self.cfg.seed, shared=True)
            score = found[probe] = self._score(name, probe, val.ids, result.predictions, result.note)
            self.log(f"{name}, {probe}: val {100 * score.accuracy:.1f} % ({result.note})")
        return found

    def _attentive(
        self,
        name: str,
        loaded: LoadedEncoder,
        model: ClipAggregation,
        tables: tuple[FeatureTable, FeatureTable] | None,
    ) -> ProbeOutcome:
        settings = probe_settings(self.cfg, loaded, self.task.tuning)
        several = len(settings.grid) > 1
        if tables is not None:
            train, val = tables
            fit, held = train.ids, None
            if several:
                inner, outer = hold_out(train.labels_M[train.ids], self.cfg.seed)
                fit, held = train.ids[inner], train.ids[outer]
            sources: tuple[FeatureSource, FeatureSource | None, FeatureSource] = (
                self._cached(train, fit, True),
                None if held is None else self._cached(train, held, False),
                self._cached(val, val.ids, False),
            )
            key = digest([train.key, val.key])
        else:
            fit_list, held_list = self.train, None
            if several:
                inner, outer = hold_out(self.train.labels, self.cfg.seed)
                fit_list = self._written_subset(self.train, inner, "fit")
                held_list = self._written_subset(self.train, outer, "held-out")
            sources = (
                self._live(fit_list, "augment", model),
                None if held_list is None else self._live(held_list, "plain", model),
                self._live(self.val, "val", model),
            )
            lists = [list_digest(x.files, x.labels) for x in (self.train, self.val)]
            key = digest([self._key(module_digest(loaded.encoder), loaded, model), lists])
        prefix = self.prefix if name == "pretrained" else f"{self.prefix}-{name}"
        return train_probe(
            *sources,
            settings,
            device=self.process.device,
            checkpoint_path=self.folder / f"{prefix}-latest.pth.tar",
            csv_path=self.folder / f"{prefix}_r0.csv",
            features_key=key,
            resume=self.resume,
            is_main=is_main(),
            log=lambda text: self.log(f"{name}, attentive: {text}"),
            tuned=loaded if self.task.tuning else None,
        )

    def _cached(self, table: FeatureTable, ids: np.ndarray, shuffle: bool) -> CachedSource:
        rank, world_size, _ = self.process
        size, seed = self.cfg.optimization.batch_size, self.cfg.seed
        return CachedSource(table, ids, size, shuffle=shuffle, seed=seed, rank=rank, world_size=world_size)

    def _live(self, samples: SampleList, mode: str, model: ClipAggregation) -> LiveSource:
        loader = self.task.make_loader(samples, mode, self.cfg.seed)
        tune_seed = self.cfg.seed if self.task.tuning else None
        return LiveSource(loader, self._encoder(model), training=mode == "augment", tune_seed=tune_seed)

    def _report(
        self, scores: list[Score], outcomes: dict[str, ProbeOutcome], encoders: dict[str, LoadedEncoder], seconds: float
    ) -> dict[str, Any]:
        """Write csv, json and pictures, then print the table, last of all."""
        num_classes, probes = self.cfg.data.num_classes, list(dict.fromkeys(self.cfg.probes))
        chance = results.chance_level(scores[0].labels, num_classes)
        heads = {
            name: [{**asdict(head), "reported": i == outcome.best} for i, head in enumerate(outcome.heads)]
            for name, outcome in outcomes.items()
        }
        context = {
            "eval_name": self.cfg.eval_name,
            "tag": self.cfg.tag,
            "data": self.task.data_name or self.task.dataset_type,
            "encoders": {name: loaded.source for name, loaded in encoders.items()},
            "train": {"list": self.task.train, "samples": len(self.train)},
            "val": {
                "list": self.task.val,
                "samples": len(self.val),
                "labels_not_in_train": unseen_labels(self.train, self.val),
            },
            "seed": self.cfg.seed,
            "seconds": seconds,
            "chosen": "every choice (head, penalty, k) was made on training samples",
            "heads": heads,
        }
        paired = self.task.dataset_type in PAIRED
        written = results.write_files(self.folder, self.prefix, scores, chance, num_classes, context, paired)
        if any(len(rows) > 1 for rows in heads.values()):
            results.print_table(results.build_heads_table(heads))
        self.log(f"results are in {self.folder}")
        title = f"{self.name}: accuracy in % on {len(self.val)} samples of {num_classes} classes\n"
        title += "in brackets: 95 % interval (Wilson)\nevery choice was made on training samples"
        if not results.is_balanced(chance, scores[0].balanced_chance):
            title += "\nbalanced: mean of the classes' accuracies (normal interval)"
        if paired:
            title += "\ndirection: among samples whose scene is right"
        results.print_table(results.build_table(title, scores, probes, chance, paired))
        return written


def evaluate(cfg: Config, build_task: Callable[[Config], Task], resume_preempt: bool) -> dict[str, Any] | None:
    """Run an evaluation in this process; the main one returns what it wrote to the json.

    Raises:
        UserError: anything wrong with config, checkpoint or data.
    """
    check_ready(cfg, "config")
    return Evaluation(cfg, build_task(cfg), cfg.resume_checkpoint or resume_preempt).run()
