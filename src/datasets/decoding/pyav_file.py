"""A video file open in PyAV: its stream of pictures, and what the ways of reading it share."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from src.datasets.decoding.errors import DecodeError, first_line


class PyAVFile:
    """The container of a path or of bytes, and its first stream of pictures. Raises DecodeError."""

    def __init__(self, source: str | Path | bytes, label: str) -> None:
        import av

        self._av, self._label = av, label
        # What PyAV raises on damaged files beside its own errors: streams that come and go, numbers that make no sense.
        self._errors = (av.FFmpegError, ValueError, IndexError, ArithmeticError, MemoryError)
        file = io.BytesIO(source) if isinstance(source, bytes) else str(source)
        try:
            self._container = av.open(file, "r", metadata_errors="ignore")
            self._stream = self._video_stream()
        except self._errors as error:
            raise DecodeError(label, "unreadable", first_line(error)) from None

    def _video_stream(self) -> Any:
        cover = self._av.stream.Disposition.attached_pic
        streams = [s for s in self._container.streams.video if not s.disposition & cover]
        if not streams:
            raise DecodeError(self._label, "no_video", "has no video stream")
        context = streams[0].codec_context
        if context is None:
            raise DecodeError(self._label, "no_video", "its video stream has no known codec")
        context.thread_count, context.thread_type = 1, "NONE"
        return streams[0]

    def _sound(self, frames: Iterator[Any]) -> Iterator[Any]:
        for frame in frames:
            if frame.is_corrupt:
                raise DecodeError(self._label, "corrupt", "a damaged frame")
            yield frame

    def converter(self) -> Callable[[Any], np.ndarray]:
        """From PyAV's frames to RGB uint8 arrays (H, W, 3), all of the first one's size. Raises DecodeError."""
        reformatter, size, one_thread = self._av.video.reformatter.VideoReformatter(), None, _one_thread()

        def convert(frame: Any) -> np.ndarray:
            nonlocal size
            size = size or (frame.width, frame.height)
            try:
                plane = reformatter.reformat(frame, *size, "rgb24", **one_thread).planes[0]
            except self._errors as error:
                raise DecodeError(self._label, "corrupt", first_line(error)) from None
            # PyAV's planes are buffers, which its types do not say.
            rows = np.frombuffer(plane, np.uint8).reshape(size[1], plane.line_size)  # type: ignore[call-overload]
            return rows[:, : size[0] * 3].reshape(size[1], size[0], 3)

        return convert

    def close(self) -> None:
        """Let go of the file."""
        self._container.close()


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
