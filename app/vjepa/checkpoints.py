"""What a run stores and how it goes on: two rolling checkpoints, kept ones, and where each of them stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from app.vjepa.config import PretrainConfig
from app.vjepa.utils import Run
from src.jepa.checkpoint_weights import load_weights
from src.utils.checkpoint import load_newest, save_atomic
from src.utils.distributed import all_reduce_max, is_main
from src.utils.errors import UserError
from src.utils.logging import get_logger

logger = get_logger(__name__)

# What this run sets of an optimizer's group: its config, and its device, for `fused`. The schedules set the others.
_FROM_RUN = ("lr_scale", "WD_exclude", "betas", "eps", "fused")


def checkpoint_path(cfg: PretrainConfig, which: str = "latest") -> Path:
    """`<tag>-latest.pth.tar`, `<tag>-previous.pth.tar` or `<tag>-e<epoch>.pth.tar`, in the run's folder."""
    return cfg.output_folder() / f"{cfg.logging.write_tag}-{which}.pth.tar"


def find_checkpoints(cfg: PretrainConfig, resume_preempt: bool) -> list[Path]:
    """The checkpoints to go on from, newest first; none to start afresh.

    Raises UserError if the one asked for is missing, or if starting afresh would overwrite another run.
    """
    if cfg.meta.read_checkpoint is not None:
        path = cfg.output_folder() / cfg.meta.read_checkpoint  # an absolute path stays what it is
        if not path.exists():
            raise UserError(f"meta.read_checkpoint: {path} does not exist")
        return [path]
    latest, previous = checkpoint_path(cfg), checkpoint_path(cfg, "previous")
    there = [latest, previous] if previous.exists() else [latest] if latest.exists() else []
    if there and not (cfg.meta.load_checkpoint or resume_preempt):
        raise UserError(
            f"{there[-1] if not latest.exists() else latest} holds an earlier run: set meta.load_checkpoint=true to go "
            "on from it, or choose another logging.folder to start afresh"
        )
    return there


def save_checkpoint(run: Run, cfg: PretrainConfig, loss: float, world_size: int) -> None:
    """Write V-JEPA's dictionary, and what exact resuming needs besides; the one before stays as `previous`.

    There is no random state in it: whatever is random in a step follows from the seed and the step. The EMA is as far
    as `step`.
    """
    epoch, itr = divmod(run.step, run.steps_per_epoch)
    state = {
        "encoder": run.encoder.state_dict(),
        "predictor": run.predictor.state_dict(),
        "target_encoder": run.target_encoder.state_dict(),
        "target_projector": run.target_projector.state_dict(),  # the online one is the predictor's; empty without
        "opt": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
        "epoch": epoch,
        "loss": loss,
        "batch_size": cfg.data.batch_size,
        "world_size": world_size,
        "lr": cfg.optimization.lr,
        "step": run.step,
        "itr": itr,
        "steps_per_epoch": run.steps_per_epoch,
        "samples": run.samples,
        "config": cfg.model_dump(mode="json"),
    }
    save_atomic(state, checkpoint_path(cfg), previous=checkpoint_path(cfg, "previous"))
    every = cfg.logging.save_every_epochs
    if every and itr == 0 and epoch % every == 0:
        save_atomic(state, checkpoint_path(cfg, f"e{epoch}"))


def resume(cfg: PretrainConfig, run: Run, checkpoints: list[Path], world_size: int) -> None:
    """Go on from the newest of the checkpoints that is whole, and say where that is; all processes together.

    With another number of processes, batch size or accumulation the run goes on at the same point of its epochs and of
    its data, whose steps are then others. Raises UserError as `load_checkpoint` does, or if the processes do not see
    the same file.
    """
    path, state = load_checkpoint(checkpoints, run)
    step, minus_step = all_reduce_max(run.step, -run.step)
    if step != -minus_step:
        raise UserError(f"{path} is not the same file for all processes (step {-minus_step} to {step}): try again")
    if is_main() and path != checkpoints[0] and checkpoints[0].exists():
        # Out of the way: the next save would put it in the place of the good one.
        checkpoints[0].replace(checkpoints[0].with_name(f"{checkpoints[0].name}.damaged"))
    epoch, itr = divmod(run.step, run.steps_per_epoch)
    logger.info(f"resumed from {path} at step {run.step} (epoch {epoch + 1}, step {itr} of {run.steps_per_epoch})")
    before = (state.get("world_size"), state.get("batch_size"), state.get("steps_per_epoch"))
    now = (world_size, cfg.data.batch_size, run.steps_per_epoch)
    if before != now and None not in before:
        logger.warning(
            "it was written with world size {}, batch size {} and {} steps an epoch, ".format(*before)
            + "which now are {}, {} and {}: the run goes on at the same sample, its steps are others".format(*now)
        )


def load_checkpoint(checkpoints: list[Path], run: Run) -> tuple[Path, dict[str, Any]]:
    """Bring a run back to where `save_checkpoint` left it. Returns the file that was read, and what it held.

    The optimizer's settings (pred_lr_scale, betas, eps) are those of the run, not of the checkpoint, as are the
    schedules. Raises UserError, naming the first parameter that does not fit, for a checkpoint of another architecture.
    """
    state, path = load_newest(checkpoints)
    missing = [key for key in ("encoder", "predictor", "target_encoder", "opt", "epoch") if key not in state]
    if missing:
        raise UserError(f"{path}: not a pretraining checkpoint: it has no {', '.join(missing)}")
    load_weights(state, path, run.encoder, run.predictor, run.target_encoder, run.target_projector)
    try:
        for group, own in zip(state["opt"]["param_groups"], run.optimizer.param_groups, strict=False):
            group.update({key: own[key] for key in _FROM_RUN})  # first: loading moves a fused one's steps to the GPU
        run.optimizer.load_state_dict(state["opt"])
    except ValueError as error:
        raise UserError(f"{path}: opt: {error}") from None
    if state.get("scaler"):
        run.scaler.load_state_dict(state["scaler"])
    then = state.get("steps_per_epoch", run.steps_per_epoch)
    run.step = state.get("step", state["epoch"] * then) * run.steps_per_epoch // then
    run.samples = state.get("samples", run.step * run.samples_per_step)
    return path, state
