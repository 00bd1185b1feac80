"""RandAugment and random erasing for uint8 clips, the same in every frame.

RandAugment: Cubuk et al. 2020, with magnitudes that all grow with the strength of the operation. Random erasing:
Zhong et al. 2017, with per-pixel noise. Frames are (T, H, W, C) uint8 arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

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
