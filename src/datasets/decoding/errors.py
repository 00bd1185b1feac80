"""The one error for a video that cannot be used."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class DecodeError(Exception):
    """A video that cannot give the frames asked for.

    kind is one of: missing, directory, permission, empty, unreadable, no_video, truncated, corrupt, short or long.
    """

    def __init__(self, path: str, kind: str, reason: str) -> None:
        super().__init__(path, kind, reason)
        self.path, self.kind, self.reason = path, kind, " ".join(reason.split())

    def __str__(self) -> str:
        return f"{self.path}: {self.kind}: {self.reason}"


def checked_indices(indices: Sequence[int] | np.ndarray, n_frames: int, label: str) -> np.ndarray:
    """Frame numbers as int64 (n,). Raises DecodeError (short) for one the video does not have."""
    wanted = np.asarray(indices, dtype=np.int64)
    if wanted.ndim != 1:
        raise ValueError(f"indices must have one dimension, not {wanted.ndim}")
    if len(wanted) and (wanted.min() < 0 or wanted.max() >= n_frames):
        raise DecodeError(label, "short", f"frame {wanted.max()} asked for, the video has {n_frames}")
    return wanted


def first_line(error: Exception) -> str:
    """What a library's error says, on one line of bearable length."""
    text = str(getattr(error, "strerror", None) or error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
