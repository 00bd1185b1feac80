"""What a run stores and how it goes on: two rolling checkpoints, kept ones, and where each of them stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from app.vjepa.config import PretrainConfig
from app.vjepa.utils import Run
from src.datasets.dataset_types import SHARDED
from src.datasets.webdataset.shards import is_url
from src.jepa.checkpoint_config import check_same_start, checkpoint_config
from src.jepa.checkpoint_weights import load_weights
from src.utils.checkpoint import first_not_finite, load_newest, save_atomic
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

    A run of the folder's own comes before meta.read_checkpoint, which is where a folder's run begins; `resume` refuses
    one that did not begin there. Raises UserError if the file asked for is missing, or if starting afresh would
    overwrite another run.
    """
    latest, previous = checkpoint_path(cfg), checkpoint_path(cfg, "previous")
    there = [latest, previous] if previous.exists() else [latest] if latest.exists() else []
    if cfg.meta.read_checkpoint is not None:
        path = cfg.output_folder() / cfg.meta.read_checkpoint  # an absolute path stays what it is
        if not there and not path.exists():
            raise UserError(f"meta.read_checkpoint: {path} does not exist")
        return there or [path]
    if there and not (cfg.meta.load_checkpoint or resume_preempt):
        raise UserError(
            f"{there[-1] if not latest.exists() else latest} holds an earlier run: set meta.load_checkpoint=true to go "
            "on from it, or choose another logging.folder to start afresh"
        )
    return there


def save_checkpoint(run: Run, cfg: PretrainConfig, world_size: int) -> None:
    """Write V-JEPA's dictionary, and what exact resuming needs besides; the one before stays as `previous`.

    All processes call it, and the main one writes. There is no random state in it: whatever is random in a step follows
    from the seed and the step. The EMA is as far as `step`. Raises UserError, in all processes, if a number in it is
    not finite: nothing is written then.
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
        "loss": run.loss,
        "batch_size": cfg.data.batch_size,
        "world_size": world_size,
        "lr": cfg.optimization.lr,
        "step": run.step,
        "itr": itr,
        "steps_per_epoch": run.steps_per_epoch,
        "samples": run.samples,
        "skipped": run.skipped,
        "skipped_in_a_row": run.skipped_in_a_row,
        "began_from": run.began_from,
        "config": cfg.model_dump(mode="json"),
    }
    _check_finite(state, cfg, run)
    if is_main():
        # Where every step since the last save was skipped the weights are the same: `previous` stays the older ones.
        same = run.saved_step is not None and run.step - run.saved_step <= run.skipped_in_a_row
        save_atomic(state, checkpoint_path(cfg), previous=None if same else checkpoint_path(cfg, "previous"))
        every = cfg.logging.save_every_epochs
        if every and itr == 0 and epoch % every == 0:
            save_atomic(state, checkpoint_path(cfg, f"e{epoch}"))
    run.saved_step = run.step


def _check_finite(state: dict[str, Any], cfg: PretrainConfig, run: Run) -> None:
    """Refuse to write what no run could go on from."""
    broken = first_not_finite(state)
    what = f"{broken} is not finite" if broken else None
    if state["scaler"].get("scale") == 0:  # 1/0 then makes every gradient NaN
        what = "the loss scale of float16 has fallen to 0"
    if what:
        raise UserError(
            f"no checkpoint is written at step {run.step}, as {what}: lower optimization.lr, or compute in "
            f"meta.dtype=float32; {describe_saved(cfg, run, run.step)}"
        )


def describe_saved(cfg: PretrainConfig, run: Run, step: int) -> str:
    """Words for what is on the disk from before a step that something broke in, or from after it."""
    if run.saved_step is None:
        return "nothing was saved yet"
    latest, previous = checkpoint_path(cfg), checkpoint_path(cfg, "previous")
    if run.saved_step <= step:
        return f"{latest} is from before (step {run.saved_step})"
    older = f"; without that file the run goes on from {previous}, which is older" if previous.exists() else ""
    return f"{latest} was saved since, with the weights from before{older}"


def resume(
    cfg: PretrainConfig, run: Run, checkpoints: list[Path], world_size: int, resume_preempt: bool = False
) -> None:
    """Go on from the newest of the checkpoints that is whole, and say where that is; all processes together.

    With another number of processes, batch size or accumulation the run goes on at the same point of its epochs and of
    its data, and its steps may be others. Raises UserError as `load_checkpoint` does, if the folder's run did not begin
    from meta.read_checkpoint or with the weights that the config says, or if the processes do not see the same file.
    """
    state, path = load_newest(checkpoints)
    stored = checkpoint_config(state, path) or {}
    # Of a checkpoint of earlier versions: where the run last started.
    began_from = state.get("began_from", stored.get("meta", {}).get("read_checkpoint"))
    own = path in (checkpoint_path(cfg), checkpoint_path(cfg, "previous"))
    if own and not resume_preempt:
        _check_origin(cfg, path, began_from)
    load_checkpoint(state, path, run)
    if stored:
        check_same_start(stored, cfg.model_dump(), path)
    step, minus_step = all_reduce_max(run.step, -run.step)
    if step != -minus_step:
        raise UserError(f"{path} is not the same file for all processes (step {-minus_step} to {step}): try again")
    if is_main() and path != checkpoints[0] and checkpoints[0].exists():
        # Out of the way: the next save would put it in the place of the good one.
        checkpoints[0].replace(checkpoints[0].with_name(f"{checkpoints[0].name}.damaged"))
    run.began_from = began_from if own else cfg.meta.read_checkpoint
    run.saved_step = run.step if path == checkpoint_path(cfg) else None
    epoch, itr = divmod(run.step, run.steps_per_epoch)
    logger.info(f"resumed from {path} at step {run.step} (epoch {epoch + 1}, step {itr} of {run.steps_per_epoch})")
    _warn_of_other_steps(cfg, run, state, stored, world_size)


def _check_origin(cfg: PretrainConfig, path: Path, began: str | None) -> None:
    """Refuse a run of the folder's own that did not begin from the file that is asked for."""
    asked, folder = cfg.meta.read_checkpoint, cfg.output_folder()
    allowed = [checkpoint_path(cfg), *([folder / began] if began else [])]
    if asked is not None and (folder / asked).resolve() not in [each.resolve() for each in allowed]:
        raise UserError(
            f"meta.read_checkpoint={asked}: {path} holds a run that began {f'from {began}' if began else 'afresh'}: "
            "unset the key to go on with that run, or choose another logging.folder to begin from the file"
        )


