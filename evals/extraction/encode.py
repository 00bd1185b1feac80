"""From videos of any length to rows of features: stream, cut into windows, encode, write.

Legend: B windows at a time, C channels, T frames of a window, N tokens of a window, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evals.extraction.feature_file import FeatureFile
from evals.extraction.windows import cut_windows
from src.datasets.decoding.decode import DecodeError, open_stream
from src.datasets.decoding.frame_sampling import ClipSampling
from src.datasets.decoding.video_stream import VideoStream
from src.datasets.skipped import SkipReport
from src.datasets.transforms import EvalTransform, normalize
from src.jepa.checkpoint_config import checkpoint_config
from src.models.backbone import VideoEncoder
from src.utils.errors import UserError
from src.utils.progress import Progress

DEFAULT_STEP = 4
ASKED, TRAINED = "as asked for", "as in pretraining"
UNKNOWN = "the default, as the checkpoint does not say how it was pretrained"


@dataclass(frozen=True)
class Extraction:
    """How features are taken.

    Attributes:
        num_frames: frames of a window (T).
        resolution: side of the square cut from the centre of each frame, pixels, after its short side is resized to it.
        frame_step: frames of the video from one frame of a window to the next; None: clip_duration says it.
        stride: frames of the video from the start of one window to that of the next; None: half a window.
        per_token: keep every token instead of their mean.
        batch_size: windows that are encoded at once (B).
        clip_duration: seconds that a window spans, at the frame rate that the video's file names.
        sampling: who said how frames are taken, in words.
    """

    num_frames: int
    resolution: int
    frame_step: int | None
    stride: int | None = None
    per_token: bool = False
    batch_size: int = 8
    clip_duration: float | None = None
    sampling: str = ASKED

    def __post_init__(self) -> None:
        if (self.frame_step is None) == (self.clip_duration is None):
            raise ValueError("a window is sampled by frame_step or by clip_duration")

    @property
    def _clip(self) -> ClipSampling:
        return ClipSampling(self.num_frames, self.frame_step or 1, self.clip_duration)

    def offsets(self, fps: float) -> np.ndarray:
        """Frames from a window's first to each of its frames, int64 (T,), in a video of `fps` frames per second."""
        return self._clip.offsets(fps)

    def stride_at(self, fps: float) -> int:
        """Frames from the start of one window to that of the next."""
        return self.stride or max(self._clip.length(fps) // 2, 1)

    def windows(self, frames: int, fps: float) -> int:
        """How many windows a video of `frames` frames gives, at least 1."""
        beyond = frames - 1 - int(self.offsets(fps)[-1])
        return 1 + max(-(-beyond // self.stride_at(fps)), 0)


def trained_sampling(state: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """`frame_step` and `clip_duration` of an encoder's pretraining, and `sampling`, who says so.

    Args:
        state: what `open_weights` found in `path`: a checkpoint of ours has its config, an export some of it, published
            weights nothing. Then it is every DEFAULT_STEP-th frame, which is V-JEPA's own.
    """
    config = checkpoint_config(state, path)
    said = config["data"] if config else state.get("training", {})
    step, seconds = said.get("sampling_rate"), said.get("clip_duration")
    if seconds is not None:
        return {"frame_step": None, "clip_duration": seconds, "sampling": TRAINED}
    return {"frame_step": step or DEFAULT_STEP, "clip_duration": None, "sampling": TRAINED if step else UNKNOWN}


@torch.no_grad()
def encode_stream(
    encoder: VideoEncoder, stream: VideoStream, how: Extraction, device: torch.device
) -> Iterator[dict[str, np.ndarray]]:
    """Features of a video's windows, in order, a batch of rows at a time.

    Yields:
        features float32 (B, D), or (B, N, D) per token; frames int64 (B, T); start_seconds float64 (B,).
    """
    transform = EvalTransform(how.resolution)
    offsets, stride = how.offsets(stream.fps), how.stride_at(stream.fps)
    windows = cut_windows(stream, offsets, stride, lambda frame: transform(frame)[0])
    while batch := list(islice(windows, how.batch_size)):
        clips = torch.stack([window.clip for window in batch]).to(device)
        tokens_BND = encoder(normalize(clips)).float()
        yield {
            "features": (tokens_BND if how.per_token else tokens_BND.mean(1)).cpu().numpy(),
            "frames": np.stack([window.frames for window in batch]),
            "start_seconds": np.array([window.start_seconds for window in batch]),
        }


def extract(
    encoder: VideoEncoder, videos: Sequence[Path], out: Path, how: Extraction, device: torch.device, checkpoint: str
) -> FeatureFile:
    """Write the features of all videos to one file; each row says in `video` which of `videos` it belongs to.

    A video that cannot be read to its end is left out, whole, and reported.

    Raises:
        UserError: not one video can be read, or the output cannot be written.
    """
    about = {"videos": [str(video) for video in videos], "checkpoint": checkpoint, **asdict(how)}
    about["stride"] = how.stride_at(1.0) if how.frame_step else how.stride  # half of a duration depends on the video
    errors: list[tuple[str, str, str]] = []
    skips = SkipReport(max_fraction=1.0)
    with FeatureFile(out, about) as file, Progress(len(videos), unit="windows", what="extracting") as progress:
        for number, video in enumerate(videos):
            before = file.rows
            try:
                stream = open_stream(video)
                try:
                    # Files not opened yet are taken to be as long as this one.
                    windows = how.windows(stream.expected_frames, stream.fps)
                    progress.total = file.rows + windows * (len(videos) - number)
                    for rows in encode_stream(encoder, stream, how, device):
                        file.append({**rows, "video": np.full(len(rows["frames"]), number)})
                        windows = len(rows["frames"])
                        progress.advance(windows, windows, video=number + 1)
                finally:
                    stream.close()
            except DecodeError as error:
                file.cut(before)
                errors.append((error.path, error.kind, error.reason))
                if len(videos) > 1:
                    skips.note(errors[-1:])
        if not file.rows:
            path, kind, reason = errors[-1]
            others = f" (and none of the other {len(videos) - 1} videos either)" if len(videos) > 1 else ""
            raise UserError(f"{path}: {kind}: {reason}{others}")
        file.about["unreadable"] = {path: f"{kind}: {reason}" for path, kind, reason in errors}
        file.finish()
    return file
