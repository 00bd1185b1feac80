"""The grid of tokens that a clip is cut into.

Tokens are in raster order, time slowest: index = (t * H + h) * W + w.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from src.utils.errors import UserError


class Grid(NamedTuple):
    """Size of a clip in tokens: tubelets in time, patches in height, patches in width."""

    t: int
    h: int
    w: int

    @property
    def area(self) -> int:
        """Tokens of one tubelet, P = H * W."""
        return self.h * self.w

    @property
    def size(self) -> int:
        """Tokens of the clip, N = T * H * W."""
        return self.t * self.area

    @classmethod
    def from_clip(
        cls,
        crop_size: int | Sequence[int],
        num_frames: int,
        patch_size: int | Sequence[int],
        tubelet_size: int,
    ) -> Grid:
        """Divide a clip (pixels, frames) into tokens; UserError when it does not divide."""
        height, width = _pair(crop_size, "crop_size")
        patch_h, patch_w = _pair(patch_size, "patch_size")
        if min(height, width, patch_h, patch_w, num_frames, tubelet_size) < 1:
            raise UserError("data: crop_size, patch_size, num_frames and tubelet_size must all be at least 1")
        for side, patch in ((height, patch_h), (width, patch_w)):
            if side % patch:
                raise UserError(
                    f"data.crop_size {side} is not divisible by data.patch_size {patch}; "
                    f"the nearest crops that are: {_neighbours(side, patch)}"
                )
        if num_frames % tubelet_size:
            raise UserError(
                f"data.num_frames {num_frames} is not divisible by data.tubelet_size {tubelet_size}; "
                f"the nearest lengths that are: {_neighbours(num_frames, tubelet_size)}"
            )
        return cls(num_frames // tubelet_size, height // patch_h, width // patch_w)


def _pair(value: int | Sequence[int], name: str) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    if len(value) != 2:
        raise UserError(f"data.{name} must be one number or a pair (height, width), got {value!r}")
    return int(value[0]), int(value[1])


def _neighbours(size: int, step: int) -> str:
    below, above = size // step * step, (size // step + 1) * step
    return f"{below} or {above}" if below else str(above)


def token_grid(num_frames: int, img_size: int | tuple[int, int], patch_size: int, tubelet_size: int) -> Grid:
    """Grid of tokens of a clip of `num_frames` frames of `img_size` pixels.

    Raises UserError if the clip cannot be cut into whole patches and tubelets.
    """
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    if height % patch_size or width % patch_size:
        raise UserError(
            f"frames of {height}x{width} pixels cannot be cut into whole patches of {patch_size}: "
            f"choose a crop size that is a multiple of {patch_size}"
        )
    if num_frames < tubelet_size or num_frames % tubelet_size:
        raise UserError(
            f"{num_frames} frames cannot be cut into whole tubelets of {tubelet_size}: "
            f"choose a number of frames that is a multiple of {tubelet_size}"
        )
    return Grid(num_frames // tubelet_size, height // patch_size, width // patch_size)
