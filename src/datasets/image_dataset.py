"""Images in class folders, as clips of one frame or of one frame repeated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from src.datasets.clip_reader import Sample, Transform, to_tensor
from src.datasets.decoding.decode import DecodeError
from src.datasets.lists import PackedStrings, read_list, resolve
from src.utils.errors import UserError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".gif"})


class ImageDataset:
    """Images of one folder per class, or of `path label` lists.

    Args:
        roots: folders whose sub-folders, in order of their names, are classes 0, 1, ...; or lists.
        transform: applied to each image as frames (1, H, W, C).
        num_frames: times the image is repeated, for encoders that expect a video.

    Raises:
        UserError: a folder is missing or holds no class folders with images.
    """

    def __init__(self, roots: Sequence[str | Path], transform: Transform | None = None, num_frames: int = 1) -> None:
        found = [_scan(Path(root)) if Path(root).is_dir() else _listed(Path(root)) for root in roots]
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


def read_image(path: str) -> np.ndarray:
    """An image file as RGB uint8 (H, W, 3). Raises DecodeError."""
    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))
    except FileNotFoundError:
        raise DecodeError(path, "missing", "no such file") from None
    except IsADirectoryError:
        raise DecodeError(path, "directory", "is a folder, not a file") from None
    except PermissionError:
        raise DecodeError(path, "permission", "may not be read") from None
    except UnidentifiedImageError:
        raise DecodeError(path, "unreadable", "not an image of a known format") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DecodeError(path, "corrupt", str(error)) from None


def _scan(root: Path) -> tuple[list[str], list[int]]:
    paths: list[str] = []
    labels: list[int] = []
    classes = sorted(p for p in root.iterdir() if p.is_dir())
    for label, folder in enumerate(classes):
        images = sorted(str(p) for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        paths.extend(images)
        labels.extend([label] * len(images))
    if not paths:
        raise UserError(f"image folder {root} has no class folders with images in them ({len(classes)} sub-folders)")
    return paths, labels


def _listed(path: Path) -> tuple[list[str], list[int]]:
    if not path.exists():
        raise UserError(f"image folder {path} does not exist; it should hold one folder per class")
    paths, labels = read_list(path)
    return [resolve(p, str(path.resolve().parent)) for p in paths], labels
