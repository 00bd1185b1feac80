"""Experiment loggers: TensorBoard, where it is installed, and Weights & Biases, where it is asked for."""

from __future__ import annotations

import importlib.util
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from src.utils.errors import UserError, one_line

_FLUSH_S = 10  # what a kill may take from TensorBoard's file


class _Writer(Protocol):
    """What every logger can do."""

    def add_scalars(self, values: Mapping[str, float], step: int) -> None: ...
    def add_image(self, name: str, pixels_HWC: np.ndarray, step: int) -> None: ...
    def close(self) -> None: ...


class ExperimentLogger:
    """Hands scalars and images on to every logger there is; use as a context manager.

    Args:
        folder: of the run. TensorBoard's files go to `tensorboard/` in it, wandb's to `wandb/`.
        start: step at which the run begins; what TensorBoard has of later steps is about to come again.
        wandb: project to log to; None: not there. WANDB_MODE=offline works without network or account.
        enabled: False, on every rank but 0, writes nowhere.

    Raises:
        UserError: wandb is asked for and is not installed, or cannot start.
    """

    def __init__(self, folder: Path, start: int = 0, wandb: str | None = None, enabled: bool = True) -> None:
        self._writers: list[_Writer] = []
        if enabled and importlib.util.find_spec("tensorboard") is not None:
            self._writers.append(TensorBoardLogger(folder, start))
        if enabled and wandb is not None:
            self._writers.append(WandbLogger(folder, wandb))

    def __enter__(self) -> ExperimentLogger:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers:
            writer.close()

    @property
    def active(self) -> bool:
        """Whether any logger is there, so that images need not be drawn for none."""
        return bool(self._writers)

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Scalars by name, `group/name`, at `step`."""
        for writer in self._writers:
            writer.add_scalars(values, step)

    def add_image(self, name: str, pixels_HWC: np.ndarray, step: int) -> None:
        """An image, uint8 (H, W, 3)."""
        for writer in self._writers:
            writer.add_image(name, pixels_HWC, step)


class TensorBoardLogger:
    """Scalars and images as TensorBoard's event files."""

    def __init__(self, folder: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start, flush_secs=_FLUSH_S)

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def add_image(self, name: str, pixels_HWC: np.ndarray, step: int) -> None:
        self._writer.add_image(name, pixels_HWC, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class WandbLogger:
    """Scalars and images to a Weights & Biases project."""

    def __init__(self, folder: Path, project: str) -> None:
        try:
            import wandb
        except ModuleNotFoundError:
            raise UserError(
                f"logging.wandb={project}: wandb is not installed: pip install wandb, or set logging.wandb=null"
            ) from None
        identity = folder / "wandb-id.txt"  # a run that goes on is one run there too
        if not identity.exists():
            identity.write_text(uuid.uuid4().hex[:8])
        try:
            self._run = wandb.init(
                project=project,
                name=folder.name,
                id=identity.read_text(),
                dir=str(folder),
                resume="allow",
                settings=wandb.Settings(console="off"),  # the terminal is the progress display's
            )
        except wandb.Error as error:
            raise UserError(
                f"logging.wandb={project}: {one_line(error)}; WANDB_MODE=offline needs neither account nor network"
            ) from None
        self._image = wandb.Image
        # wandb's own step must not go back, but numbers of steps are read some steps later.
        self._run.define_metric("*", step_metric="step")

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, "step": step})

    def add_image(self, name: str, pixels_HWC: np.ndarray, step: int) -> None:
        self._run.log({name: self._image(pixels_HWC), "step": step})

    def close(self) -> None:
        self._run.finish()
