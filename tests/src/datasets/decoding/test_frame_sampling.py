"""Which frames make a clip."""

from __future__ import annotations

import numpy as np
import pytest

from src.datasets.decoding.frame_sampling import ClipSampling


def _clips(n_frames, fps=25.0, seed=0, **kwargs):
    return ClipSampling(**kwargs).indices(n_frames, fps, np.random.default_rng(seed))


def test_random_clips_have_the_step_and_reach_both_ends():
    starts = set()
    for seed in range(300):
        (clip,) = _clips(40, seed=seed, frames_per_clip=8, frame_step=4)
        assert (np.diff(clip) == 4).all() and clip[0] >= 0 and clip[-1] < 40
        starts.add(int(clip[0]))
    assert starts == set(range(0, 9))


def test_fixed_clips_start_each_part():
    clips = _clips(100, frames_per_clip=4, frame_step=5, num_clips=3, random=False)
    assert [int(c[0]) for c in clips] == [0, 33, 66]
    assert all((np.diff(c) == 5).all() for c in clips)


@pytest.mark.parametrize(
    ("n_frames", "sampling", "want"),
    [
        (9, {"frames_per_clip": 3, "frame_step": 2}, [[2, 4, 6]]),
        (10, {"frames_per_clip": 3, "frame_step": 2}, [[2, 4, 6]]),  # of two middles the earlier
        (41, {"frames_per_clip": 4, "clip_duration": 0.8}, [[12, 17, 22, 27]]),
        (6, {"frames_per_clip": 3, "frame_step": 2}, [[0, 2, 4]]),
        (4, {"frames_per_clip": 3, "frame_step": 2}, [[0, 2, 3]]),
        (20, {"frames_per_clip": 2, "frame_step": 3, "num_clips": 2}, [[3, 6], [13, 16]]),
    ],
)
def test_centred_clips_lie_in_the_middle_of_their_part(n_frames, sampling, want):
    clips = _clips(n_frames, random=False, centered=True, **sampling)
    assert [clip.tolist() for clip in clips] == want


def test_random_clips_stay_in_their_part():
    for seed in range(50):
        for i, clip in enumerate(_clips(90, seed=seed, frames_per_clip=4, frame_step=5, num_clips=3)):
            assert clip.min() >= 30 * i and clip.max() < 30 * (i + 1)


@pytest.mark.parametrize("n_frames", [1, 3, 15, 63])
def test_short_videos_repeat_their_last_frame(n_frames):
    (clip,) = _clips(n_frames, frames_per_clip=16, frame_step=4)
    assert len(clip) == 16 and clip.dtype == np.int64
    assert clip.tolist() == [min(4 * i, n_frames - 1) for i in range(16)]


def test_without_overlap_each_part_repeats_its_own_last_frame():
    first, second = _clips(20, frames_per_clip=8, frame_step=4, num_clips=2, random=False)
    assert first.tolist() == [0, 4, 8, 9, 9, 9, 9, 9]
    assert second.tolist() == [10, 14, 18, 19, 19, 19, 19, 19]


def test_with_overlap_clips_spread_over_the_video():
    first, second = _clips(40, frames_per_clip=8, frame_step=4, num_clips=2, random=False, allow_overlap=True)
    assert first.tolist() == list(range(0, 32, 4))
    assert second.tolist() == list(range(8, 40, 4))


def test_more_clips_than_frames():
    for overlap in (False, True):
        clips = _clips(2, frames_per_clip=4, num_clips=5, allow_overlap=overlap)
        assert len(clips) == 5 and all(len(c) == 4 and 0 <= c.min() <= c.max() <= 1 for c in clips)


def test_duration_is_seconds_at_any_rate():
    for fps in (12.5, 25.0, 59.94):
        (clip,) = _clips(1000, fps=fps, frames_per_clip=16, clip_duration=3.0, random=False)
        assert clip[-1] / fps == pytest.approx(3.0 * 15 / 16, abs=1 / fps)
    slow = ClipSampling(16, clip_duration=1.0)
    assert slow.length(8.0) == 8
    (clip,) = _clips(100, fps=8.0, frames_per_clip=16, clip_duration=1.0, random=False)
    assert clip.tolist() == [i // 2 for i in range(16)]
