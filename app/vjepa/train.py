"""V-JEPA pretraining: predict the features of masked tokens, targets from an EMA of the encoder.

`main` builds, `train` loops, `train_step` is one optimizer step. Legend: B batch, C channels, T H W clip.
"""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from itertools import islice

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from app.vjepa.checkpoints import checkpoint_path, find_checkpoints, resume, save_checkpoint
from app.vjepa.config import PretrainConfig
from app.vjepa.diagnostics import Diagnostics
from app.vjepa.metrics import MetricLogger
from app.vjepa.online_probe import OnlineProbe
from app.vjepa.skipped_steps import apply_update, spread_to_gradient
from app.vjepa.utils import (
    Run,
    Schedule,
    apply_checkpointing_and_compile,
    apply_schedule,
    init_opt,
    init_video_model,
    make_schedule,
)
from src.config.loading import save_config
from src.datasets.augmentation import make_transforms
from src.datasets.batch import Batch
from src.datasets.data_manager import Loader, init_data
from src.datasets.samplers import hash_seed
from src.datasets.transforms import normalize
from src.jepa.build import make_target_encoder
from src.jepa.objective import VideoJEPA, jepa_losses, make_targets
from src.launch.preemption import Preempted, listening, requested
from src.masks import create_mask_collator
from src.ops.compiled import keep_freed_memory
from src.utils.distributed import all_reduce_max, barrier, current
from src.utils.environment import append_environment
from src.utils.experiment_loggers import ExperimentLogger
from src.utils.logging import get_logger, prepare_folder, quiet_other_ranks
from src.utils.progress import Progress

logger = get_logger(__name__)


