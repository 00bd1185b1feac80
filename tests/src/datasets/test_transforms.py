"""Crops, views and normalising on uint8 frames."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from src.datasets.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    EvalTransform,
    TrainTransform,
    crop_resize,
    normalize,
    random_box,
)


def _frames(height, width, frames=3, seed=0):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    return np.stack([np.roll(np.asarray(small), i, axis=1) for i in range(frames)])


@pytest.mark.parametrize("size", [(20, 30), (90, 70), (48, 64)])
def test_crop_resize_is_what_pillow_does_to_the_crop(size):
    frames = _frames(60, 80)
    ours = crop_resize(frames, (5, 10, 48, 64), size)
    for frame, mine in zip(frames, ours):
        theirs = Image.fromarray(frame[5:53, 10:74]).resize(size[::-1], Image.BILINEAR)
        assert np.abs(mine.astype(int) - np.asarray(theirs)).max() <= 1
    assert ours.dtype == np.uint8 and ours.shape == (3, *size, 3)


def test_nothing_is_copied_when_the_frame_is_the_crop():
    frames = _frames(64, 64)
    clip = TrainTransform(64, (1.0, 1.0), (1.0, 1.0), horizontal_flip=False)(frames, np.random.default_rng(0))
    assert clip.shape == (3, 3, 64, 64)
    assert clip.data_ptr() == torch.from_numpy(frames).data_ptr()


def test_random_boxes_fit_and_have_the_asked_size():
    rng = np.random.default_rng(0)
    areas = []
    for _ in range(500):
        top, left, h, w = random_box(240, 320, (0.3, 1.0), (3 / 4, 4 / 3), rng)
        assert top >= 0 and left >= 0 and top + h <= 240 and left + w <= 320
        assert 0.73 <= w / h <= 1.36
        areas.append(h * w / (240 * 320))
    assert min(areas) > 0.29 and max(areas) > 0.9 and 0.5 < np.mean(areas) < 0.65


@pytest.mark.parametrize(("height", "width"), [(10, 1000), (1000, 10)])
def test_boxes_of_extreme_frames_fall_back_to_the_centre(height, width):
    top, left, h, w = random_box(height, width, (0.9, 1.0), (3 / 4, 4 / 3), np.random.default_rng(0))
    assert min(h, w) == 10 and max(h, w) == 13
    assert abs(2 * top + h - height) <= 1 and abs(2 * left + w - width) <= 1


def test_flips_are_seeded_and_mirror():
    frames = _frames(32, 32)
    transform = TrainTransform(32, (1.0, 1.0), (1.0, 1.0))
    clips = [transform(frames, np.random.default_rng(seed)) for seed in range(20)]
    plain = torch.from_numpy(frames).permute(3, 0, 1, 2)
    mirrored = [torch.equal(c, plain.flip(-1)) for c in clips]
    assert 4 < sum(mirrored) < 16
    assert all(m or torch.equal(c, plain) for m, c in zip(mirrored, clips))


@pytest.mark.parametrize(("height", "width"), [(60, 120), (120, 60)])
def test_views_are_both_ends_and_the_centre(height, width):
    frames = _frames(height, width)
    views = EvalTransform(60, num_views=3)(frames)
    long = 2 if width > height else 1
    for view, start in zip(views, (0, 30, 60)):
        expected = np.take(frames, range(start, start + 60), axis=long)
        assert np.array_equal(view.permute(1, 2, 3, 0).numpy(), expected)
    (centre,) = EvalTransform(60)(frames)
    assert torch.equal(centre, views[1])


def test_a_view_of_a_larger_short_side_is_its_centre():
    frames = _frames(128, 128)
    (view,) = EvalTransform(56, short_side=64)(frames)
    (whole,) = EvalTransform(64)(frames)
    difference = view.int() - whole[..., 4:60, 4:60].int()
    assert view.shape == (3, 3, 56, 56) and difference.abs().float().mean() < 1.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalize(dtype):
    clips = torch.randint(0, 256, (2, 4, 6, 6, 3), dtype=torch.uint8).permute(0, 4, 1, 2, 3)
    out = normalize(clips, dtype)
    mean, std = (torch.tensor(v).view(-1, 1, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    expected = (clips / 255.0 - mean) / std
    assert out.dtype == dtype and out.is_contiguous()
    assert (out.float() - expected).abs().max() < (1e-5 if dtype == torch.float32 else 0.02)
