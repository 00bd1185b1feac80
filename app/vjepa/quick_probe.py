"""What the features are good for, every few epochs: nearest neighbours and a linear classifier on a small labelled set.

On rank 0, on the target encoder's features, averaged over the tokens of a video's middle clip; the other processes wait
in their next step. Rows go to `<tag>-probe.csv`; that of epoch 0 is the encoder as it was drawn. Training goes on as if
nothing had been.
Legend: M videos, B batch, N tokens, D width.
"""

from __future__ import annotations

import csv
import time
from pathlib import Path

import numpy as np
import torch

from app.vjepa.config import PretrainConfig
from app.vjepa.utils import Run
from evals.judges import knn_probe, linear_probe
from evals.listing import Listing, draw_subset, read_listing
from src.datasets.data_manager import Loader, init_data
from src.datasets.motion import EMBEDDED
from src.datasets.transforms import EvalTransform, normalize
from src.utils.board import Board
from src.utils.csv_log import CSVLogger
from src.utils.errors import UserError
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


class QuickProbe:
    """Looks after every meta.eval_freq-th epoch, if lists are given; call `look` wherever an epoch may have ended.

    Raises:
        UserError: a list is missing, malformed, or has one class only.
    """

    def __init__(self, args: PretrainConfig, run: Run, board: Board, resumed: bool, enabled: bool = True) -> None:
        self.args, self.run, self.board = args, run, board
        self.every = args.meta.eval_freq if enabled and args.probe.train else None
        self.csv: CSVLogger | None = None
        if self.every is None:
            if enabled and args.meta.eval_freq:
                logger.info(f"meta.eval_freq={args.meta.eval_freq}: no probe, as probe.train and probe.val are not set")
            return
        self.loaders = [self._loader(self._listing(split)) for split in ("train", "val")]
        path = probe_path(args)
        # A row is of the end of its epoch: those of epochs that are about to be taken again are dropped.
        resume_at = (run.step // run.steps_per_epoch + 1,) if resumed else None
        self.csv = CSVLogger(path, *COLUMNS, resume_at=resume_at)
        with path.open(newline="", encoding="utf-8") as file:
            self.done = {int(row["epoch"]) for row in csv.DictReader(file)}

    def _listing(self, split: str) -> Listing:
        """At most probe.max_samples videos of a list, always the same."""
        key = f"probe.{split}"
        listing = read_listing(getattr(self.args.probe, split), self._dataset_type(), key)
        if split == "train" and len(np.unique(listing.labels)) < 2:
            raise UserError(f"{key}: {listing.source}: a probe needs videos of two classes at least")
        ids = draw_subset(listing, self.args.probe.max_samples, self.args.meta.seed)
        if len(ids) == len(listing):
            return listing
        name = f"{self.args.logging.write_tag}-probe-{split}-list.csv"
        return listing.subset(ids, self.args.output_folder() / name)

    def _dataset_type(self) -> str:
        """An embedded data set is written where it is absent; everything else is a list of videos."""
        return self.args.data.dataset_type if self.args.data.dataset_type in EMBEDDED else "VideoDataset"

    def look(self) -> bool:
        """Judge the target encoder and write a row, if an epoch has just ended whose turn it is and that has none.

        Returns whether it has. Call it after the checkpoint is written, and when a run goes on: what a kill has cut
        short is then made up for.
        """
        epoch, itr = divmod(self.run.step, self.run.steps_per_epoch)
        if self.every is None or self.csv is None or itr or epoch % self.every or epoch in self.done:
            return False
        started = time.perf_counter()
        (train_MD, labels_M), (val_MD, answers_M) = (self._features(loader) for loader in self.loaders)
        classes = int(max(labels_M.max(), answers_M.max())) + 1
        verdicts = {
            "knn": knn_probe(train_MD, labels_M, val_MD, classes),
            "linear": linear_probe(train_MD, labels_M, val_MD),
        }
        accuracy = {name: float((verdict.predictions == answers_M).mean()) for name, verdict in verdicts.items()}
        seconds = time.perf_counter() - started
        self.csv.log(epoch, *accuracy.values(), len(train_MD), len(val_MD), seconds)
        self.done.add(epoch)
        self.board.add_scalars({f"probe/{name}": value for name, value in accuracy.items()}, self.run.step)
        shown = ", ".join(f"{name} {100 * value:.1f} %" for name, value in accuracy.items())
        logger.info(f"probe after epoch {epoch}: {shown} of {len(val_MD)} videos ({seconds:.1f} s)")
        return True

    def _loader(self, listing: Listing) -> Loader:
        """The middle clip of each video, cut to its central square."""
        data = self.args.data
        keys = ("batch_size", "num_frames", "sampling_rate", "clip_duration", "decoder", "num_workers", "pin_mem")
        return init_data(
            **{key: getattr(data, key) for key in keys},
            datasets=[listing.source],
            transform=EvalTransform(data.crop_size),
            random_clip_sampling=False,
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
