"""Videos named in lists, as clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from src.datasets.decode import DecodeError, open_video
from src.datasets.frame_sampling import ClipSampling
from src.datasets.lists import PackedStrings, read_list, resolve

# (clips, label, frame numbers): uint8 tensors (C, T, H, W), one per clip and view, clip-major; int; int64 arrays (T,)
# per clip.
Sample = tuple[list[torch.Tensor], int, list[np.ndarray]]
# Frames (T, H, W, C) uint8 and a generator -> one uint8 tensor (C, T, h, w), or one per view.
Transform = Callable[[np.ndarray, np.random.Generator], torch.Tensor | list[torch.Tensor]]


def to_tensor(frames: np.ndarray, rng: np.random.Generator | None = None) -> torch.Tensor:
    """Frames (T, H, W, C) as a (C, T, H, W) view of the same bytes: the transform that changes nothing."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2)


class VideoDataset:
    """Clips of the videos in one or several lists.

    Args:
        data_paths: `path label` text files or .npy arrays of paths (src/datasets/lists.py).
        sampling: which frames make a clip.
        transform: what happens to each clip's frames; None keeps them.
        filter_short_videos: skip a video with fewer frames than a clip spans, instead of repeating its last frame.
        filter_long_videos: skip files larger than this many bytes.
        decoder: auto, decord or pyav.
        pad_truncated: use what is left of a file that was cut short, instead of skipping it.

    Raises:
        UserError: a list is missing, empty or has a line that cannot be read.
    """

    def __init__(
        self,
        data_paths: Sequence[str | Path],
        sampling: ClipSampling,
        transform: Transform | None = None,
        filter_short_videos: bool = False,
        filter_long_videos: int = 10**9,
        decoder: str = "auto",
        pad_truncated: bool = False,
    ) -> None:
        lists = [read_list(path) for path in data_paths]
        self.sizes = [len(paths) for paths, _ in lists]
        self._starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        self._folders = [str(Path(path).resolve().parent) for path in data_paths]
        self._paths = PackedStrings(p for paths, _ in lists for p in paths)
        self.labels = np.array([label for _, labels in lists for label in labels], dtype=np.int64)
        self._sampling, self._transform, self._decoder = sampling, transform or to_tensor, decoder
        self._filter_short, self._filter_long = filter_short_videos, filter_long_videos
        self._pad_truncated = pad_truncated

    def __len__(self) -> int:
        return len(self._paths)

    def path(self, index: int) -> str:
        """The file of a sample."""
        return resolve(self._paths[index], self._folders[int(np.searchsorted(self._starts, index, side="right")) - 1])

    def load(self, index: int, seed: int) -> Sample:
        """One sample; everything random about it comes from `seed`. Raises DecodeError."""
        path = self.path(index)
        _refuse_long(path, self._filter_long)
        clips, indices = load_clips(
            path,
            path,
            self._sampling,
            self._transform,
            np.random.default_rng(seed),
            decoder=self._decoder,
            filter_short=self._filter_short,
            pad_truncated=self._pad_truncated,
        )
        return clips, int(self.labels[index]), indices


def _refuse_long(path: str, limit: int) -> None:
    try:
        size = Path(path).stat().st_size
    except OSError:
        return  # opening it will say what is wrong
    if size > limit:
        raise DecodeError(path, "long", f"{size} bytes, above filter_long_videos ({limit})")


def load_clips(
    source: str | bytes,
    name: str,
    sampling: ClipSampling,
    transform: Transform,
    rng: np.random.Generator,
    decoder: str = "auto",
    filter_short: bool = False,
    pad_truncated: bool = False,
) -> tuple[list[torch.Tensor], list[np.ndarray]]:
    """Transformed clips, and frame numbers, of one video given as a path or as bytes. Raises DecodeError."""
    video = open_video(source, decoder, name, allow_truncated=pad_truncated)
    try:
        length = sampling.length(video.fps)
        if filter_short and video.n_frames < length:
            raise DecodeError(name, "short", f"{video.n_frames} frames, a clip spans {length}")
        indices = sampling.indices(video.n_frames, video.fps, rng)
        frames = video.read(np.concatenate(indices))
    finally:
        video.close()
    clips: list[torch.Tensor] = []
    for part in np.split(frames, len(indices)):
        views = transform(part, rng)
        clips.extend(views if isinstance(views, list) else [views])
    return clips, indices
