"""Videos named in lists, as clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from src.datasets.clip_reader import ClipReader, Sample
from src.datasets.lists import PackedStrings, list_folders, read_list, resolve


class VideoDataset:
    """Clips of the videos in one or several lists.

    Args:
        data_paths: `path label` text files or .npy arrays of paths (src/datasets/lists.py).
        reader: how the clips of a video are read.
        labelled: as `read_list`.

    Raises:
        UserError: a list is missing, empty or has a line that cannot be read.
    """

    def __init__(self, data_paths: Sequence[str | Path], reader: ClipReader, labelled: bool = True) -> None:
        lists = [read_list(path, labelled) for path in data_paths]
        self.sizes = [len(paths) for paths, _ in lists]
        self._starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        self._folders = [list_folders(path) for path in data_paths]
        self._paths = PackedStrings(p for paths, _ in lists for p in paths)
        self.labels = np.array([label for _, labels in lists for label in labels], dtype=np.int64)
        self._reader = reader

    def __len__(self) -> int:
        return len(self._paths)

    def path(self, index: int) -> str:
        """The file of a sample."""
        return resolve(self._paths[index], self._folders[int(np.searchsorted(self._starts, index, side="right")) - 1])

    def load(self, index: int, seed: int) -> Sample:
        """One sample; everything random about it comes from `seed`. Raises DecodeError."""
        path = self.path(index)
        self._reader.check_size(path, _size(path))
        return self._reader.read(path, path, int(self.labels[index]), seed)


def _size(path: str) -> int:
    """Bytes of a file; 0 for one that cannot be asked, as opening it will say what is wrong."""
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0