def main(args: PretrainConfig, resume_preempt: bool = False) -> None:
    """Pretrain as `args` says, in this process; others may run beside it (src/utils/distributed.py).

    Raises UserError for a folder, data or checkpoint that does not do, and when no gradient is finite any more;
    Preempted when the run was asked to stop, and has saved.
    """
    rank, world_size, device = current()
    quiet_other_ranks(rank)
    if device.type == "cpu":
        keep_freed_memory()
    prepare_folder(args.output_folder())
    checkpoints = find_checkpoints(args, resume_preempt)

    encoder, predictor = init_video_model(args)
    target_encoder = make_target_encoder(encoder).train(args.study.target_drop_path)
    target_projector = make_target_encoder(predictor.projector)
    for module in (encoder, predictor, target_encoder, target_projector):
        module.to(device)
    apply_checkpointing_and_compile(args, encoder, predictor, target_encoder)
    optimizer = init_opt(encoder, predictor, args)
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda" and args.meta.dtype == "float16")
    model: nn.Module = VideoJEPA(encoder, predictor)
    if world_size > 1:
        model = DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)

    loader = make_loader(args, rank, world_size)
    micro = args.optimization.accumulate_steps
    steps_per_epoch = args.optimization.ipe or max(loader.steps_per_pass // micro, 1)
    samples_per_step = args.data.batch_size * micro * world_size
    run = Run(encoder, predictor, target_encoder, model, optimizer, scaler, steps_per_epoch, samples_per_step)
    run.target_projector = target_projector
    if checkpoints:
        resume(args, run, checkpoints, world_size, resume_preempt)
    loader.start_step, loader.start_position = run.step * micro, run.samples
    loader.total_steps = args.optimization.epochs * steps_per_epoch * micro

    describe(args, run, device)
    train(args, run, loader, resumed=bool(checkpoints))


def make_loader(args: PretrainConfig, rank: int, world_size: int) -> Loader:
    """The training data, with masks drawn beside it."""
    data = args.data
    blocks = {"length_matching": data.length_matching} if data.mask_type == "multiblock3d" else {}
    collator = create_mask_collator(
        data.mask_type,
        args.mask_dicts(),
        data.crop_size,
        data.num_frames,
        data.patch_size,
        data.tubelet_size,
        seed=args.meta.seed,
        rank=rank,
        world_size=world_size,
        accumulate=args.optimization.accumulate_steps,
        **blocks,
    )
    keys = [
        *("dataset_type", "datasets", "datasets_weights", "batch_size", "num_clips", "num_frames", "sampling_rate"),
        *("clip_duration", "filter_short_videos", "filter_long_videos", "pad_truncated", "decoder", "allow_pipe"),
        *("max_skip_fraction", "num_workers", "pin_mem"),
    ]
    return init_data(
        **{key: getattr(data, key) for key in keys},
        transform=make_transforms(data.crop_size, **args.data_aug.model_dump()),
        collator=collator,
        rank=rank,
        world_size=world_size,
        seed=args.meta.seed,
        folder=args.output_folder(),
        labelled=False,
    )


def describe(args: PretrainConfig, run: Run, device: torch.device) -> None:
    """Say once what is about to run."""

    def millions(module: nn.Module) -> str:
        return f"{sum(p.numel() for p in module.parameters() if p.requires_grad) / 1e6:.2f} M"

    lower = isinstance(autocast(args, device), torch.autocast)
    logger.info(
        f"{args.model.model_name} ({millions(run.encoder)}) with a {args.model.pred_model_name} predictor "
        f"({millions(run.predictor)} parameters) on {device} in {args.meta.dtype if lower else 'float32'}, "
        f"{args.optimization.epochs} epochs of {run.steps_per_epoch} steps, to {args.output_folder()}"
    )


def train(args: PretrainConfig, run: Run, loader: Loader, resumed: bool) -> None:
    """Step until the last epoch is done; log every step, save every epoch, every few minutes and when asked to stop."""
    rank, world_size, device = current()
    total, first = args.optimization.epochs * run.steps_per_epoch, rank == 0
    if run.step >= total:
        none = ExperimentLogger(args.output_folder(), enabled=False)
        OnlineProbe(args, run, none, resumed, first).evaluate()  # the last one may have been cut short
        logger.info(f"nothing to do: {checkpoint_path(args)} has all {total} steps; choose another logging.folder")
        return
    if first:
        save_config(args, args.output_folder() / "params-pretrain.yaml")  # a finished run keeps the one that made it
        append_environment(args.output_folder(), device, world_size)
    schedule = make_schedule(args, run.steps_per_epoch)
    loggers = ExperimentLogger(args.output_folder(), run.step, args.logging.wandb, enabled=first)
    metrics = MetricLogger(args, run, loggers, resumed, first)
    diagnostics = Diagnostics(args, run, loggers, resumed, first)
    probe = OnlineProbe(args, run, loggers, resumed, first)
    # On a GPU reading a number waits for the device, so metrics are kept there and read together every few steps.
    read_every = args.logging.read_every or (args.logging.log_every if device.type == "cuda" else 1)
    save_after = 60 * (args.logging.save_every_minutes or math.inf)
    loss, saved = run.loss, time.perf_counter()
    with loggers, listening(), Progress(total, run.step, args.logging.log_every, enabled=first) as progress:
        probe.evaluate()  # before step 0, or at the end of an epoch that was saved but not yet probed
        batches = progress.waiting_for(loader)
        metrics.restart(progress)
        while run.step < total:
            group, now = list(islice(batches, args.optimization.accumulate_steps)), schedule(run.step)
            with diagnostics.evaluate(group[-1]):
                metrics.append(train_step(args, run, group, now), now, group)
            run.step += 1
            run.samples += run.samples_per_step
            stop, overdue = all_reduce_max(requested(), time.perf_counter() - saved > save_after)
            save = run.step % run.steps_per_epoch == 0 or overdue or stop
            if save or run.step % read_every == 0:
                loss = metrics.flush(progress)
            if save:
                save_checkpoint(run, args, world_size)
                saved = time.perf_counter()
                metrics.restart(progress)  # a step's time is without the checkpoint before it
            epoch = (run.step - 1) // run.steps_per_epoch + 1
            alarms = [*diagnostics.warned, *(["skipping"] if run.skipped_in_a_row else [])]
            progress.advance(run.samples_per_step, alarms=alarms, epoch=epoch, loss=loss)
            if stop and run.step < total:
                barrier()  # nobody leaves before all is on the disk
                raise Preempted(stop, f"{checkpoint_path(args)} has all {run.step} steps so far")
            if probe.evaluate():
                metrics.restart(progress)
    for log in (metrics, diagnostics, probe):
        log.close()
    if rank == 0:
        skipped = f", {run.skipped} of {total} steps were skipped" if run.skipped else ""
        if run.skipped_in_a_row:
            logger.warning(f"the last {run.skipped_in_a_row} of {total} steps were skipped: the run may have diverged")
        logger.info(f"done: {checkpoint_path(args)}{skipped}")


def train_step(args: PretrainConfig, run: Run, group: list[Batch], now: Schedule) -> torch.Tensor:
    """One optimizer step and the EMA after it, over the batches of `group`; neither if a gradient is not finite.

    Returns (7,) on the device: loss, its feature part, its variance part, gradient norms of encoder and predictor,
    1 if the step was applied and 0 if it was skipped, and the loss scale of float16, which elsewhere is 1.
    """
    rank, world_size, device = current()
    apply_schedule(run.optimizer, now)
    run.optimizer.zero_grad(set_to_none=True)
    parts = []
    for i, batch in enumerate(group):
        # Stochastic depth: the same after resuming, and whichever process computes the batch.
        torch.manual_seed(hash_seed(args.meta.seed, batch.step * world_size + rank))
        batch = batch.to(device)
        clips = normalize(torch.cat(batch.clips))
        # With several clips of a video (num_clips > 1) each sample's masks serve all of its clips.
        masks_enc = [mask.repeat(len(batch.clips), 1) for mask in batch.masks_enc]
        masks_pred = [mask.repeat(len(batch.clips), 1) for mask in batch.masks_pred]
        # Gradients are summed over the processes once, after the last batch.
        more = i + 1 < len(group)
        with run.model.no_sync() if more and isinstance(run.model, DistributedDataParallel) else nullcontext():
            with autocast(args, device):
                targets = make_targets(run.target, clips, masks_pred, args.loss.target_norm, args.loss.clip_mean_weight)
                predictions = run.model(clips, masks_enc, masks_pred)
            losses = jepa_losses(
                predictions, targets, args.loss.loss_exp, args.loss.reg_coeff, shrink=args.study.shrink_variance
            )
            run.scaler.scale(spread_to_gradient(losses.loss) / len(group)).backward()
        parts.append(torch.stack(losses).detach())
    run.scaler.unscale_(run.optimizer)
    limit = args.optimization.clip_grad or math.inf
    norms = [nn.utils.clip_grad_norm_(module.parameters(), limit) for module in (run.encoder, run.predictor)]
    applied, scale = torch.stack(norms).isfinite().all(), run.scaler.scale(torch.ones((), device=device))
    apply_update(run, now.momentum, applied)
    run.scaler.update()  # whose own check of the gradients cannot find more than their norms do
    return torch.cat([torch.stack(parts).mean(dim=0), torch.stack([*norms, applied, scale]).float()])


def autocast(args: PretrainConfig, device: torch.device) -> torch.autocast | nullcontext:
    """Lower precision on a GPU as meta.dtype says; a CPU computes in float32, unless a study wants to know."""
    if args.meta.dtype == "float32" or not (device.type == "cuda" or args.study.autocast_on_cpu):
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, args.meta.dtype))
