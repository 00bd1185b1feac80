"""How far a pretraining run is, told from its folder alone; no checkpoint is opened."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from src.config.yaml_io import read_mapping
from src.jepa.renamed_keys import with_present_names
from src.utils.errors import UserError

PARAMS = "params-pretrain.yaml"
LOSS_STEPS = 20  # the loss shown is the mean over so many last steps

# How a run is carried out and how long it is: it may go on with other values of these. Everything else is what it is.
_MAY_CHANGE = (
    *("nodes", "tasks_per_node", "logging.", "meta.load_checkpoint", "meta.read_checkpoint", "meta.use_sdpa"),
    *("data.num_workers", "data.pin_mem", "data.decoder", "model.use_activation_checkpointing", "model.compile_model"),
    *("optimization.epochs", "optimization.max_skipped_steps", "meta.eval_freq", "probe."),
)


@dataclass(frozen=True)
class Status:
    """What a run's folder says. Counts are of what is done; None where it cannot be told."""

    state: str = "waiting"  # waiting, running, finished, failed, stale
    epoch: int | None = None
    epochs: int | None = None
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    saved: float | None = None  # when the latest checkpoint was written, seconds since 1970
    reason: str = ""


class _Row(NamedTuple):
    """One step of the csv."""

    epoch: int
    itr: int
    loss: float


def read_status(folder: Path, logs: Path | None = None, job: str | None = None, stale_s: float = 600.0) -> Status:
    """State of the run in `folder`.

    Args:
        stale_s: a run that has written nothing for so long is not running any more.
        logs, job: submitit's folder and the id of the run's last job, where there was one.
    """
    try:
        params = read_mapping(folder / PARAMS) if (folder / PARAMS).exists() else {}
    except UserError as error:
        return Status("failed", reason=str(error))
    tag = params.get("logging", {}).get("write_tag", "jepa")
    csv, checkpoint = folder / f"{tag}_r0.csv", folder / f"{tag}-latest.pth.tar"
    status = _progress(_rows(csv), params.get("optimization", {}))
    if checkpoint.exists():
        status = replace(status, saved=checkpoint.stat().st_mtime)
    if status.step and status.step == status.steps and checkpoint.exists() and not _older(checkpoint, csv):
        return replace(status, state="finished")
    ending = _ending(logs, job) if logs and job else None
    if ending and not (csv.exists() and _older(ending.log, csv)):
        return replace(status, state=ending.state, reason=ending.reason)
    written = [path.stat().st_mtime for path in (csv, checkpoint, folder / PARAMS) if path.exists()]
    if not written:
        return status
    quiet = time.time() - max(written)
    if quiet < stale_s:
        return replace(status, state="running")
    return replace(status, state="stale", reason=f"nothing written for {quiet / 60:.0f} min")


def check_same_run(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a folder that holds a run of another config, before a sweep takes that one's numbers for this one's.

    Raises:
        UserError: names the first key that differs, and both values.
    """
    stored = flat_keys(with_present_names(read_mapping(folder / PARAMS))) if (folder / PARAMS).exists() else {}
    for key, value in flat_keys(config).items():
        if stored.get(key, value) != value and not key.startswith(_MAY_CHANGE):
            raise UserError(
                f"{folder} holds a run with {key}={stored[key]}, where {value} is asked for now: "
                "choose another folder, or remove that one"
            )


def flat_keys(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys and their values; lists are values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flat_keys(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _older(path: Path, other: Path) -> bool:
    return path.stat().st_mtime_ns < other.stat().st_mtime_ns


def _rows(csv: Path) -> list[_Row]:
    """The rows of a csv that may be growing: what is not a whole row is left out."""
    if not csv.exists():
        return []
    lines = csv.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    rows, width = [], len(lines[0].split(",")) if lines else 0
    for line in lines[1:]:
        fields = line.split(",")
        try:
            if len(fields) == width:
                rows.append(_Row(int(fields[0]), int(fields[1]), float(fields[2])))
        except ValueError:
            continue  # two processes wrote at once, or a disk was full: the other rows still stand
    return rows


def _progress(rows: list[_Row], optimization: dict[str, Any]) -> Status:
    """Counts and loss. Where ipe is not set the length of an epoch is known once one is done."""
    epochs, per_epoch = optimization.get("epochs"), optimization.get("ipe")
    if not rows:
        return Status(epochs=epochs, steps=epochs * per_epoch if epochs and per_epoch else None)
    if per_epoch is None:
        per_epoch = next((a.itr + 1 for a, b in pairwise(rows) if b.epoch > a.epoch), None)
    last = rows[-1]
    losses = [row.loss for row in rows[-LOSS_STEPS:] if math.isfinite(row.loss)]  # skipped steps have none
    return Status(
        epoch=last.epoch + (last.itr + 1 == per_epoch),
        epochs=epochs,
        step=last.epoch * per_epoch + last.itr + 1 if per_epoch else len(rows),
        steps=epochs * per_epoch if epochs and per_epoch else None,
        loss=math.fsum(losses) / len(losses) if losses else math.nan,
    )


class _Ending(NamedTuple):
    """What a job's logs say about how its last attempt ended."""

    state: str
    reason: str
    log: Path


def _ending(logs: Path, job: str) -> _Ending | None:
    """Read submitit's logs, one pair of files for each process of the job; None where it may still be running."""
    failed = []
    for out in sorted(logs.glob(f"{job}_*_log.out")):
        text = out.read_text(encoding="utf-8", errors="replace")
        attempt = text[max(text.rfind("Starting with"), 0) :]
        if "Requeued job" in attempt:
            return _Ending("waiting", "queued again", out)
        if "Job completed successfully" in attempt:
            return _Ending("finished", "", out)
        if "triggered an exception" in attempt:
            failed.append(out)
    # One process fails and the others lose their peer: the first is the cause, and so is a user's mistake.
    failed.sort(key=lambda out: out.stat().st_mtime_ns)
    reasons = [_last_own(out.with_suffix(".err")) for out in failed]
    if reasons:
        mine = [reason for reason in reasons if "UserError: " in reason]
        return _Ending("failed", (mine or reasons)[0].rpartition("UserError: ")[2], failed[0])
    err = logs / f"{job}_0_log.err"
    complaint = _slurm_says(err)
    if complaint and not _older(err, logs / f"{job}_0_log.out"):
        again = any(word in complaint for word in ("REQUEUE", "PREEMPTION", "NODE FAILURE"))
        return _Ending("waiting", "queued again", err) if again else _Ending("failed", complaint, err)
    return None


# What a job's log still gets while SLURM is ending it; anything else is from a process at work.
_LAST_WORDS = re.compile(
    r"slurmstepd|srun|submitit|.*\] (Bypassing|Caught|Calling|Requeued|Exiting|Job has|stopped by) "
)


def _slurm_says(err: Path) -> str:
    """SLURM's own last complaint, as `*** JOB 7 ON n0 CANCELLED ... ***`, if no process has gone on after it."""
    for line in reversed(_lines(err)):
        complaint = re.match(r"slurmstepd\S*: error: (.*)", line)
        if complaint:
            return complaint.group(1)
        if not _LAST_WORDS.match(line):
            break
    return ""


def _last_own(err: Path) -> str:
    """The last line that a process wrote itself, where it failed that of its exception."""
    return next((line for line in reversed(_lines(err)) if not _LAST_WORDS.match(line)), "")


def _lines(path: Path) -> list[str]:
    """The lines of a log that are not empty."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return [line.strip() for line in text.split("\n") if line.strip()]
