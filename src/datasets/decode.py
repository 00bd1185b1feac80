"""Reading exact frames out of video files.

Two decoders sit behind one interface. `pyav` demuxes the whole file once and keeps its packets, so the presentation
time of every frame is known: frame i is the i-th time stamp, decoding starts at the last keyframe shown at or before
it, and no container's own idea of seeking is ever trusted. Files whose time stamps are missing or ambiguous (AVI,
MPEG program streams) are decoded from their first packet and counted. `decord` is decord as it comes. `auto` is
`pyav`, because it is exact on every container at the same speed (docs/data.md has both figures).

Shapes: frames are uint8 RGB (n, H, W, 3).
"""

from __future__ import annotations

import io
import stat
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from src.datasets.container import missing_bytes

DECODERS = ("auto", "decord", "pyav")
# Frames of files without usable time stamps are kept while they are counted, up to this many bytes, to save a second
# pass.
_KEEP_BYTES = 128 * 2**20


class DecodeError(Exception):
    """A video that cannot give the frames asked for.

    kind is one of: missing, directory, permission, empty, unreadable, no_video, truncated, corrupt, short, long.
    """

    def __init__(self, path: str, kind: str, reason: str) -> None:
        super().__init__(path, kind, reason)
        self.path, self.kind, self.reason = path, kind, " ".join(reason.split())

    def __str__(self) -> str:
        return f"{self.path}: {self.kind}: {self.reason}"


