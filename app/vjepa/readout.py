"""Reading the numbers of the steps just done: rows of the csv, and the end of a run whose loss is not finite."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from app.vjepa.checkpoints import checkpoint_path
from app.vjepa.config import PretrainConfig
from app.vjepa.utils import Run
from src.utils.csv_log import CSVLogger, write_csv
from src.utils.distributed import all_reduce_mean, gather_objects, is_main
from src.utils.errors import UserError

COLUMNS = (
    ("%d", "epoch"),
    ("%d", "itr"),
    ("%.5f", "loss"),
    ("%.5f", "loss-jepa"),
    ("%.5f", "reg-loss"),
    ("%.3e", "enc-grad-norm"),
    ("%.3e", "pred-grad-norm"),
    ("%d", "wall-time(ms)"),
)


class Taken(NamedTuple):
    """A step whose numbers have not been read: they lie on the device, (5,); and the files that it saw."""

    numbers: torch.Tensor
    paths: list[str]


def read_numbers(
    args: PretrainConfig, run: Run, unread: list[Taken], csv: CSVLogger | None, seconds: float
) -> list[float]:
    """Write the rows of the steps just done, averaged over processes, and return the last one.

    Raises UserError, in all processes, if a loss is not finite in any of them.
    """
    own = torch.stack([taken.numbers for taken in unread])
    rows = all_reduce_mean(own).tolist()
    for i, row in enumerate(rows):
        epoch, itr = divmod(run.step - len(rows) + i, run.steps_per_epoch)
        if csv is not None:
            csv.log(epoch, itr, *row, seconds * 1000 / len(rows))
        if not math.isfinite(row[0]):
            written = write_bad_batch(args, unread[i].paths if not math.isfinite(own[i][0]) else [])
            latest = checkpoint_path(args)
            kept = f"{latest} is from before" if latest.exists() else "nothing was saved yet"
            raise UserError(
                f"the loss is {row[0]} at epoch {epoch}, step {itr}, {written}: lower optimization.lr, or compute in "
                f"meta.dtype=float32; {kept}"
            )
    return rows[-1]


def write_bad_batch(args: PretrainConfig, paths: list[str]) -> str:
    """Write bad_batch.csv (rank, path): what each process saw in the step that broke its loss; all call this.

    Returns words for the message.
    """
    ranks = gather_objects(paths)
    target = args.output_folder() / "bad_batch.csv"
    if is_main():
        write_csv(target, ("rank", "path"), [(rank, path) for rank, paths in enumerate(ranks) for path in paths])
    guilty = [str(rank) for rank, paths in enumerate(ranks) if paths]
    return f"in process {' and '.join(guilty)} of {len(ranks)}, whose files are in {target}"
