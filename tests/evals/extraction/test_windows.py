import numpy as np
import pytest

from evals.extraction.encode import Extraction
from evals.extraction.windows import cut_windows
from src.datasets.decoding.decode import open_stream, read_frames
from src.datasets.decoding.frame_sampling import ClipSampling
from src.datasets.embedded.generate import encode
from src.datasets.transforms import EvalTransform


def by_rule(n, offsets, stride):
    """Windows until one reaches the end; what reaches beyond it repeats the last frame."""
    starts = []
    for start in range(0, n, stride):
        starts.append(start)
        if start + offsets[-1] >= n - 1:
            break
    return [np.minimum(start + offsets, n - 1) for start in starts]


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("v") / "a.mp4"
    encode(path, np.random.default_rng(0).integers(0, 255, (31, 40, 56, 3), np.uint8), fps=10)
    return path


@pytest.mark.parametrize("shape", [(4, 2, 4), (4, 2, 3), (4, 3, 5), (4, 1, 9), (16, 2, 16), (16, 4, 32), (31, 1, 1)])
def test_windows_are_those_frames_read_at_random(video, shape):
    num_frames, step, stride = shape
    same(video, by_rule(31, step * np.arange(num_frames), stride), Extraction(num_frames, 32, step, stride))


@pytest.mark.parametrize(
    ("seconds", "num_frames", "stride", "offsets", "expected"),
    [
        (1.6, 4, None, [0, 4, 8, 12], 8),  # 16 frames at 10 a second: a step of 4
        (1.6, 4, 3, [0, 4, 8, 12], 3),
        (1.0, 4, None, [0, 2, 5, 7], 5),  # steps of 2.5
        (0.2, 4, None, [0, 0, 1, 1], 1),  # fewer frames than the window has
        (0.05, 2, None, [0, 0], 1),
        (9.0, 4, None, [0, 22, 45, 67], 45),  # longer than the video
    ],
)
def test_windows_of_a_duration_are_the_clips_of_training(video, seconds, num_frames, stride, offsets, expected):
    how = Extraction(num_frames, 32, None, stride, clip_duration=seconds)
    assert how.stride_at(10.0) == expected and how.offsets(10.0).tolist() == offsets
    clip = ClipSampling(num_frames, clip_duration=seconds, random=False)
    assert clip.indices(1000, 10.0, np.random.default_rng(0))[0].tolist() == offsets
    same(video, by_rule(31, np.array(offsets), expected), how)


def same(video, wanted, how):
    transform, stream = EvalTransform(32), open_stream(video)
    offsets, stride = how.offsets(stream.fps), how.stride_at(stream.fps)
    windows = list(cut_windows(stream, offsets, stride, lambda frame: transform(frame)[0]))
    assert len(windows) == len(wanted) == how.windows(31, stream.fps)
    for window, frames in zip(windows, wanted):
        assert window.frames.tolist() == frames.tolist()
        assert window.start_seconds == pytest.approx(frames[0] / 10)
        assert (window.clip == transform(read_frames(video, frames))[0]).all()


def test_a_frame_is_prepared_once_and_only_if_a_window_needs_it(video):
    seen = []
    transform = EvalTransform(32)

    def count(frame):
        seen.append(len(seen))
        return transform(frame)[0]

    list(cut_windows(open_stream(video), np.array([0, 2, 4, 6]), 4, count))
    assert len(seen) == 16  # every other frame of 31
