"""Augmentation for pretraining: V-JEPA's options, cropping before resizing, on uint8 frames.

Shapes: frames (T, H, W, C) uint8 -> clip (C, T, crop_size, crop_size) uint8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from src.datasets.augment import RandAugment, random_erase
from src.datasets.transforms import Box, crop_resize, mirror, random_box, to_clip


@dataclass(frozen=True)
class PretrainTransform:
    """One clip's augmentation.

    Attributes:
        crop_size: side of the clip in pixels.
        scale: area of the crop as a share of the frame, lowest and highest.
        ratio: width / height of the crop, lowest and highest.
        horizontal_flip: mirror every other clip.
        auto_augment: RandAugment (two operations, magnitude 7), the same for all frames of a clip.
        motion_shift: let the crop glide from one random box to another over the clip.
        reprob: probability of erasing one random box, the same in all frames, with noise.
    """

    crop_size: int
    scale: tuple[float, float] = (0.3, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    horizontal_flip: bool = True
    auto_augment: bool = False
    motion_shift: bool = False
    reprob: float = 0.0

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
        """Augment one clip; every choice comes from rng."""
        if self.auto_augment:
            frames = RandAugment()(frames, rng)
        frames = self._crop(frames, rng)
        if self.horizontal_flip and rng.random() < 0.5:
            frames = mirror(frames)
        if self.reprob > 0 and rng.random() < self.reprob:
            frames = random_erase(frames, rng)
        return to_clip(frames)

    def _crop(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width = frames.shape[1:3]
        size = (self.crop_size, self.crop_size)
        first = random_box(height, width, self.scale, self.ratio, rng)
        if not self.motion_shift:
            return crop_resize(frames, first, size)
        last = random_box(height, width, self.scale, self.ratio, rng)
        boxes = np.linspace(first, last, len(frames)).round().astype(int)
        moved = [crop_resize(frames[i : i + 1], _box(box), size) for i, box in enumerate(boxes)]
        return np.concatenate(moved)


def _box(values: np.ndarray) -> Box:
    top, left, height, width = (int(v) for v in values)
    return top, left, height, width


def make_transforms(
    crop_size: int = 224,
    random_resize_scale: Sequence[float] = (0.3, 1.0),
    random_resize_aspect_ratio: Sequence[float] = (3 / 4, 4 / 3),
    horizontal_flip: bool = True,
    auto_augment: bool = False,
    motion_shift: bool = False,
    reprob: float = 0.0,
) -> PretrainTransform:
    """The pretraining augmentation for the keys of the `data_aug` section."""
    return PretrainTransform(
        crop_size=crop_size,
        scale=(float(random_resize_scale[0]), float(random_resize_scale[1])),
        ratio=(float(random_resize_aspect_ratio[0]), float(random_resize_aspect_ratio[1])),
        horizontal_flip=horizontal_flip,
        auto_augment=auto_augment,
        motion_shift=motion_shift,
        reprob=reprob,
    )
