"""Frames to clips: crop first, resize what is left, stay uint8; normalising happens on the device.

Shapes: frames (T, H, W, C) uint8 arrays come in; clips (C, T, h, w) uint8 tensors go out, as views of channels-last
memory, which is how the decoder writes and the resize kernel reads. Every random choice comes from the generator
passed in.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Box = tuple[int, int, int, int]  # top, left, height, width, in pixels


def crop_resize(frames: np.ndarray, box: Box, size: tuple[int, int]) -> np.ndarray:
    """The box of every frame, resized to (h, w): bilinear, antialiased. Touches only the pixels of the box."""
    top, left, height, width = box
    if (height, width) == (frames.shape[1], frames.shape[2]) == size:
        return frames
    crop = np.ascontiguousarray(frames[:, top : top + height, left : left + width])
    if (height, width) == size:
        return crop
    pixels = torch.from_numpy(crop).permute(0, 3, 1, 2)
    resized = F.interpolate(pixels, size=size, mode="bilinear", antialias=True)
    return resized.permute(0, 2, 3, 1).contiguous().numpy()


def mirror(frames: np.ndarray) -> np.ndarray:
    """Frames (T, H, W, C) seen in a mirror. Four times as fast in torch as by a negative stride in numpy."""
    return torch.from_numpy(frames).flip(2).numpy()


def to_clip(frames: np.ndarray) -> torch.Tensor:
    """(T, H, W, C) -> (C, T, H, W), without a copy where the frames are contiguous."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2)


def random_box(
    height: int, width: int, scale: Sequence[float], ratio: Sequence[float], rng: np.random.Generator
) -> Box:
    """A box of random area (a share of the frame) and aspect ratio (width / height, log-uniform), as for Inception.

    After ten boxes that do not fit: the largest centred one whose aspect ratio is allowed (Szegedy et al. 2015).
    """
    for _ in range(10):
        area = height * width * rng.uniform(scale[0], scale[1])
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
    if width / height < ratio[0]:
        w, h = width, min(round(width / ratio[0]), height)
    elif width / height > ratio[1]:
        w, h = min(round(height * ratio[1]), width), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@dataclass(frozen=True)
class EvalTransform:
    """Square views of frames whose short side is resized first, so that the views span the long side.

    One view is the centre; two are both ends; three add the centre between them; n are spaced evenly.

    Attributes:
        size: side of a view in pixels.
        num_views: views per clip.
        short_side: short side the frames are resized to before cropping; None means `size`.
    """

    size: int
    num_views: int = 1
    short_side: int | None = None

    def __call__(self, frames: np.ndarray, rng: np.random.Generator | None = None) -> list[torch.Tensor]:
        """Frames (T, H, W, C) -> num_views clips (C, T, size, size)."""
        height, width = frames.shape[1:3]
        scale = min(height, width) / (self.short_side or self.size)  # source pixels per pixel of the view
        side = min(round(self.size * scale), height, width)
        views = []
        for i in range(self.num_views):
            place = 0.5 if self.num_views == 1 else i / (self.num_views - 1)
            top, left = (height - side) // 2, (width - side) // 2
            if width >= height:
                left = round((width - side) * place)
            else:
                top = round((height - side) * place)
            views.append(to_clip(crop_resize(frames, (top, left, side, side), (self.size, self.size))))
        return views


@dataclass(frozen=True)
class TrainTransform:
    """Random resized crop and horizontal flip: what a supervised probe trains on.

    Attributes:
        size: side of the clip in pixels.
        scale, ratio: area (share of the frame) and aspect ratio of the crop.
        horizontal_flip: flip every other clip; wrong where the label names a side.
    """

    size: int
    scale: tuple[float, float] = (0.3, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    horizontal_flip: bool = True

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
        """Frames (T, H, W, C) -> clip (C, T, size, size)."""
        box = random_box(frames.shape[1], frames.shape[2], self.scale, self.ratio, rng)
        frames = crop_resize(frames, box, (self.size, self.size))
        if self.horizontal_flip and rng.random() < 0.5:
            frames = mirror(frames)
        return to_clip(frames)


def normalize(
    clips: torch.Tensor,
    dtype: torch.dtype = torch.float32,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> torch.Tensor:
    """uint8 clips (B, C, T, H, W) or (C, T, H, W) -> normalised ones of `dtype`, contiguous, on the clips' device."""
    offset, scale = _constants(tuple(mean), tuple(std), clips.device)
    return torch.addcmul(offset, clips.contiguous().float(), scale).to(dtype)


@functools.lru_cache(maxsize=8)
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Offset and scale (C, 1, 1, 1) of `normalize`. Made once: to make them on a GPU waits for it."""
    with torch.inference_mode(False):  # kept, and perhaps used where gradients are wanted
        std_C, mean_C = torch.tensor(std).view(-1, 1, 1, 1), torch.tensor(mean).view(-1, 1, 1, 1)
        return (-mean_C / std_C).to(device), (1.0 / (255.0 * std_C)).to(device)
