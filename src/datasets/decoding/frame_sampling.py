"""Which frames of a video make its clips (V-JEPA's rules)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ClipSampling:
    """How clips are cut from a video.

    Attributes:
        frames_per_clip: frames in a clip (T).
        frame_step: frames from one to the next; unused where clip_duration is set.
        clip_duration: seconds a clip spans, whatever the video's frame rate.
        num_clips: clips per video, each from its own equal part of it.
        random: start anywhere in that part; otherwise at its beginning.
        allow_overlap: clips that do not fit their part spread over the whole video and may overlap.
        centered: where a clip is not random it lies in the middle of its part.
    """

    frames_per_clip: int
    frame_step: int = 4
    clip_duration: float | None = None
    num_clips: int = 1
    random: bool = True
    allow_overlap: bool = False
    centered: bool = False

    def step(self, fps: float) -> float:
        """Frames from one sampled frame to the next."""
        return float(self.frame_step) if self.clip_duration is None else self.clip_duration * fps / self.frames_per_clip

    def length(self, fps: float) -> int:
        """Frames of the video a clip spans, the step after its last frame included."""
        return max(int(min(self.frames_per_clip * self.step(fps), 2.0**53)), 1)

    def offsets(self, fps: float) -> np.ndarray:
        """Frames from a clip's first to each of its frames, int64 (T,)."""
        frames = np.floor(np.arange(self.frames_per_clip) * self.step(fps))
        return np.minimum(frames, 2.0**53).astype(np.int64)  # a clip of 1e300 seconds is as long as any video

    def indices(self, n_frames: int, fps: float, rng: np.random.Generator) -> list[np.ndarray]:
        """Frame numbers of each clip, int64 (T,), never beyond the video: a short clip repeats its last frame."""
        length, part = self.length(fps), n_frames // self.num_clips
        offsets = self.offsets(fps)
        clips = []
        for i in range(self.num_clips):
            if part >= length:
                middle = (part - 1 - int(offsets[-1])) // 2 if self.centered else 0
                start = i * part + (int(rng.integers(0, part - length + 1)) if self.random else middle)
                last = n_frames - 1
            elif self.allow_overlap or part == 0:
                spread = max(n_frames - length, 0) // max(self.num_clips - 1, 1)
                start, last = i * spread, n_frames - 1
            else:
                start, last = i * part, (i + 1) * part - 1
            clips.append(np.minimum(start + offsets, last))
        return clips
