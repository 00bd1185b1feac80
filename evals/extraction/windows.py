"""A video in overlapping windows, cut while it is read.

Legend: C channels, T frames of a window, S side in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from src.datasets.decoding.video_stream import StreamFrame, VideoStream


class Window(NamedTuple):
    """uint8 clip (C, T, S, S), the numbers of its frames (T,), and when the first of them is shown."""

    clip: torch.Tensor
    frames: np.ndarray
    start_seconds: float


def cut_windows(
    stream: VideoStream, offsets: np.ndarray, stride: int, transform: Callable[[np.ndarray], torch.Tensor]
) -> Iterator[Window]:
    """Windows of the frames `offsets` (T,) behind their first, one every `stride` frames of the video.

    Only the frames of unfinished windows are kept. The last window is the first that reaches the end of the video; it
    repeats the last frame where it reaches beyond it, as a clip of a short video does in training.

    Args:
        offsets: from 0 on, ascending; one may be there twice.
        transform: one frame (1, H, W, C) -> (C, 1, S, S). It is called once for each frame that a window needs.
    """
    wanted, reach = frozenset(offsets.tolist()), int(offsets[-1])
    kept: dict[int, tuple[float, torch.Tensor]] = {}

    def keep(frame: StreamFrame) -> None:
        kept[frame.index] = (frame.seconds, transform(stream.rgb(frame)[None]))

    def window(last: int) -> Window:
        frames = np.minimum(start + offsets, last)
        return Window(torch.cat([kept[i][1] for i in frames.tolist()], dim=1), frames, kept[start][0])

    start, frame = 0, None  # of the window that is being filled
    for frame in stream:
        if any(frame.index - begin in wanted for begin in range(start, frame.index + 1, stride)):
            keep(frame)
        if frame.index == start + reach:
            yield window(frame.index)
            start += stride
            for old in [i for i in kept if i < start]:
                del kept[old]
    assert frame is not None, "a stream without frames raises"
    end_is_seen = start > 0 and start - stride + reach >= frame.index
    if start <= frame.index and not end_is_seen:
        keep(frame)
        yield window(frame.index)
