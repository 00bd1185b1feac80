"""How a stored picture is turned before it is shown: the display matrix of phones and front cameras.

ISO/IEC 14496-12 section 6.2.2: a pixel at (x, y) is shown at (a x + c y, b x + d y), moved back into view.
"""

from __future__ import annotations

import math
import struct
from typing import Any, NamedTuple

import numpy as np

_TOLERANCE = math.sin(math.radians(1.0))  # a degree: what is closer to a quarter turn is one


class Orientation(NamedTuple):
    """What to do with a stored picture, in this order: exchange rows and columns, mirror."""

    transpose: bool = False
    left_right: bool = False
    up_down: bool = False

    def apply(self, picture_HWC: np.ndarray) -> np.ndarray:
        """The picture as it is shown, (H, W, C) or, turned by a quarter, (W, H, C); contiguous."""
        if not any(self):
            return picture_HWC
        shown = picture_HWC.swapaxes(0, 1) if self.transpose else picture_HWC
        return np.ascontiguousarray(shown[:: -1 if self.up_down else 1, :: -1 if self.left_right else 1])


def orientation(frame: Any) -> Orientation:
    """The orientation of a frame as PyAV has it; upright where the file says nothing, or nothing that makes sense.

    Raises ValueError for an angle that is no multiple of 90 degrees: such a picture has no upright rectangle.
    """
    data = next((side for side in frame.side_data if side.type.name == "DISPLAYMATRIX"), None)
    if data is None:
        return Orientation()
    a, b, _, c, d = struct.unpack("=5i", bytes(data)[:20])  # 16.16 fixed point, in the machine's order
    straight, turned = math.hypot(a, d), math.hypot(b, c)
    if a * d == b * c:  # it would squeeze the picture onto a line
        return Orientation()
    if turned <= _TOLERANCE * straight:
        return Orientation(False, a < 0, d < 0)
    if straight <= _TOLERANCE * turned:
        return Orientation(True, c < 0, b < 0)
    angle = math.degrees(math.atan2(b, a))
    raise ValueError(f"is to be shown turned by {angle:.0f} degrees; quarter turns and mirror images are read")
