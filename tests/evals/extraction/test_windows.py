import numpy as np
import pytest

from evals.extraction.encode import Extraction
from evals.extraction.windows import cut_windows
from src.datasets.decoding.decode import open_stream, read_frames
from src.datasets.embedded.generate import encode
from src.datasets.transforms import EvalTransform


def by_rule(n, num_frames, step, stride):
    """Windows until one reaches the end; what reaches beyond it repeats the last frame."""
    starts = []
    for start in range(0, n, stride):
        starts.append(start)
        if start + (num_frames - 1) * step >= n - 1:
            break
    return [np.minimum(start + step * np.arange(num_frames), n - 1) for start in starts]


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("v") / "a.mp4"
    encode(path, np.random.default_rng(0).integers(0, 255, (31, 40, 56, 3), np.uint8), fps=10)
    return path


@pytest.mark.parametrize("shape", [(4, 2, 4), (4, 2, 3), (4, 3, 5), (4, 1, 9), (16, 2, 16), (16, 4, 32), (31, 1, 1)])
def test_windows_are_those_frames_read_at_random(video, shape):
    num_frames, step, stride = shape
    transform = EvalTransform(32)
    windows = list(cut_windows(open_stream(video), *shape, lambda frame: transform(frame)[0]))
    wanted = by_rule(31, *shape)
    assert len(windows) == len(wanted) == Extraction(num_frames, 32, step, stride).windows(31)
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

    list(cut_windows(open_stream(video), 4, 2, 4, count))
    assert len(seen) == 16  # every other frame of 31
