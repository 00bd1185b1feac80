"""A probe's settings, and what its training leaves on disk and in the log."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch

from evals.classification.finetuning import Tuning
from evals.classification.frozen_encoder import LoadedEncoder
from src.probes.attentive_heads import HeadGrid
from src.utils import checkpoint
from src.utils.distributed import current

# What keys of the history were called in earlier versions.
_RENAMED = {"select": "inner_val", "select_loss": "inner_val_loss"}


@dataclass(frozen=True)
class ProbeSettings:
    """What the probe is and how it is trained.

    `start_lr` and `final_lr` belong to the first learning rate and scale with the others; `warmup` and `num_epochs`
    count epochs; `val_every` says how often, in epochs, the validation list is measured (it always is after the
    last); `tuning` is there where the encoder trains along.
    """

    embed_dim: int
    num_heads: int
    num_classes: int
    num_epochs: int
    lrs: tuple[float, ...] = (1e-3,)
    weight_decays: tuple[float, ...] = (0.01,)
    start_lr: float = 1e-3
    final_lr: float = 0.0
    warmup: float = 0.0
    use_bfloat16: bool = False
    seed: int = 0
    val_every: int = 1
    tuning: Tuning | None = None

    @property
    def grid(self) -> list[tuple[float, float]]:
        """(learning rate, weight decay) of each head."""
        return list(product(self.lrs, self.weight_decays))


@dataclass
class TrainingPosition:
    """How far training is: finished epochs; in the one under way steps, samples and, for each head, sums over those.

    `sums` are the losses of all heads and then their right answers, over all processes.
    """

    epoch: int = 0
    step: int = 0
    count: int = 0
    sums: list[float] = field(default_factory=list)

    def means(self) -> tuple[list[float], list[float]]:
        """Loss and accuracy of each head in the epoch under way."""
        means, heads = [x / self.count for x in self.sums], len(self.sums) // 2
        return means[:heads], means[heads:]


def choose_head(inner_val_losses: list[float] | None, inner_val_accuracies: list[float] | None) -> int:
    """The head with the highest accuracy on the held-out samples, among equals the one with the lower loss."""
    if inner_val_losses is None or inner_val_accuracies is None:
        return 0
    order = sorted(
        range(len(inner_val_losses)), key=lambda i: (-inner_val_accuracies[i], _rank_loss(inner_val_losses[i]))
    )
    return order[0]


def _rank_loss(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf


def line(row: dict[str, Any], settings: ProbeSettings, seconds: float) -> str:
    """One line for the log; with several heads, the metrics of the head that leads on the held-out samples."""
    i = choose_head(row.get("inner_val_loss"), row["inner_val"])
    lr, wd = settings.grid[i]
    text = f"epoch {row['epoch']}/{settings.num_epochs}  loss {row['loss'][i]:.3f}  train {100 * row['train'][i]:.1f} %"
    for name, key in (("inner val", "inner_val"), ("val", "val")):
        if row[key] is not None:
            text += f"  {name} {100 * row[key][i]:.1f} %"
    return text + (f"  (lr {lr:g}, wd {wd:g})" if len(settings.grid) > 1 else "") + f"  {seconds:.1f} s"


def write_csv(path: Path, history: list[dict[str, Any]], settings: ProbeSettings) -> None:
    """Rewritten whole after each epoch, so that resuming neither repeats nor loses a line."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", "lr", "weight_decay", "loss", "train_acc", "inner_val_acc", "val_acc"])
        for row in history:
            for i, (lr, wd) in enumerate(settings.grid):
                metrics = [row[k][i] if row[k] is not None else "" for k in ("loss", "train", "inner_val", "val")]
                writer.writerow([row["epoch"], lr, wd, *metrics])


def save(
    path: Path,
    heads: HeadGrid,
    optimizer: torch.optim.AdamW,
    at: TrainingPosition,
    settings: ProbeSettings,
    history: list[dict[str, Any]],
    fingerprint: str,
    tuned: LoadedEncoder | None,
) -> None:
    """V-JEPA's keys (`classifier` is the head that would be reported now) and what resuming all heads needs.

    An encoder that trains along is in it as in a pretraining checkpoint, so that it can be loaded like one.
    """
    last = history[-1] if history else {}
    best = choose_head(last.get("inner_val_loss"), last.get("inner_val"))
    state = {
        "classifier": heads[best].state_dict(),
        "classifiers": heads.state_dict(),
        "opt": optimizer.state_dict(),
        "scaler": None,
        "epoch": at.epoch,
        "position": asdict(at),
        "lr": settings.grid[best][0],
        "world_size": current().world_size,
        "history": history,
        "fingerprint": fingerprint,
    }
    if tuned is not None:
        state |= {"encoder": tuned.encoder.state_dict(), "spec": tuned.settings}
        state |= {"config": tuned.config} if tuned.config else {}
    checkpoint.save_atomic(state, path)


def resume(
    path: Path,
    heads: HeadGrid,
    optimizer: torch.optim.AdamW,
    fingerprint: str,
    tuned: LoadedEncoder | None,
    log: Callable[[str], None],
) -> tuple[TrainingPosition, list[dict[str, Any]]]:
    """Load a probe's checkpoint; one that belongs to other features or settings is left alone, and said so."""
    state = checkpoint.load(path)
    if state.get("fingerprint") != fingerprint:
        log(f"{path.name} was made on other features or settings: training anew")
        return TrainingPosition(), []
    heads.load_state_dict(state["classifiers"])
    if tuned is not None:
        tuned.encoder.load_state_dict(state["encoder"])
    optimizer.load_state_dict(state["opt"])
    at = TrainingPosition(**state.get("position", {"epoch": state["epoch"]}))
    log(f"resuming from {path.name} after epoch {at.epoch}" + (f" and {at.step} steps" if at.step else ""))
    return at, [{_RENAMED.get(key, key): value for key, value in row.items()} for row in state["history"]]
