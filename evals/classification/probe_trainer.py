"""The only probe trainer: attentive heads on the features of one encoder, which is frozen or trains along with them.

Several heads, one for each pair of learning rate and weight decay, train side by side on the same batches, so that the
features are computed or read once. Which head is reported is decided on samples held out of the training list; the
validation list is measured but decides nothing. Gradients are summed over all processes and divided by the global
number of samples, so that any number of processes takes the same steps up to rounding, with uneven sizes too.

Legend: B batch, L tokens of a view, D width, C classes, G heads.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evals.classification import probe_checkpoint
from evals.classification.feature_cache import digest
from evals.classification.finetuning import encoder_groups
from evals.classification.frozen_encoder import LoadedEncoder
from evals.classification.inference import FeatureSource, autocast, mean_probability, predict
from evals.classification.probe_checkpoint import ProbeSettings, TrainingPosition, choose_head
from src.launch.preemption import Preempted, listening, requested
from src.models.backbone import VideoEncoder
from src.probes.attentive_heads import HeadGrid
from src.utils.distributed import all_reduce_max, all_reduce_sum, barrier, current
from src.utils.errors import UserError
from src.utils.progress import Progress
from src.utils.schedulers import warmup_cosine

SHOW_EVERY = 10  # steps between two readings of the loss, for which a GPU has to be waited for


@dataclass
class HeadResult:
    """One head: its settings, its last training accuracy, and what it said about each sample of the lists."""

    lr: float
    weight_decay: float
    train_accuracy: float
    inner_val_accuracy: float | None
    inner_val_loss: float | None
    val_accuracy: float


@dataclass
class ProbeOutcome:
    """All heads, the index of the one to report, and its predictions for the validation samples in order of `ids`."""

    heads: list[HeadResult]
    best: int
    ids: np.ndarray
    labels: np.ndarray
    predictions: np.ndarray
    seconds: float
    history: list[dict[str, float]] = field(default_factory=list)


def build_heads(settings: ProbeSettings) -> HeadGrid:
    """One head for each point of the grid, all starting from the same weights."""
    return HeadGrid.build(
        len(settings.grid), settings.embed_dim, settings.num_heads, settings.num_classes, settings.seed
    )


def build_optimizer(heads: HeadGrid, settings: ProbeSettings, encoder: VideoEncoder | None = None) -> torch.optim.AdamW:
    """AdamW with two groups for each head: matrices decay; biases, norms and vectors do not. Then the encoder's."""
    groups = []
    for head, (lr, weight_decay) in zip(heads, settings.grid):
        trained = [(n, p) for n, p in head.named_parameters() if p.requires_grad]
        for decays in (True, False):
            params = [p for n, p in trained if (p.ndim > 1 and not n.endswith("bias")) == decays]
            groups.append({"params": params, "peak_lr": lr, "lr": lr, "weight_decay": weight_decay if decays else 0.0})
    if encoder is not None and settings.tuning is not None:
        (lr, weight_decay), *_ = settings.grid
        groups += encoder_groups(encoder, lr, weight_decay, settings.tuning.layer_decay)
    return torch.optim.AdamW(groups)


def lr_factor(step: int, steps_per_epoch: int, settings: ProbeSettings) -> float:
    """Learning rate of a step over its peak: linear warm-up from start_lr, then half a cosine to final_lr."""
    peak = settings.lrs[0]
    now = warmup_cosine(
        step,
        warmup_steps=int(settings.warmup * steps_per_epoch),
        start_lr=settings.start_lr,
        ref_lr=peak,
        final_lr=settings.final_lr,
        total_steps=settings.num_epochs * steps_per_epoch,
    )
    return now / peak


