"""Augmentation of uint8 clips: V-JEPA's crop, flip, RandAugment and random erasing, each the same in every frame.

RandAugment: Cubuk et al. 2020, with magnitudes that all grow with the strength of the operation. Random erasing:
Zhong et al. 2017, with per-pixel noise. Frames are (T, H, W, C) uint8 arrays; a clip is (C, T, S, S) uint8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

from src.datasets.transforms import Box, crop_resize, mirror, random_box, to_clip

_FILL = (124, 116, 104)  # ImageNet's mean colour
# An operation takes an image, a strength in [0, 1] and a sign, -1 or 1.
Operation = Callable[[Image.Image, float, int], Image.Image]


def _affine(image: Image.Image, a: float, b: float, c: float, d: float, e: float, f: float) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR, fillcolor=_FILL
    )


def _brighten_below(image: Image.Image, amount: int) -> Image.Image:
    return image.point([min(v + amount, 255) if v < 128 else v for v in range(256)] * len(image.getbands()))


OPERATIONS: dict[str, Operation] = {
    "auto_contrast": lambda im, m, s: ImageOps.autocontrast(im),
    "equalize": lambda im, m, s: ImageOps.equalize(im),
    "invert": lambda im, m, s: ImageOps.invert(im),
    "rotate": lambda im, m, s: im.rotate(30 * m * s, Image.Resampling.BILINEAR, fillcolor=_FILL),
    "posterize": lambda im, m, s: ImageOps.posterize(im, max(4 - int(4 * m), 1)),
    "solarize": lambda im, m, s: ImageOps.solarize(im, 256 - int(256 * m)),
    "solarize_add": lambda im, m, s: _brighten_below(im, int(110 * m)),
    "color": lambda im, m, s: ImageEnhance.Color(im).enhance(1 + 0.9 * m * s),
    "contrast": lambda im, m, s: ImageEnhance.Contrast(im).enhance(1 + 0.9 * m * s),
    "brightness": lambda im, m, s: ImageEnhance.Brightness(im).enhance(1 + 0.9 * m * s),
    "sharpness": lambda im, m, s: ImageEnhance.Sharpness(im).enhance(1 + 0.9 * m * s),
    "shear_x": lambda im, m, s: _affine(im, 1, 0.3 * m * s, 0, 0, 1, 0),
    "shear_y": lambda im, m, s: _affine(im, 1, 0, 0, 0.3 * m * s, 1, 0),
    "translate_x": lambda im, m, s: _affine(im, 1, 0, 0.45 * m * s * im.width, 0, 1, 0),
    "translate_y": lambda im, m, s: _affine(im, 1, 0, 0, 0, 1, 0.45 * m * s * im.height),
}


@dataclass(frozen=True)
class RandAugment:
    """Random operations on a clip, each with one strength for all frames.

    Attributes:
        num_ops: operations tried, drawn without replacement, each applied with probability 1/2.
        magnitude: mean strength, 0 to 10.
        magnitude_std: standard deviation of the strength.
    """

    num_ops: int = 4
    magnitude: float = 7.0
    magnitude_std: float = 0.5

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(T, H, W, C) -> the same shape."""
        names = list(OPERATIONS)
        chosen: list[tuple[Operation, float, int]] = []
        for i in rng.choice(len(names), self.num_ops, replace=False):
            apply, strength = rng.random() < 0.5, rng.normal(self.magnitude, self.magnitude_std) / 10
            sign = 1 if rng.random() < 0.5 else -1
            if apply:
                chosen.append((OPERATIONS[names[int(i)]], float(np.clip(strength, 0, 1)), sign))
        if not chosen:
            return frames
        return np.stack([_apply(frame, chosen) for frame in frames])


def _apply(frame: np.ndarray, chosen: list[tuple[Operation, float, int]]) -> np.ndarray:
    image = Image.fromarray(frame)
    for operation, strength, sign in chosen:
        image = operation(image, strength, sign)
    return np.asarray(image)


def random_erase(
    frames: np.ndarray,
    rng: np.random.Generator,
    area: tuple[float, float] = (0.02, 1 / 3),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> np.ndarray:
    """A copy with one box, the same in all frames, filled with noise; `area` is its share of the frame."""
    height, width = frames.shape[1:3]
    for _ in range(10):
        target = rng.uniform(*area) * height * width
        ratio = np.exp(rng.uniform(np.log(aspect[0]), np.log(aspect[1])))
        h, w = round(float(np.sqrt(target * ratio))), round(float(np.sqrt(target / ratio)))
        if 0 < h < height and 0 < w < width:
            top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
            noise = rng.integers(0, 256, (len(frames), h, w, frames.shape[3]), dtype=np.uint8)
            erased = frames.copy()
            erased[:, top : top + h, left : left + w] = noise
            return erased
    return frames


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