def _warn_of_other_steps(
    cfg: PretrainConfig, run: Run, state: dict[str, Any], stored: dict[str, Any], world_size: int
) -> None:
    """Say if the steps are others from here on. They are not where only processes take the place of accumulation.

    Masks and stochastic depth are drawn for a batch as a whole, so that its size matters.
    """
    if None in (state.get("world_size"), state.get("batch_size"), state.get("steps_per_epoch")):
        return
    accumulated = stored.get("optimization", {}).get("accumulate_steps", 1)
    before = _Steps(state["world_size"], state["batch_size"], accumulated, state["steps_per_epoch"])
    now = _Steps(world_size, cfg.data.batch_size, cfg.optimization.accumulate_steps, run.steps_per_epoch)
    streams = cfg.data.dataset_type in SHARDED and any(map(is_url, cfg.data.datasets))
    workers = max(stored.get("data", {}).get("num_workers", cfg.data.num_workers), 1)
    dealt_anew = streams and (before.world_size, workers) != (world_size, max(cfg.data.num_workers, 1))
    if before.batches == now.batches and not dealt_anew:
        return
    if streams:
        goes_on = "place of its epoch, and streamed shards are dealt out anew"
    elif before.samples == now.samples:
        goes_on = "sample, each step has the same samples and other masks"
    else:
        goes_on = "sample, its steps are others"
    logger.warning(
        "it was written with world size {}, batch size {}, accumulate_steps {} and {} steps an epoch, ".format(*before)
        + "which now are {}, {}, {} and {}: the run goes on at the same ".format(*now)
        + goes_on
    )


class _Steps(NamedTuple):
    """What the steps of a run are made of."""

    world_size: int
    batch_size: int
    accumulate_steps: int
    per_epoch: int

    @property
    def batches(self) -> tuple[int, ...]:
        """What tells whether they are the same: the size and the number of a step's batches, and steps in an epoch."""
        return self.batch_size, self.world_size * self.accumulate_steps, self.per_epoch

    @property
    def samples(self) -> tuple[int, ...]:
        """What tells whether they have the same samples."""
        return self.batch_size * self.world_size * self.accumulate_steps, self.per_epoch


def load_checkpoint(state: dict[str, Any], path: Path, run: Run) -> None:
    """Bring a run back to where `save_checkpoint` left it, with `state`, which `path` held.

    The optimizer's settings (pred_lr_scale, betas, eps) are those of the run, not of the checkpoint, as are the
    schedules. Raises UserError, naming the first parameter that does not fit, for a checkpoint of another architecture.
    """
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
    run.loss = state.get("loss", run.loss)
    run.skipped, run.skipped_in_a_row = state.get("skipped", 0), state.get("skipped_in_a_row", 0)