class Video(Protocol):
    """An open video: its length in frames, its mean rate in frames per second, and its frames."""

    n_frames: int
    fps: float

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Frames (len(indices), H, W, 3), in the order asked for; repeats allowed. Raises DecodeError."""

    def close(self) -> None: ...


def open_video(
    source: str | Path | bytes, decoder: str = "auto", name: str | None = None, allow_truncated: bool = False
) -> Video:
    """Open a path or the bytes of a file. Raises DecodeError; `name` is what it calls a source given as bytes.

    A file shorter than its own header says is refused (kind `truncated`) unless allow_truncated.
    """
    if decoder not in DECODERS:
        raise ValueError(f"decoder {decoder!r} is not one of {', '.join(DECODERS)}")
    label = name or (f"<{len(source)} bytes>" if isinstance(source, bytes) else str(source))
    _check_source(source, label, allow_truncated)
    return _DecordVideo(source, label) if decoder == "decord" else _PyAVVideo(source, label, allow_truncated)


def read_frames(source: str | Path | bytes, indices: Sequence[int] | np.ndarray, decoder: str = "auto") -> np.ndarray:
    """The frames `indices` of a video as uint8 (len(indices), H, W, 3). Raises DecodeError."""
    video = open_video(source, decoder)
    try:
        return video.read(indices)
    finally:
        video.close()


def _check_source(source: str | Path | bytes, label: str, allow_truncated: bool) -> None:
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


def _checked_indices(indices: Sequence[int] | np.ndarray, n_frames: int, label: str) -> np.ndarray:
    wanted = np.asarray(indices, dtype=np.int64)
    if wanted.ndim != 1:
        raise ValueError(f"indices must have one dimension, not {wanted.ndim}")
    if len(wanted) and (wanted.min() < 0 or wanted.max() >= n_frames):
        raise DecodeError(label, "short", f"frame {wanted.max()} asked for, the video has {n_frames}")
    return wanted


class _DecordVideo:
    def __init__(self, source: str | Path | bytes, label: str) -> None:
        import decord

        self._label = label
        self._errors = (decord.DECORDError, RuntimeError)
        file = io.BytesIO(source) if isinstance(source, bytes) else str(source)
        try:
            # More than one thread per worker is 16 to 34 % slower.
            self._reader = decord.VideoReader(file, num_threads=1, ctx=decord.cpu(0))
            self.n_frames, self.fps = len(self._reader), float(self._reader.get_avg_fps())
        except self._errors as error:
            raise DecodeError(label, "unreadable", _first_line(error)) from None
        if self.n_frames == 0:
            raise DecodeError(label, "no_video", "holds no video frames")

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        wanted = _checked_indices(indices, self.n_frames, self._label)
        try:
            frames = self._reader.get_batch(wanted).asnumpy()
        except self._errors as error:
            raise DecodeError(self._label, "corrupt", _first_line(error)) from None
        if len(frames) != len(wanted):
            raise DecodeError(self._label, "short", f"{len(wanted)} frames asked for, {len(frames)} came")
        return frames

    def close(self) -> None:
        self._reader = None


class _PyAVVideo:
    def __init__(self, source: str | Path | bytes, label: str, allow_truncated: bool) -> None:
        import av

        self._av, self._label, self._allow_truncated = av, label, allow_truncated
        # What PyAV raises on damaged files beside its own errors: streams that come and go, numbers that make no sense.
        self._errors = (av.FFmpegError, ValueError, IndexError, ArithmeticError, MemoryError)
        file = io.BytesIO(source) if isinstance(source, bytes) else str(source)
        try:
            self._container = av.open(file, metadata_errors="ignore")
            self._stream = self._video_stream()
            self._packets = [p for p in self._container.demux(self._stream) if p.size > 0]
        except self._errors as error:
            raise DecodeError(label, "unreadable", _first_line(error)) from None
        if allow_truncated:  # the packet that was cut, and what follows it, is not there
            self._packets = list(takewhile(lambda p: not p.is_corrupt, self._packets))
        self._kept: list[Any] | None = None
        self._fed = 0  # the last packet the decoder was given
        self._pts = self._time_table()
        self.fps = self._mean_rate()
        self.n_frames = len(self._pts) if self._pts is not None else self._count()
        if self.n_frames == 0:
            raise DecodeError(label, "no_video", "holds no video frames")

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

    def _mean_rate(self) -> float:
        """Frames per second: measured where times are known, else what the file says, else 25."""
        if self._pts is not None and len(self._pts) > 1:
            return (len(self._pts) - 1) / float((self._pts[-1] - self._pts[0]) * self._stream.time_base)
        return float(self._stream.average_rate or self._stream.guessed_rate or 25)

    def _time_table(self) -> list[int] | None:
        """Presentation times in the order shown, or None where packets do not name their frames one to one."""
        shown = [p.pts for p in self._packets if not p.is_discard]
        if None in shown or len(set(shown)) != len(shown) or not self._packets or not self._packets[0].is_keyframe:
            return None
        if self._container.format.name in ("avi", "mpeg", "mpegvideo", "h264", "hevc", "m4v"):
            return None  # times are guessed by the demuxer
        # Keyframes in decoding order, and the time from which a decoder started there shows everything.
        self._key_packet = [i for i, p in enumerate(self._packets) if p.is_keyframe and not p.is_discard]
        self._key_pts = [self._packets[i].pts for i in self._key_packet]
        if not self._key_pts or self._key_pts != sorted(self._key_pts):
            return None
        return sorted(shown)

    def _decode(self, first: int) -> Iterator[Any]:
        """Frames in the order shown, from packet `first` on. A damaged one raises DecodeError."""
        context = self._stream.codec_context
        context.flush_buffers()
        try:
            for i in range(first, len(self._packets)):
                self._fed = i
                yield from context.decode(self._packets[i])
            yield from context.decode(None)
        except self._errors as error:
            raise DecodeError(self._label, "corrupt", _first_line(error)) from None

    def _sound(self, frames: Iterator[Any]) -> Iterator[Any]:
        for frame in frames:
            if frame.is_corrupt:
                raise DecodeError(self._label, "corrupt", "a damaged frame")
            yield frame

    def _count(self) -> int:
        count, size, kept = 0, 0, []
        try:
            for frame in self._sound(self._decode(0)):
                count += 1
                size += frame.width * frame.height * 2
                if size <= _KEEP_BYTES:
                    kept.append(frame)
        except DecodeError:
            if not self._allow_truncated:
                raise
        self._kept = kept if len(kept) == count else None
        return count

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        wanted = _checked_indices(indices, self.n_frames, self._label)
        order = sorted(set(wanted.tolist()))
        try:
            frames = self._read_by_time(order) if self._pts is not None else self._read_by_count(order)
        except DecodeError:
            # A keyframe that is not a clean start (intra refresh) looks like damage: the first packet is the judge.
            if self._pts is None:
                raise
            frames = self._read_by_time(order, from_start=True)
        return np.stack(frames)[np.searchsorted(order, wanted)]

    def _read_by_count(self, order: list[int]) -> list[np.ndarray]:
        if self._kept is not None:
            return list(self._to_rgb(self._kept[i] for i in order))
        chosen = set(order)
        frames = (f for i, f in enumerate(self._sound(self._decode(0))) if i in chosen)
        return [f for _, f in zip(order, self._to_rgb(frames))]

    def _read_by_time(self, order: list[int], from_start: bool = False) -> list[np.ndarray]:
        targets = [self._pts[i] for i in order]
        frames = list(self._to_rgb(self._at_times(targets, from_start)))
        if len(frames) != len(targets):
            raise DecodeError(self._label, "short", f"{len(targets)} frames asked for, {len(frames)} came")
        return frames

    def _at_times(self, targets: list[int], from_start: bool) -> Iterator[Any]:
        """The frames shown at `targets` (ascending), jumping ahead wherever a later keyframe allows it."""
        done = 0
        while done < len(targets):
            key = 0 if from_start else max(bisect_right(self._key_pts, targets[done]) - 1, 0)
            for frame in self._decode(0 if from_start else self._key_packet[key]):
                if frame.pts != targets[done]:
                    continue
                if frame.is_corrupt:
                    raise DecodeError(self._label, "corrupt", f"damaged frame at {frame.time} s")
                yield frame
                done += 1
                if done == len(targets):
                    return
                after = max(bisect_right(self._key_pts, targets[done]) - 1, 0)
                if not from_start and self._key_packet[after] > self._fed + 1:
                    break
            else:
                return

    def _to_rgb(self, frames: Iterator[Any]) -> Iterator[np.ndarray]:
        """(H, W, 3) arrays, all of the first one's size."""
        converter, size, one_thread = self._av.video.reformatter.VideoReformatter(), None, _one_thread()
        for frame in frames:
            size = size or (frame.width, frame.height)
            try:
                plane = converter.reformat(frame, *size, "rgb24", **one_thread).planes[0]
            except self._errors as error:
                raise DecodeError(self._label, "corrupt", _first_line(error)) from None
            rows = np.frombuffer(plane, np.uint8).reshape(size[1], plane.line_size)
            yield rows[:, : size[0] * 3].reshape(size[1], size[0], 3)

    def close(self) -> None:
        self._kept, self._packets = None, []
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


def _first_line(error: Exception) -> str:
    text = str(getattr(error, "strerror", None) or error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
