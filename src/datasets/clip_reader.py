"""From one video, a file or bytes, to a sample: which frames, how they are decoded, what is done to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from src.datasets.decoding.decode import DecodeError, open_video
from src.datasets.decoding.frame_sampling import ClipSampling

# (clips, label, frame numbers): uint8 tensors (C, T, H, W), one per clip and view, clip-major; int; int64 arrays (T,)
# per clip.
Sample = tuple[list[torch.Tensor], int, list[np.ndarray]]
# Frames (T, H, W, C) uint8 and a generator -> one uint8 tensor (C, T, h, w), or one per view.
Transform = Callable[[np.ndarray, np.random.Generator], torch.Tensor | list[torch.Tensor]]


def to_tensor(frames: np.ndarray, rng: np.random.Generator | None = None) -> torch.Tensor:
    """Frames (T, H, W, C) as a (C, T, H, W) view of the same bytes: the transform that changes nothing."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2)


@dataclass(frozen=True)
class ClipReader:
    """Reads the clips of one video.

    Attributes:
        sampling: which frames make a clip.
        transform: what happens to each clip's frames.
        filter_short_videos: skip a video with fewer frames than a clip spans, instead of repeating its last frame.
        filter_long_videos: skip files larger than this many bytes.
        decoder: auto, decord or pyav.
        pad_truncated: use what is left of a file that was cut short, instead of skipping it.
    """

    sampling: ClipSampling
    transform: Transform = to_tensor
    filter_short_videos: bool = False
    filter_long_videos: int = 10**9
    decoder: str = "auto"
    pad_truncated: bool = False

    def check_size(self, name: str, size: int) -> None:
        """Refuse a file of so many bytes. Raises DecodeError."""
        if size > self.filter_long_videos:
            raise DecodeError(name, "long", f"{size} bytes, above filter_long_videos ({self.filter_long_videos})")

    def read(self, source: str | bytes, name: str, label: int, seed: int) -> Sample:
        """One sample of a video given as a path or as bytes. Everything random about it comes from `seed`.

        Args:
            name: what messages call the video.

        Raises:
            DecodeError: the video cannot be read, or is too short.
        """
        video = open_video(source, self.decoder, name, allow_truncated=self.pad_truncated)
        rng = np.random.default_rng(seed)
        try:
            length = self.sampling.length(video.fps)
            if self.filter_short_videos and video.n_frames < length:
                raise DecodeError(name, "short", f"{video.n_frames} frames, a clip spans {length}")
            indices = self.sampling.indices(video.n_frames, video.fps, rng)
            frames = video.read(np.concatenate(indices))
        finally:
            video.close()
        clips: list[torch.Tensor] = []
        for part in np.split(frames, len(indices)):
            views = self.transform(part, rng)
            clips.extend(views if isinstance(views, list) else [views])
        return clips, label, indices
