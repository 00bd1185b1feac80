"""Twelve scenes of Meta-World, each with a task and the one that undoes it: 24 classes, label 2 x scene + direction.

Both tasks of a scene use the same objects, so a class cannot be told by what is there, only by what happens.
Meta-World: Yu et al. 2019 (arXiv 1910.10897); McLean et al. 2025 (arXiv 2505.11289).
"""

from __future__ import annotations

from typing import NamedTuple


class Pair(NamedTuple):
    """A scene, and Meta-World's names of its two tasks."""

    scene: str
    forth: str
    back: str


PAIRS: tuple[Pair, ...] = (
    Pair("door", "door-open-v3", "door-close-v3"),
    Pair("drawer", "drawer-open-v3", "drawer-close-v3"),
    Pair("window", "window-open-v3", "window-close-v3"),
    Pair("faucet", "faucet-open-v3", "faucet-close-v3"),
    Pair("lock", "door-lock-v3", "door-unlock-v3"),
    Pair("handle", "handle-press-v3", "handle-pull-v3"),
    Pair("side_handle", "handle-press-side-v3", "handle-pull-side-v3"),
    Pair("coffee", "coffee-push-v3", "coffee-pull-v3"),
    Pair("plate", "plate-slide-v3", "plate-slide-back-v3"),
    Pair("side_plate", "plate-slide-side-v3", "plate-slide-back-side-v3"),
    Pair("assembly", "assembly-v3", "disassemble-v3"),
    Pair("stick", "stick-push-v3", "stick-pull-v3"),
)
TASKS: tuple[str, ...] = tuple(task for pair in PAIRS for task in (pair.forth, pair.back))
CLASSES: tuple[str, ...] = tuple(task.removesuffix("-v3").replace("-", "_") for task in TASKS)
