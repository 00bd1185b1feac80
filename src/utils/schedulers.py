"""Schedules as pure functions of the optimizer step, so that resuming replays nothing.

A step is one update of the parameters, counted from 0; gradient accumulation does not advance it. `total_steps` is the
length of the schedule, not of the training: V-JEPA stretches it by `ipe_scale` (1.25) so that training ends before the
schedule does and the last updates still move (see `schedule_steps`). Past `total_steps` every function
keeps its last value.
"""

from __future__ import annotations

import math


def schedule_steps(ipe: int, epochs: int, ipe_scale: float = 1.0) -> int:
    """Length of the schedules in optimizer steps: `ipe_scale * epochs * ipe`, rounded down. Warm-up is not scaled.

    Args:
        ipe: optimizer steps per epoch.
        epochs: epochs of the training.
        ipe_scale: how much longer the schedule is than the training; 1.0 finishes it with the last step.
    """
    return int(ipe_scale * epochs * ipe)


def warmup_cosine(
    step: int, *, warmup_steps: int, start_lr: float, ref_lr: float, final_lr: float, total_steps: int
) -> float:
    """Learning rate: linear from `start_lr` to `ref_lr` in `warmup_steps`, then half a cosine to `final_lr`.

    `total_steps` includes the warm-up. A warm-up longer than the schedule ends unfinished.
    """
    step = _clamp(step, total_steps)
    if step < warmup_steps:
        return start_lr + step / warmup_steps * (ref_lr - start_lr)
    return _half_cosine(ref_lr, final_lr, (step - warmup_steps) / max(1, total_steps - warmup_steps))


def cosine(step: int, *, start: float, final: float, total_steps: int) -> float:
    """Half a cosine from `start` to `final` (either may be the larger): weight decay."""
    return _half_cosine(start, final, _clamp(step, total_steps) / total_steps)


def linear(step: int, *, start: float, final: float, total_steps: int) -> float:
    """A straight line from `start` to `final`: momentum of the EMA."""
    return start + _clamp(step, total_steps) / total_steps * (final - start)


def _half_cosine(start: float, final: float, progress: float) -> float:
    return final + (start - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


def _clamp(step: int, total_steps: int) -> int:
    if step < 0 or total_steps < 1:
        raise ValueError(f"a schedule needs step >= 0 and total_steps >= 1, got step {step}, total_steps {total_steps}")
    return min(step, total_steps)
