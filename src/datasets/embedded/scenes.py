"""What the embedded data sets show: their scenes by name, the classes of each, and a clip by its number.

Three kinds of scene: `digits`, handwritten digits that move over a panning, cluttered background (digit_scene.py);
`drift`, textures that drift (drift_scene.py); and `slow_drift`, the same at two fifths of the speed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from src.datasets.embedded.digit_scene import CLASSES, SceneConfig, render_clip
from src.datasets.embedded.drift_scene import DIRECTIONS, DriftConfig, render_drift
from src.datasets.embedded.metaworld import tasks as metaworld
from src.datasets.embedded.store import SPLITS

VAL_SHARE = 0.25  # of the digit images of each digit


@functools.cache
def digit_images(split: str) -> tuple[np.ndarray, ...]:
    """The split's handwritten digits: for each digit 0-9 an array (n, 8, 8) in [0, 1]. No image is in both splits."""
    from sklearn.datasets import load_digits  # slow to import, and not needed once the set is written

    digits = load_digits()
    order = np.random.default_rng(1797).permutation(len(digits.target))
    found = []
    for digit in range(10):
        mine = order[digits.target[order] == digit]
        cut = round(VAL_SHARE * len(mine))
        found.append(digits.images[mine[:cut] if split == "val" else mine[cut:]] / 16)
    return tuple(found)


Scene = SceneConfig | DriftConfig
SCENES: dict[str, Scene] = {"digits": SceneConfig(), "drift": DriftConfig(), "slow_drift": DriftConfig(speed=0.3)}
# What configs call them (src/datasets/dataset_types.py).
EMBEDDED = {"MotionDataset": "digits", "DriftDataset": "drift", "SlowDriftDataset": "slow_drift"}


def scene_classes(scene: Scene) -> tuple[str, ...]:
    """Names of the classes of a scene."""
    return DIRECTIONS if isinstance(scene, DriftConfig) else CLASSES


def classes_of(dataset_type: str) -> tuple[str, ...]:
    """Names of the classes of an embedded set, by what configs call it; none of other data."""
    if dataset_type == "MetaWorldDataset":
        return metaworld.CLASSES
    return scene_classes(SCENES[EMBEDDED[dataset_type]]) if dataset_type in EMBEDDED else ()


def label_lists(scene: Scene) -> tuple[str, ...]:
    """What is added to the name of a split to name the list of each of a clip's labels."""
    return ("",) if isinstance(scene, DriftConfig) else ("", "_digit")


def draw_labels(split: str, index: int, seed: int, scene: Scene) -> tuple[int, ...]:
    """Class of clip `index`, and of digits which: as many clips in a row as there are classes have every class once."""
    classes = len(scene_classes(scene))
    block, place = divmod(index, classes)
    order = np.random.default_rng([seed, SPLITS.index(split), block]).permutation(classes)
    label = int(order[place])
    return (label,) if isinstance(scene, DriftConfig) else (label, (block + label) % 10)


def render_index(split: str, index: int, seed: int, scene: Scene) -> tuple[np.ndarray, tuple[int, ...]]:
    """Clip `index` of a split: (uint8 (T, H, W, 3), its labels), the same whatever else is rendered."""
    labels = draw_labels(split, index, seed, scene)
    rng = np.random.default_rng([seed, SPLITS.index(split), index, 1])
    if isinstance(scene, DriftConfig):
        return render_drift(rng, labels[0], scene), labels
    images = digit_images(split)[labels[1]]
    return render_clip(rng, labels[0], images[rng.integers(len(images))], scene), labels


def render_split(split: str, count: int, seed: int, scene: Scene) -> Iterator[tuple[Any, ...]]:
    """The first `count` clips of a split, in memory, without files: (uint8 (T, H, W, 3), label[, digit])."""
    for index in range(count):
        clip, labels = render_index(split, index, seed, scene)
        yield clip, *labels
