"""Lists of labelled samples: read, checked against the number of classes, cut down, split into fit and inner val.

Legend: M samples.
"""

from __future__ import annotations

import os
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.datasets.dataset_types import SHARDED
from src.datasets.embedded.generate import ensure_embedded
from src.datasets.embedded.rendered import check_rendered
from src.datasets.embedded.scenes import EMBEDDED
from src.datasets.image_dataset import ImageDataset
from src.datasets.list_lines import format_line
from src.datasets.lists import list_folders, read_list, resolve
from src.datasets.webdataset.web_dataset import shard_samples
from src.utils.errors import UserError

INNER_VAL_FRACTION = 0.1  # of the training samples, held out of fitting to choose between several heads


@dataclass(frozen=True)
class SampleList:
    """Samples in order: `source` is what the data loader is given, `files` and `labels` (M,) are what it will find.

    `classes` are the names of class folders, by which the loader has to number those of `source`; None for lists.
    """

    source: Path
    files: list[str]
    labels: np.ndarray
    classes: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.files)

    def subset(self, ids: np.ndarray, path: Path) -> SampleList:
        """The samples `ids`, written to a list of their own at `path`, atomically."""
        files, labels = [self.files[i] for i in ids], self.labels[ids]
        temporary = path.with_name(path.name + ".tmp")
        # Not resolve(): what a link is called may be all that says where its path ends, and what kind of file it is.
        lines = (format_line(os.path.abspath(file), label) for file, label in zip(files, labels))  # noqa: PTH100
        temporary.write_text("".join(lines), encoding="utf-8", errors="surrogateescape")
        temporary.replace(path)
        return SampleList(path, files, labels, self.classes)


def read_sample_list(
    source: str | Path,
    dataset_type: str,
    key: str,
    classes: Sequence[str] | None = None,
    labelled: bool = True,
    label_key: str | None = None,
) -> SampleList:
    """Files and labels of a list, of a folder of class folders, or of shards; `key` is where the config names it.

    The embedded data set is written first where it is absent. `classes`, those of the training set, number the class
    folders of a validation set. `labelled` is `read_list`'s and WebVideoDataset's, `label_key` the latter's. Raises
    UserError when missing, malformed or empty, and for a class folder that is not among `classes`.
    """
    if dataset_type in SHARDED:
        check_rendered([source], dataset_type)
        files, labels = shard_samples(str(source), key, labelled, label_key)
        return SampleList(Path(source), files, np.asarray(labels, dtype=np.int64))
    source = Path(source)
    if dataset_type in EMBEDDED and not source.exists():
        ensure_embedded(source, dataset_type)
    if not source.exists():
        raise UserError(f"{key}: {source} does not exist")
    if dataset_type == "ImageDataset":
        images = ImageDataset([source], classes=classes, labelled=labelled)
        return SampleList(source, [images.path(i) for i in range(len(images))], images.labels, images.classes)
    files, labels = read_list(source, labelled)
    folders = list_folders(source)
    return SampleList(source, [resolve(file, folders) for file in files], np.asarray(labels, dtype=np.int64))


def check_labels(samples: SampleList, num_classes: int) -> None:
    """Raise UserError unless all labels are in 0 .. num_classes - 1."""
    low, high = int(samples.labels.min()), int(samples.labels.max())
    if low < 0:
        raise UserError(f"{samples.source}: labels run from {low} to {high}: data.num_classes counts from 0")
    if high >= num_classes:
        raise UserError(
            f"{samples.source}: labels run from {low} to {high}, which does not fit data.num_classes={num_classes} "
            f"(labels 0 to {num_classes - 1}): set data.num_classes={high + 1} or mend the list"
        )


def unseen_labels(train: SampleList, val: SampleList) -> list[int]:
    """Labels of `val` that `train` lacks, ascending: on their samples no probe can be right."""
    return np.setdiff1d(val.labels, train.labels).tolist()


def describe_unseen(train: SampleList, val: SampleList) -> str:
    """Which labels those are, and how many samples have them; empty where there are none."""
    labels = unseen_labels(train, val)
    if not labels:
        return ""
    named = ", ".join(map(str, labels[:5])) + (", ..." if len(labels) > 5 else "")
    count = int(np.isin(val.labels, labels).sum())
    classes = f"{len(labels)} class{'es' if len(labels) > 1 else ''} ({named})"
    return f"labels of {val.source} that {train.source} lacks: {classes}, {count} of {len(val)} samples"


def draw_subset(samples: Sized, count: int, seed: int) -> np.ndarray:
    """`count` positions of samples drawn at random, ascending; all if there are no more."""
    if count >= len(samples):
        return np.arange(len(samples))
    return np.sort(np.random.default_rng((seed, 1)).choice(len(samples), count, replace=False))


def hold_out(labels: np.ndarray, seed: int, share: float = INNER_VAL_FRACTION) -> tuple[np.ndarray, np.ndarray]:
    """Split positions into (to fit, held out): of each class with more than one sample, a share of at least one.

    Raises UserError if nothing can be held out.
    """
    rng = np.random.default_rng((seed, 2))
    held: list[np.ndarray] = []
    for label in np.unique(labels):
        mine = rng.permutation(np.flatnonzero(labels == label))
        held.append(mine[: min(len(mine) - 1, max(1, round(share * len(mine))))])
    out = np.sort(np.concatenate(held))
    if not len(out):
        raise UserError(
            "several learning rates or weight decays need training samples to choose between them, "
            "but no class has two: set one optimization.lr and weight_decay"
        )
    return np.setdiff1d(np.arange(len(labels)), out), out