def _reduce_gradients(optimizer: torch.optim.AdamW, count: int, sums: Tensor) -> tuple[int, Tensor]:
    """Sum gradients, the sample count and `sums` over processes, and divide the gradients by the count, in place."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in params]
    if current().world_size > 1:
        flat = all_reduce_sum(torch.cat([*(g.flatten() for g in grads), sums, sums.new_tensor([float(count)])]))
        count, sums = round(flat[-1].item()), flat[-1 - sums.numel() : -1]
        offset = 0
        for grad in grads:
            grad.copy_(flat[offset : offset + grad.numel()].view_as(grad))
            offset += grad.numel()
    torch._foreach_div_(grads, float(count))
    for param, grad in zip(params, grads):
        param.grad = grad
    return count, sums


def train_epoch(
    heads: HeadGrid,
    optimizer: torch.optim.AdamW,
    source: FeatureSource,
    at: TrainingPosition,
    settings: ProbeSettings,
    device: torch.device,
    progress: Progress,
) -> int:
    """The rest of one pass over the training features; `at` moves along. Returns the signal that ended it, or 0."""
    heads.train()
    totals, stop, shown = torch.tensor(at.sums or [0.0] * (2 * len(heads)), device=device), 0, math.nan
    for batch in source.epoch(at.epoch, at.step):
        factor = lr_factor(at.epoch * len(source) + at.step, len(source), settings)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros_like(totals)
        if len(batch.labels_B):
            labels = batch.labels_B.to(device)
            views = [view.to(device) for view in batch.views_BLD]
            with autocast(device, settings):
                logits = [heads(view) for view in views]
            flat = labels.repeat(len(heads))
            losses_VGB = [F.cross_entropy(x.flatten(0, 1), flat, reduction="none").view(x.shape[:2]) for x in logits]
            loss_G = torch.stack(losses_VGB).mean(0).sum(1)  # views count equally, as in V-JEPA
            loss_G.sum().backward()
            with torch.no_grad():
                right_G = (mean_probability(logits).argmax(-1) == labels).sum(1)
                sums = torch.cat([loss_G, right_G.to(loss_G.dtype)])
        count, sums = _reduce_gradients(optimizer, len(batch.labels_B), sums)
        optimizer.step()
        at.step, at.count, totals = at.step + 1, at.count + count, totals + sums
        if at.step % SHOW_EVERY == 1:  # the best head's so far in this epoch
            shown = float(totals[: len(heads)].min()) / max(at.count, 1)
        progress.advance(count, epoch=at.epoch + 1, loss=shown)
        (stop,) = all_reduce_max(requested())
        if stop:
            break
    at.sums = totals.tolist()
    if not at.count:
        raise UserError("the training list gave no sample: see the files reported as skipped")
    if not any(math.isfinite(x) for x in at.sums[: len(heads)]):
        raise UserError(f"the probe's loss is not finite in epoch {at.epoch + 1}: lower optimization.lr")
    return stop


def train_probe(
    train: FeatureSource,
    inner_val: FeatureSource | None,
    val: FeatureSource,
    settings: ProbeSettings,
    *,
    device: torch.device,
    checkpoint_path: Path,
    csv_path: Path,
    features_key: str,
    resume: bool,
    is_main: bool,
    log: Callable[[str], None],
    tuned: LoadedEncoder | None = None,
) -> ProbeOutcome:
    """Train all heads for settings.num_epochs epochs and measure them.

    Args:
        inner_val: held-out training samples that decide between heads; needed when there is more than one.
        checkpoint_path: written after each epoch and when asked to stop, read first when `resume`.
        features_key: names the features; a checkpoint made on others is not resumed from.
        tuned: an encoder that trains along with the one head; the sources run it (feature_extraction.LiveSource).

    Raises:
        UserError: no head has a finite loss, or a list gave no sample.
        Preempted: asked to stop while training, and saved.
    """
    if inner_val is None and len(settings.grid) > 1:
        raise ValueError("several heads need held-out training samples to choose between them")
    started = time.monotonic()
    heads = build_heads(settings).to(device)
    optimizer = build_optimizer(heads, settings, tuned.encoder if tuned else None)
    fingerprint = digest([features_key, len(train), {**vars(settings), "val_every": 0}])
    at = TrainingPosition()
    history: list[dict[str, Any]] = []
    if resume and checkpoint_path.exists():
        at, history = probe_checkpoint.resume(checkpoint_path, heads, optimizer, fingerprint, tuned, log)

    inner_val_acc = inner_val_loss = None
    measured = None
    total, done = settings.num_epochs * len(train), at.epoch * len(train) + at.step
    with Progress(total, done, what="attentive probe", enabled=is_main) as progress:
        while at.epoch < settings.num_epochs:
            begun = time.monotonic()
            with listening():
                stop = train_epoch(heads, optimizer, train, at, settings, device, progress)
                if stop and is_main:
                    probe_checkpoint.save(checkpoint_path, heads, optimizer, at, settings, history, fingerprint, tuned)
                if stop:
                    barrier()  # nobody leaves before all is on the disk
                    raise Preempted(stop, f"{checkpoint_path} has {at.step} steps of epoch {at.epoch + 1}")
            (loss, train_acc), at = at.means(), TrainingPosition(at.epoch + 1)
            last = at.epoch == settings.num_epochs
            row: dict[str, Any] = {"epoch": at.epoch, "loss": loss, "train": train_acc, "inner_val": None, "val": None}
            if inner_val is not None:
                _, y, predictions, losses = predict(heads, inner_val, settings, device)
                inner_val_acc, inner_val_loss = (predictions == y).mean(1).tolist(), losses.mean(1).tolist()
                row |= {"inner_val": inner_val_acc, "inner_val_loss": inner_val_loss}
            if last or at.epoch % settings.val_every == 0:
                measured = predict(heads, val, settings, device)
                row["val"] = _accuracies(measured)
            history.append(row)
            if is_main:
                probe_checkpoint.save(checkpoint_path, heads, optimizer, at, settings, history, fingerprint, tuned)
                probe_checkpoint.write_csv(csv_path, history, settings)
            log(probe_checkpoint.line(row, settings, time.monotonic() - begun))
    if measured is None:  # resumed after the last epoch
        measured = predict(heads, val, settings, device)
    final = history[-1]
    inner_val_acc, inner_val_loss = final["inner_val"], final.get("inner_val_loss")
    best = choose_head(inner_val_loss, inner_val_acc)
    val_acc = _accuracies(measured)
    results = [
        HeadResult(
            lr,
            wd,
            final["train"][i],
            inner_val_acc[i] if inner_val_acc else None,
            inner_val_loss[i] if inner_val_loss else None,
            val_acc[i],
        )
        for i, (lr, wd) in enumerate(settings.grid)
    ]
    ids, labels, predictions, _ = measured
    return ProbeOutcome(results, best, ids, labels, predictions[best], time.monotonic() - started, history)


def _accuracies(measured: tuple[np.ndarray, ...]) -> list[float]:
    ids, labels, predictions, _ = measured
    if not len(ids):
        raise UserError("the validation list gave no sample: see the files reported as skipped")
    return (predictions == labels).mean(1).tolist()
