"""A step whose gradient is not finite is skipped: weights, optimizer and EMA stay as they are. Too many end the run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from app.vjepa.checkpoints import describe_saved
from app.vjepa.config import PretrainConfig
from app.vjepa.utils import Run
from src.jepa.objective import ema_update
from src.utils.csv_log import write_csv
from src.utils.distributed import gather_objects, is_main
from src.utils.errors import UserError
from src.utils.logging import get_logger

logger = get_logger(__name__)


def spread_to_gradient(loss: torch.Tensor) -> torch.Tensor:
    """`loss` (,), bit for bit; where it is not finite its gradient is not finite either, whatever it would have been.

    Gradients are summed over processes and batches, so that all of them skip a step for the loss of any.
    """
    return loss * torch.where(loss.detach().isfinite(), 1.0, math.nan)


def apply_update(run: Run, momentum: float, applied: torch.Tensor) -> None:
    """One step of the optimizer and of the EMA, or neither where `applied`, a bool (,) on the device, is false.

    Fused optimizers take the decision on the device, as they do from a GradScaler: the host does not wait for it.
    `init_opt` takes one wherever reading would wait.
    """
    on_device = getattr(run.optimizer, "_step_supports_amp_scaling", False)
    if on_device:
        run.optimizer.grad_scale, run.optimizer.found_inf = None, (~applied).float()  # type: ignore[attr-defined]
        run.optimizer.step()
        del run.optimizer.grad_scale, run.optimizer.found_inf  # type: ignore[attr-defined]
    elif applied:
        run.optimizer.step()
    else:
        return
    ema_update(run.target.parameters(), run.online.parameters(), momentum, applied if on_device else None)


def count_skipped_step(
    args: PretrainConfig, run: Run, step: int, row: Sequence[float], own_loss: float, paths: list[str]
) -> None:
    """Count a step that was applied or skipped, and say so if it was skipped; all processes together, in order.

    While the loss scale of float16 is above 1 and the loss is finite, a skipped step is the search for a scale, which
    is part of every such run. All others are counted.

    Args:
        row: the step's metrics, averaged over processes; begins with the loss, ends with applied and loss scale.
        own_loss, paths: this process's loss, and the files that it read.

    Raises:
        UserError: more than optimization.max_skipped_steps in a row were skipped; says where the run was saved.
    """
    loss, applied, scale = row[0], row[-2], row[-1]
    where = "epoch {}, step {}".format(*divmod(step, run.steps_per_epoch))
    if applied:
        run.loss, run.skipped_in_a_row = loss, 0
        return
    if math.isfinite(loss) and scale > 1:
        logger.info(f"{where} is skipped: a loss scale of {scale:g} is too high for it, the next step has a lower one")
        return
    run.skipped, run.skipped_in_a_row = run.skipped + 1, run.skipped_in_a_row + 1
    written = write_bad_batch(args, paths, math.isfinite(own_loss))
    most = args.optimization.max_skipped_steps
    if run.skipped_in_a_row > most:
        raise UserError(
            f"the gradient is not finite at {where} (loss {loss:g}), {written}; {run.skipped_in_a_row} in a row were "
            f"skipped, more than optimization.max_skipped_steps={most}: lower optimization.lr, or compute in "
            f"meta.dtype=float32; {describe_saved(args, run, step + 1 - run.skipped_in_a_row)}"
        )
    logger.warning(
        f"{where} is skipped: its gradient is not finite (loss {loss:g}), {written}; "
        f"{run.skipped_in_a_row} in a row, {run.skipped} in all"
    )


def write_bad_batch(args: PretrainConfig, paths: list[str], finite: bool) -> str:
    """Write bad_batch.csv (rank, path): what the processes read whose loss is not finite, or all of them if each is.

    All call this. Returns words for the message.
    """
    ranks: list[tuple[list[str], bool]] = gather_objects((paths, finite))
    guilty = [rank for rank, (_, finite) in enumerate(ranks) if not finite]
    rows: list[tuple[Any, ...]] = [
        (rank, path) for rank, (paths, _) in enumerate(ranks) if rank in guilty or not guilty for path in paths
    ]
    target = args.output_folder() / "bad_batch.csv"
    if is_main():
        write_csv(target, ("rank", "path"), rows)
    if not guilty:
        return f"whose files are in {target}"
    return f"in process {' and '.join(map(str, guilty))} of {len(ranks)}, whose files are in {target}"
