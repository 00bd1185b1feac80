"""Reading exact frames out of video files.

Two decoders sit behind one interface. `pyav` (pyav_reader.py) finds every frame by its time stamp, or by counting where
there are none, and gives it as players show it (picture.py). `decord` is decord as it comes, which is fast and, on
several containers, wrong. `auto` is `pyav`: it is exact on every container, and no slower (figures in docs/data.md).

Shapes: frames are uint8 RGB (n, H, W, 3).
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from src.datasets.decoding.container import missing_bytes
from src.datasets.decoding.errors import DecodeError, checked_indices, first_line
from src.datasets.decoding.pyav_reader import PyAVVideo
from src.datasets.decoding.video_stream import VideoStream
from src.utils.errors import UserError

__all__ = ["DECODERS", "DecodeError", "Video", "open_stream", "open_video", "read_frames"]

DECODERS = ("auto", "decord", "pyav")


class Video(Protocol):
    """An open video: its length in frames, its mean rate in frames per second, and its frames."""

    n_frames: int
    fps: float

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Frames (len(indices), H, W, 3), in the order asked for; repeats allowed. Raises DecodeError."""

    def close(self) -> None:
        """Let go of the file."""


def open_video(
    source: str | Path | bytes, decoder: str = "auto", name: str | None = None, allow_truncated: bool = False
) -> Video:
    """Open a path or the bytes of a file. Raises DecodeError; `name` is what it calls a source given as bytes.

    A file shorter than its own header says is refused (kind `truncated`) unless allow_truncated.
    """
    if decoder not in DECODERS:
        raise ValueError(f"decoder {decoder!r} is not one of {', '.join(DECODERS)}")
    label = name or (f"<{len(source)} bytes>" if isinstance(source, bytes) else str(source))
    check_source(source, label, allow_truncated)
    return _DecordVideo(source, label) if decoder == "decord" else PyAVVideo(source, label, allow_truncated)


def read_frames(source: str | Path | bytes, indices: Sequence[int] | np.ndarray, decoder: str = "auto") -> np.ndarray:
    """The frames `indices` of a video as uint8 (len(indices), H, W, 3). Raises DecodeError."""
    video = open_video(source, decoder)
    try:
        return video.read(indices)
    finally:
        video.close()


def open_stream(path: str | Path) -> VideoStream:
    """Open a video of any length to read its frames one after another. Raises DecodeError."""
    check_source(path, str(path), allow_truncated=False)
    return VideoStream(Path(path), str(path))


def check_source(source: str | Path | bytes, label: str, allow_truncated: bool) -> None:
    """Refuse what is no file, or an empty or shortened one. Raises DecodeError."""
    try:
        if not isinstance(source, bytes) and not stat.S_ISREG(mode := Path(source).stat().st_mode):
            # Opening a pipe would wait for a writer, for ever.
            kind = "directory" if stat.S_ISDIR(mode) else "unreadable"
            raise DecodeError(label, kind, f"is a {kind if kind == 'directory' else 'device or pipe'}, not a file")
        with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            if size == 0:
                raise DecodeError(label, "empty", "the file has no bytes")
            missing = 0 if allow_truncated else missing_bytes(file, size)
    except FileNotFoundError:
        raise DecodeError(label, "missing", "no such file") from None
    except PermissionError:
        raise DecodeError(label, "permission", "may not be read") from None
    except OSError as error:
        raise DecodeError(label, "unreadable", str(error)) from None
    if missing:
        raise DecodeError(label, "truncated", f"ends {missing} bytes before its header says it should")


class _DecordVideo:
    def __init__(self, source: str | Path | bytes, label: str) -> None:
        try:
            import decord
        except ImportError:
            raise UserError(
                "data.decoder=decord, and decord is not installed, which has no wheel for every machine: use auto"
            ) from None

        self._label = label
        self._errors = (decord.DECORDError, RuntimeError)
        if not isinstance(source, bytes) and os.fsencode(source) != str(source).encode("utf-8", "replace"):
            source = Path(source).read_bytes()  # decord takes no name that is not UTF-8
        # Absolute, or FFmpeg would take what stands before a colon for a protocol.
        file = io.BytesIO(source) if isinstance(source, bytes) else str(Path(source).absolute())
        try:
            # More than one thread per worker is 16 to 34 % slower.
            self._reader = decord.VideoReader(file, num_threads=1, ctx=decord.cpu(0))
            self.n_frames, self.fps = len(self._reader), float(self._reader.get_avg_fps())
        except self._errors as error:
            raise DecodeError(label, "unreadable", first_line(error)) from None
        if self.n_frames == 0:
            raise DecodeError(label, "no_video", "holds no video frames")

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        wanted = checked_indices(indices, self.n_frames, self._label)
        try:
            frames = self._reader.get_batch(wanted).asnumpy()
        except self._errors as error:
            raise DecodeError(self._label, "corrupt", first_line(error)) from None
        if len(frames) != len(wanted):
            raise DecodeError(self._label, "short", f"{len(wanted)} frames asked for, {len(frames)} came")
        return frames

    def close(self) -> None:
        self._reader = None
