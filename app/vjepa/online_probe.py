"""Online probe: kNN and linear accuracy of the target encoder every few epochs, on a small labelled set.

It runs on rank 0, on features averaged over the tokens of a video's middle clip; the other processes wait in their next
step. Rows go to `<tag>-probe.csv`; the row of epoch 0 is the encoder before training. Training is not changed by it.
Legend: M videos, B batch, N tokens, D width.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from app.vjepa.config import PretrainConfig
from app.vjepa.utils import Run
from src.datasets.data_manager import Loader, init_data
from src.datasets.embedded.scenes import EMBEDDED
from src.datasets.transforms import EvalTransform, normalize
from src.probes.linear_knn import knn_probe, linear_probe
from src.probes.sample_list import SampleList, draw_subset, read_sample_list
from src.utils.csv_log import CSVLogger
from src.utils.errors import UserError
from src.utils.experiment_loggers import ExperimentLogger
from src.utils.logging import get_logger

logger = get_logger(__name__)

COLUMNS = (
    ("%d", "epoch"),
    ("%.4f", "knn"),
    ("%.4f", "linear"),
    ("%d", "train"),
    ("%d", "val"),
    ("%.1f", "seconds"),
)


class OnlineProbe:
    """Evaluates after every meta.eval_freq-th epoch, if lists are given; call `evaluate` where an epoch may have ended.

    Raises:
        UserError: a list is missing, malformed, or has one class only.
    """

    def __init__(
        self, args: PretrainConfig, run: Run, loggers: ExperimentLogger, resumed: bool, enabled: bool = True
    ) -> None:
        self.args, self.run, self.loggers = args, run, loggers
        self.every = args.meta.eval_freq if enabled and args.probe.train else None
        self.csv: CSVLogger | None = None
        if self.every is None:
            if enabled and args.meta.eval_freq:
                logger.info(f"meta.eval_freq={args.meta.eval_freq}: no probe, as probe.train and probe.val are not set")
            return
        train = self._samples("train")
        self.loaders = [self._loader(samples) for samples in (train, self._samples("val", train.classes))]
        path = probe_path(args)
        # A row is of the end of its epoch: those of epochs that are about to be taken again are dropped.
        resume_at = (run.step // run.steps_per_epoch + 1,) if resumed else None
        self.csv = CSVLogger(path, *COLUMNS, resume_at=resume_at)
        with path.open(newline="", encoding="utf-8") as file:
            self.done = {int(row["epoch"]) for row in csv.DictReader(file)}

    def _samples(self, split: str, classes: Sequence[str] | None = None) -> SampleList:
        """At most probe.max_samples videos of a list, always the same."""
        key = f"probe.{split}"
        samples = read_sample_list(getattr(self.args.probe, split), self._dataset_type(), key, classes)
        if split == "train" and len(np.unique(samples.labels)) < 2:
            raise UserError(f"{key}: {samples.source}: a probe needs videos of two classes at least")
        ids = draw_subset(samples, self.args.probe.max_samples, self.args.meta.seed)
        if len(ids) == len(samples):
            return samples
        name = f"{self.args.logging.write_tag}-probe-{split}-list.csv"
        return samples.subset(ids, self.args.output_folder() / name)

    def _dataset_type(self) -> str:
        """An embedded data set is written where it is absent, images are images, and shards have lists of videos."""
        kind = self.args.data.dataset_type
        return kind if kind in (*EMBEDDED, "ImageDataset") else "VideoDataset"

    def evaluate(self) -> bool:
        """Probe the target encoder and write a row, if an epoch has just ended that is due and has none yet.

        Returns whether it has. Call it after the checkpoint is written, and when a run goes on: what a kill has cut
        short is then made up for.
        """
        epoch, itr = divmod(self.run.step, self.run.steps_per_epoch)
        if self.every is None or self.csv is None or itr or epoch % self.every or epoch in self.done:
            return False
        started = time.perf_counter()
        (train_MD, labels_M), (val_MD, answers_M) = (self._features(loader) for loader in self.loaders)
        classes = int(max(labels_M.max(), answers_M.max())) + 1
        results = {
            "knn": knn_probe(train_MD, labels_M, val_MD, classes),
            "linear": linear_probe(train_MD, labels_M, val_MD),
        }
        accuracy = {name: float((result.predictions == answers_M).mean()) for name, result in results.items()}
        seconds = time.perf_counter() - started
        self.csv.log(epoch, *accuracy.values(), len(train_MD), len(val_MD), seconds)
        self.done.add(epoch)
        self.loggers.add_scalars({f"probe/{name}": value for name, value in accuracy.items()}, self.run.step)
        shown = ", ".join(f"{name} {100 * value:.1f} %" for name, value in accuracy.items())
        logger.info(f"probe after epoch {epoch}: {shown} of {len(val_MD)} videos ({seconds:.1f} s)")
        return True

    def _loader(self, samples: SampleList) -> Loader:
        """The middle clip of each video, cut to its central square."""
        data = self.args.data
        keys = ("batch_size", "num_frames", "sampling_rate", "clip_duration", "decoder", "num_workers", "pin_mem")
        return init_data(
            **{key: getattr(data, key) for key in keys},
            dataset_type="ImageDataset" if data.dataset_type == "ImageDataset" else "VideoDataset",
            datasets=[samples.source],
            classes=samples.classes,
            transform=EvalTransform(data.crop_size),
            random_clip_sampling=False,
            center_clips=True,
            max_skip_fraction=1.0,  # the columns say how many were read
            training=False,
        )

    @torch.no_grad()
    def _features(self, loader: Loader) -> tuple[np.ndarray, np.ndarray]:
        """Mean features (M, D) and labels (M,) of the videos that can be read."""
        encoder = self.run.target_encoder
        device, training = next(encoder.parameters()).device, encoder.training
        features, labels = [], []
        encoder.eval()
        for batch in loader:
            tokens_BND = encoder(normalize(batch.clips[0].to(device)))
            features.append(tokens_BND.float().mean(1).cpu().numpy())
            labels.append(batch.labels.numpy())
        encoder.train(training)
        loader.close()
        return np.concatenate(features), np.concatenate(labels)

    def close(self) -> None:
        """Write out what is still on its way."""
        if self.csv is not None:
            self.csv.close()


def probe_path(args: PretrainConfig) -> Path:
    """The csv of the accuracies."""
    return args.output_folder() / f"{args.logging.write_tag}-probe.csv"
