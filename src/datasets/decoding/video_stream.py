"""A video of any length, frame after frame: what is in memory does not depend on how long it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from src.datasets.decoding.errors import DecodeError, first_line
from src.datasets.decoding.pyav_file import PyAVFile


class StreamFrame(NamedTuple):
    """Frame `index` of a video, shown `seconds` after its first one; `picture` is what VideoStream.rgb converts."""

    index: int  # type: ignore[assignment]  # in place of tuple.index, which nobody calls
    seconds: float
    picture: Any


class VideoStream(PyAVFile):
    """Frames in the order shown, each decoded once. Raises DecodeError.

    Attributes:
        fps: frames per second, as the file says, else 25.
        expected_frames: how many frames the file says it has, for a progress bar only; 0 where it does not say.
    """

    def __init__(self, path: Path, label: str) -> None:
        super().__init__(path, label)
        self._convert = self.converter()
        self.fps = float(self._stream.average_rate or self._stream.guessed_rate or 25)
        seconds = (self._container.duration or 0) / self._av.time_base
        self.expected_frames = self._stream.frames or int(seconds * self.fps)

    def __iter__(self) -> Iterator[StreamFrame]:
        first = None
        for index, frame in enumerate(self._sound(self._decode())):
            seconds = frame.time if frame.time is not None else index / self.fps
            first = seconds if first is None else first
            yield StreamFrame(index, seconds - first, frame)
        if first is None:
            raise DecodeError(self._label, "no_video", "holds no video frames")

    def _decode(self) -> Iterator[Any]:
        try:
            yield from self._container.decode(self._stream)
        except self._errors as error:
            raise DecodeError(self._label, "corrupt", first_line(error)) from None

    def rgb(self, frame: StreamFrame) -> np.ndarray:
        """Its pixels, uint8 (H, W, 3), all of the first converted frame's size."""
        return self._convert(frame.picture).copy()
