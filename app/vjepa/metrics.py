"""Metrics of the training steps, to the csv and the experiment loggers."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch

from app.vjepa.config import PretrainConfig
from app.vjepa.skipped_steps import count_skipped_step
from app.vjepa.utils import Run, Schedule
from src.datasets.batch import Batch
from src.utils.csv_log import CSVLogger
from src.utils.distributed import all_reduce_mean
from src.utils.experiment_loggers import ExperimentLogger
from src.utils.progress import Progress

COLUMNS = (
    ("%d", "epoch"),
    ("%d", "itr"),
    ("%.5f", "loss"),
    ("%.5f", "loss-jepa"),
    ("%.5f", "reg-loss"),
    ("%.3e", "enc-grad-norm"),
    ("%.3e", "pred-grad-norm"),
    ("%.3e", "lr"),
    ("%.3e", "weight-decay"),
    ("%.5f", "ema"),
    ("%d", "data-time(ms)"),
    ("%d", "wall-time(ms)"),
)


class PendingStep(NamedTuple):
    """A step whose metrics, (7,), are still on the device; its schedule values, and the files it read."""

    metrics: torch.Tensor
    now: Schedule
    paths: list[str]


class MetricLogger:
    """Keeps the metrics of steps on the device until `flush`, which writes a row for each.

    On a GPU reading a number waits for the device, so several steps are read together.

    Args:
        loggers: get the metrics of every logging.log_every-th step.
        resumed: go on with the csv that is there.
        enabled: False, on every rank but 0, writes nothing.
    """

    def __init__(
        self, args: PretrainConfig, run: Run, loggers: ExperimentLogger, resumed: bool, enabled: bool = True
    ) -> None:
        self.args, self.run, self.loggers = args, run, loggers
        self.pending: list[PendingStep] = []
        self.start, self.waited = time.perf_counter(), 0.0
        self.csv: CSVLogger | None = None
        if enabled:
            path = args.output_folder() / f"{args.logging.write_tag}_r0.csv"
            resume_at = divmod(run.step, run.steps_per_epoch) if resumed else None
            self.csv = CSVLogger(path, *COLUMNS, resume_at=resume_at)

    def restart(self, progress: Progress) -> None:
        """Time the next steps from here on."""
        self.start, self.waited = time.perf_counter(), progress.waited

    def append(self, metrics: torch.Tensor, now: Schedule, group: list[Batch]) -> None:
        """Keep what `train_step` returned until the next `flush`."""
        self.pending.append(PendingStep(metrics, now, [path for batch in group for path in batch.paths]))

    def flush(self, progress: Progress) -> float:
        """Write the rows of the pending steps, averaged over processes. Returns the last one's loss.

        A step that was skipped has a row too, whose gradient norms say why. Raises UserError as
        `count_skipped_step` does.
        """
        pending, self.pending = self.pending, []
        own = torch.stack([step.metrics for step in pending])
        rows, own_losses = all_reduce_mean(own).tolist(), own[:, 0].tolist()
        times = [1000 * t / len(rows) for t in (progress.waited - self.waited, time.perf_counter() - self.start)]
        for i, row in enumerate(rows):
            step = self.run.step - len(rows) + i
            epoch, itr = divmod(step, self.run.steps_per_epoch)
            values = (*row[:5], *pending[i].now, *times)
            if self.csv is not None:
                self.csv.log(epoch, itr, *values)
            if step % self.args.logging.log_every == 0:
                shown = {f"train/{name}": value for (_, name), value in zip(COLUMNS[2:], values, strict=True)}
                self.loggers.add_scalars(
                    shown | {"train/clips-per-s": 1000 * self.run.samples_per_step / times[1]}, step
                )
            count_skipped_step(self.args, self.run, step, row, own_losses[i], pending[i].paths)
        self.restart(progress)
        return rows[-1][0]

    def close(self) -> None:
        """Write out what is still on its way."""
        if self.csv is not None:
            self.csv.close()
