"""A video file open in PyAV: its stream of pictures, and what the ways of reading it share."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from src.datasets.decoding.errors import DecodeError, first_line
from src.datasets.decoding.orientation import Orientation
from src.datasets.decoding.picture import Fit, PictureConverter


class PyAVFile:
    """The container of a path or of bytes, and the stream of pictures that players show. Raises DecodeError."""

    def __init__(self, source: str | Path | bytes, label: str) -> None:
        import av

        self._av, self._label = av, label
        self._upright: Orientation | None = None  # of every frame; None: each clip's first frame says it
        # What PyAV raises on damaged files beside its own errors: streams that come and go, numbers that make no sense.
        self._errors = (av.FFmpegError, ValueError, IndexError, ArithmeticError, MemoryError)
        try:
            self._container = self._open(source)
            self._stream = self._video_stream(source)
        except self._errors as error:
            raise DecodeError(label, "unreadable", first_line(error)) from None

    def _open(self, source: str | Path | bytes) -> Any:
        # "file:", or FFmpeg would take what stands before a colon for a protocol.
        file = io.BytesIO(source) if isinstance(source, bytes) else f"file:{os.fspath(source)}"
        return self._av.open(file, "r", metadata_errors="ignore")

    def _video_stream(self, source: str | Path | bytes) -> Any:
        """The default stream, else the largest (as FFmpeg chooses); never a cover or a still beside moving pictures."""
        kinds = self._av.stream.Disposition
        stills = kinds.attached_pic | kinds.timed_thumbnails | kinds.still_image
        streams = [s for s in self._container.streams.video if not s.disposition & stills]
        if not streams:
            raise DecodeError(self._label, "no_video", "has no video stream")
        streams = [s for s in streams if s.codec_context is not None]
        if not streams:
            raise DecodeError(self._label, "no_video", "its video stream has no known codec")
        if len(streams) > 1:
            moving = self._moving(source, [s.index for s in streams])
            streams = [s for s in streams if s.index in moving] or streams
        best = max(streams, key=lambda s: (bool(s.disposition & kinds.default), s.width * s.height, -s.index))
        best.codec_context.thread_count, best.codec_context.thread_type = 1, "NONE"
        return best

    def _moving(self, source: str | Path | bytes, indices: Sequence[int]) -> set[int]:
        """Those of several streams that hold more than one picture. Opens the file again, and reads until it knows."""
        packets = dict.fromkeys(indices, 0)
        with self._open(source) as container:
            for packet in container.demux([container.streams[i] for i in indices]):
                packets[packet.stream.index] += packet.size > 0
                if min(packets.values()) > 1:
                    break
        return {index for index, count in packets.items() if count > 1}

    def _sound(self, frames: Iterator[Any]) -> Iterator[Any]:
        for frame in frames:
            if frame.is_corrupt:
                raise DecodeError(self._label, "corrupt", "a damaged frame")
            yield frame

    def converter(self, fit: Fit | None = None) -> Callable[[Any], np.ndarray]:
        """From PyAV's frames to RGB uint8 arrays (H, W, 3) as players show them, all of one size. Raises DecodeError.

        `fit` changes that size, given as (width, height).
        """
        picture = PictureConverter(self._label, self._stream.sample_aspect_ratio, fit, self._upright)

        def convert(frame: Any) -> np.ndarray:
            try:
                return picture(frame)
            except self._errors as error:
                raise DecodeError(self._label, "corrupt", first_line(error)) from None

        return convert

    def close(self) -> None:
        """Let go of the file."""
        self._container.close()
