"""Exact frames through PyAV, whatever the container does to time stamps and seeking.

The file is demuxed once and its packets are kept, so the presentation time of every frame is known: frame i is the i-th
time stamp, decoding starts at the last keyframe shown at or before it, and no container's idea of seeking is trusted,
nor, for H.264, its idea of keyframes (h264_units.py).
Files whose time stamps are missing or ambiguous (AVI, MPEG program streams, what was copied out of them with the times
of decoding) are decoded from their first packet and counted. A reader holds the compressed file in memory.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from src.datasets.decoding.errors import DecodeError, checked_indices, first_line
from src.datasets.decoding.h264_units import is_clean_start, turns_by_message
from src.datasets.decoding.orientation import orientation
from src.datasets.decoding.pyav_file import PyAVFile

# Frames of files without usable time stamps are kept while they are counted, up to this many bytes, to save a second
# pass.
_KEEP_BYTES = 128 * 2**20


class PyAVVideo(PyAVFile):
    """An open video (the protocol of src/datasets/decoding/decode.py)."""

    def __init__(self, source: str | Path | bytes, label: str, allow_truncated: bool) -> None:
        super().__init__(source, label)
        self._allow_truncated = allow_truncated
        try:
            self._packets = [p for p in self._container.demux(self._stream) if p.size > 0]
        except self._errors as error:
            raise DecodeError(label, "unreadable", first_line(error)) from None
        if allow_truncated:  # the packet that was cut, and what follows it, is not there
            self._packets = list(takewhile(lambda p: not p.is_corrupt, self._packets))
        self._kept: list[Any] | None = None
        self._fed = 0  # the last packet the decoder was given
        self._pts = self._time_table()
        self.n_frames = len(self._pts) if self._pts is not None else self._count()
        if self.n_frames == 0:
            raise DecodeError(label, "no_video", "holds no video frames")
        self.fps = self._mean_rate()
        context = self._stream.codec_context
        if turns_by_message(context.name, self._packets[0], context.extradata):
            self._turn_by_first_frame()

    def _turn_by_first_frame(self) -> None:
        """A message that turns pictures is at the first frame, and holds for all."""
        for frame in self._decode(0):
            try:
                self._upright = orientation(frame)
            except ValueError as error:
                raise DecodeError(self._label, "unreadable", str(error)) from None
            break

    def _mean_rate(self) -> float:
        """Frames per second: measured where times are known, else what the file says, else 25."""
        if self._pts is not None and len(self._pts) > 1:
            return (len(self._pts) - 1) / float((self._pts[-1] - self._pts[0]) * self._stream.time_base)
        if self._container.format.name == "avi" and self._stream.duration:  # its rate counts dropped frames too
            return self.n_frames / float(self._stream.duration * self._stream.time_base)
        return float(self._stream.average_rate or self._stream.guessed_rate or 25)

    def _time_table(self) -> list[int] | None:
        """Presentation times in the order shown, or None where packets do not name their frames one to one."""
        shown = [p.pts for p in self._packets if not p.is_discard]
        if None in shown or len(set(shown)) != len(shown):
            return None
        if self._container.format.name in ("avi", "mpeg", "mpegvideo", "h264", "hevc", "m4v"):
            return None  # times are guessed by the demuxer
        context = self._stream.codec_context
        if context.has_b_frames and (shown == sorted(shown) or context.name == "mpeg4"):
            return None  # copied from such a container: times of decoding or, of packed MPEG-4, of other pictures
        # Keyframes in decoding order, and the time from which a decoder started there shows everything.
        keys = [i for i, p in enumerate(self._packets) if p.is_keyframe and p.pts is not None]
        if len(keys) == len(self._packets) and not context.codec.intra_only and context.name != "h264":
            keys = keys[:1]  # where all are marked, nobody knows which are
        elif context.name == "h264":
            keys = [i for i in keys if is_clean_start(bytes(self._packets[i]), context.extradata)]
        if not keys or keys[0] != 0:
            return None  # decoders leave out what they cannot show rightly at the beginning
        self._key_packet = keys
        self._key_pts = [self._packets[i].pts for i in self._key_packet]
        if self._key_pts != sorted(self._key_pts):
            return None
        first = self._key_pts[0]
        if min(shown) < first:  # cut out of an open group of pictures: some of those before the first keyframe are lost
            leading = takewhile(lambda frame: frame.pts < first, self._decode(0))
            shown = [frame.pts for frame in leading] + [time for time in shown if time >= first]
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
            raise DecodeError(self._label, "corrupt", first_line(error)) from None

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

    def frames(self) -> Iterator[Any]:
        """Every frame in order, as PyAV has it (any pixel format). Raises DecodeError."""
        return self._sound(self._decode(0))

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The frames `indices`, uint8 (T, H, W, 3), in that order. Raises DecodeError."""
        wanted = checked_indices(indices, self.n_frames, self._label)
        order = sorted(set(wanted.tolist()))
        try:
            frames = self._read_by_time(order) if self._pts is not None else self._read_by_count(order)
        except DecodeError:
            # A keyframe that is not a clean start, of another codec, looks like damage: the first packet decides.
            if self._pts is None:
                raise
            frames = self._read_by_time(order, from_start=True)
        return np.stack(frames)[np.searchsorted(order, wanted)]

    def _read_by_count(self, order: list[int]) -> list[np.ndarray]:
        if self._kept is not None:
            return list(map(self.converter(), (self._kept[i] for i in order)))
        chosen = set(order)
        frames = (f for i, f in enumerate(self._sound(self._decode(0))) if i in chosen)
        return [f for _, f in zip(order, map(self.converter(), frames))]

    def _read_by_time(self, order: list[int], from_start: bool = False) -> list[np.ndarray]:
        assert self._pts is not None
        targets = [self._pts[i] for i in order]
        frames = list(map(self.converter(), self._at_times(targets, from_start)))
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

    def close(self) -> None:
        """Let go of the file and of the frames that were kept."""
        self._kept, self._packets = None, []
        super().close()
