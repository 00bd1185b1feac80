"""Images in class folders, as clips of one frame or of one frame repeated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from src.datasets.clip_reader import Sample, Transform, to_tensor
from src.datasets.decoding.suffixes import IMAGE_SUFFIXES
from src.datasets.folders import find_files, is_hidden, leads_up, log_left_out
from src.datasets.image_file import read_image
from src.datasets.lists import PackedStrings, list_folders, read_list, resolve
from src.utils.errors import UserError


class ImageDataset:
    """Images of one folder per class, or of `path label` lists.

    Args:
        roots: folders of class folders, or lists. A class is a folder that is not hidden and holds an image.
        transform: applied to each image as frames (1, H, W, C).
        num_frames: times the image is repeated, for encoders that expect a video.
        classes: names of the class folders that are classes 0, 1, ..., as those of the training set in evaluation;
            None: those of all `roots`, in the order of their names.
        labelled: as `read_list`.

    Attributes:
        classes: the names of the classes; None where there are lists only.

    Raises:
        UserError: a folder is missing, holds no class folders with images, or a class that is not in `classes`.
    """

    def __init__(
        self,
        roots: Sequence[str | Path],
        transform: Transform | None = None,
        num_frames: int = 1,
        classes: Sequence[str] | None = None,
        labelled: bool = True,
    ) -> None:
        scanned = {str(root): _scan(Path(root)) for root in roots if Path(root).is_dir()}
        self.classes = classes
        if scanned and classes is None:
            self.classes = sorted({name for folders in scanned.values() for name in folders})
        found = []
        for root in map(str, roots):
            if root in scanned:
                found.append(_numbered(root, scanned[root], self.classes or ()))
            else:
                found.append(_listed(Path(root), labelled))
        self.sizes = [len(paths) for paths, _ in found]
        self._paths = PackedStrings(p for paths, _ in found for p in paths)
        self.labels = np.array([label for _, labels in found for label in labels], dtype=np.int64)
        self._transform, self._num_frames = transform or to_tensor, num_frames

    def __len__(self) -> int:
        return len(self._paths)

    def path(self, index: int) -> str:
        """The file of a sample."""
        return self._paths[index]

    def load(self, index: int, seed: int) -> Sample:
        """One sample; everything random about it comes from `seed`. Raises DecodeError."""
        frames = read_image(self.path(index))[None]
        views = self._transform(frames, np.random.default_rng(seed))
        clips = [v.expand(-1, self._num_frames, -1, -1) for v in (views if isinstance(views, list) else [views])]
        return clips, int(self.labels[index]), [np.zeros(self._num_frames, dtype=np.int64)]


def _scan(root: Path) -> dict[str, list[str]]:
    """The images of each class folder that has any, by its name."""
    left_out: Counter[str] = Counter()
    folders = []
    try:
        for path in sorted(root.iterdir()):
            if is_hidden(path.name):
                left_out["hidden"] += 1
            elif not path.is_dir():
                left_out["beside the class folders"] += 1
            elif leads_up(path):
                left_out["links to a folder above them"] += 1
            else:
                folders.append(path)
    except OSError as error:
        raise UserError(f"image folder {root} cannot be read: {error.strerror}") from None
    seen: set[str] = set()  # an image has one class: that of the folder itself, before those of links to it
    folders.sort(key=lambda path: (path.is_symlink(), path.name))
    images = {path.name: [str(p) for p in find_files(path, IMAGE_SUFFIXES, left_out, seen)] for path in folders}
    found = {name: images[name] for name in sorted(images) if images[name]}
    if not found:
        raise UserError(f"image folder {root} has no class folders with images in them ({len(folders)} sub-folders)")
    if empty := len(images) - len(found):
        left_out["sub-folders without images"] += empty
    log_left_out(root, sum(map(len, found.values())), f"images in {len(found)} class folders", left_out)
    return found


def _numbered(root: str, found: dict[str, list[str]], classes: Sequence[str]) -> tuple[list[str], list[int]]:
    """Paths and labels of the class folders of one root."""
    numbers = {name: number for number, name in enumerate(classes)}
    if unknown := sorted(found.keys() - numbers.keys()):
        named = ", ".join(map(repr, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        raise UserError(
            f"image folder {root} has the class folders {named}, which the training set lacks (or has no images of): "
            "remove them, or add them there"
        )
    paths = [path for images in found.values() for path in images]
    return paths, [numbers[name] for name, images in found.items() for _ in images]


def _listed(path: Path, labelled: bool) -> tuple[list[str], list[int]]:
    if not path.exists():
        raise UserError(f"image folder {path} does not exist; it should hold one folder per class")
    paths, labels = read_list(path, labelled)
    folders = list_folders(path)
    return [resolve(p, folders) for p in paths], labels
