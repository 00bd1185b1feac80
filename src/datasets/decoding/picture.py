"""From decoded frames to the pictures that a player shows: RGB, upright, with square pixels."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np

from src.datasets.decoding.errors import DecodeError
from src.datasets.decoding.orientation import Orientation, orientation

Fit = Callable[[int, int], tuple[int, int]]  # (width, height) as shown -> (width, height) wanted

# ITU-T H.273 table 4: matrices that swscale does not know, and would read as BT.601.
_UNREAD_MATRICES = {
    8: "YCgCo",
    10: "BT.2020 with constant luminance",
    11: "SMPTE ST 2085",
    12: "of the primaries",
    13: "of the primaries",
    14: "ICtCp",
    15: "IPT-C2",
    16: "YCgCo-Re",
    17: "YCgCo-Ro",
}
_WIDEST_PIXEL = 8  # beyond it a pixel's shape is a damaged number


class PictureConverter:
    """PyAV's frames to RGB uint8 arrays (H, W, 3), all of one size, which the first frame decides.

    Args:
        label: what errors call the video.
        pixel: width of a pixel by its height, as the file says; None and 0 are square.
        fit: scales pictures to another size, averaging over areas.
        upright: how to turn them; None: as the first frame says.

    Calling it raises DecodeError (unreadable) for what cannot be shown as it is meant: an odd angle, an impossible
    pixel, a colour matrix that is not read. It raises PyAV's own errors too.
    """

    def __init__(
        self, label: str, pixel: Fraction | None, fit: Fit | None = None, upright: Orientation | None = None
    ) -> None:
        import av

        self._label, self._pixel, self._fit = label, pixel or Fraction(1), fit
        self._reformatter = av.video.reformatter.VideoReformatter()
        self._how: dict[str, Any] = _one_thread() | ({"interpolation": "AREA"} if fit else {})
        self._size: tuple[int, int] | None = None  # as stored, before it is turned
        self._orientation = upright

    def __call__(self, frame: Any) -> np.ndarray:
        if self._size is None:
            self._size = self._look_at(frame)
        width, height = self._size
        plane = self._reformatter.reformat(frame, width, height, "rgb24", **self._how).planes[0]
        # PyAV's planes are buffers, which its types do not say.
        rows = np.frombuffer(plane, np.uint8).reshape(height, plane.line_size)  # type: ignore[call-overload]
        assert self._orientation is not None
        return self._orientation.apply(rows[:, : width * 3].reshape(height, width, 3))

    def _look_at(self, frame: Any) -> tuple[int, int]:
        """The size (width, height) to convert to, before the picture is turned."""
        try:
            if int(frame.colorspace) in _UNREAD_MATRICES and not frame.format.is_rgb:
                raise ValueError(f"its colour matrix, {_UNREAD_MATRICES[int(frame.colorspace)]}, is not read")
            self._orientation = self._orientation or orientation(frame)
            width, height = squared(frame.width, frame.height, self._pixel)
        except ValueError as error:
            raise DecodeError(self._label, "unreadable", str(error)) from None
        if self._fit is None:
            return width, height
        if self._orientation.transpose:
            height, width = self._fit(height, width)
            return width, height
        return self._fit(width, height)


def squared(width: int, height: int, pixel: Fraction) -> tuple[int, int]:
    """(width, height) with square pixels: one of the two grows. A difference of 1 % is left as it is.

    Raises ValueError for a shape that no picture has.
    """
    if not Fraction(1, _WIDEST_PIXEL) <= pixel <= _WIDEST_PIXEL:
        raise ValueError(f"has pixels of {pixel.numerator} x {pixel.denominator}")
    if abs(pixel - 1) <= Fraction(1, 100):
        return width, height
    return (round(width * pixel), height) if pixel > 1 else (width, round(height / pixel))


@cache
def _one_thread() -> dict[str, int]:
    """Arguments that keep PyAV's colour conversion in this thread, which before PyAV 17 it always was.

    Starting threads for it takes 14 times as long as converting a frame of 64 pixels, and twice as long for 640 x 360.
    """
    import av

    try:
        av.video.reformatter.VideoReformatter().reformat(av.VideoFrame(16, 16, "yuv420p"), format="rgb24", threads=1)
    except TypeError:
        return {}
    return {"threads": 1}
