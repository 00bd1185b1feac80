"""Augmentation for pretraining: every option keeps shape and type, and depends on the generator alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from src.datasets.augmentation import OPERATIONS, RandAugment, make_transforms, random_erase

torch.set_num_threads(1)
CLIP = np.random.default_rng(0).integers(0, 256, (4, 48, 72, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"auto_augment": True},
        {"motion_shift": True},
        {"reprob": 1.0},
        {"auto_augment": True, "motion_shift": True, "reprob": 0.5, "horizontal_flip": False},
        {"random_resize_scale": [1, 1], "random_resize_aspect_ratio": [1, 1]},
    ],
)
def test_shape_type_and_determinism(options):
    transform = make_transforms(crop_size=32, **options)
    before = CLIP.copy()
    for seed in range(8):
        clip = transform(CLIP, np.random.default_rng(seed))
        assert clip.shape == (3, 4, 32, 32) and clip.dtype == torch.uint8
        assert torch.equal(clip, transform(CLIP, np.random.default_rng(seed)))
    assert np.array_equal(CLIP, before), "the frames passed in must not be written to"
    assert not torch.equal(clip, transform(CLIP, np.random.default_rng(100)))


def test_whole_frames_are_passed_through():
    frames = CLIP[:, :, :48]
    transform = make_transforms(48, [1, 1], [1, 1], horizontal_flip=False)
    clip = transform(frames, np.random.default_rng(0))
    assert np.array_equal(clip.permute(1, 2, 3, 0).numpy(), frames)


def test_motion_shift_moves_the_crop_over_a_still_picture():
    still = np.repeat(CLIP[:1], 6, axis=0)
    moving = make_transforms(24, [0.2, 0.3], motion_shift=True, horizontal_flip=False)(still, np.random.default_rng(1))
    resting = make_transforms(24, [0.2, 0.3], horizontal_flip=False)(still, np.random.default_rng(1))
    assert all(torch.equal(resting[:, 0], resting[:, i]) for i in range(6))
    assert not torch.equal(moving[:, 0], moving[:, 5])


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_keeps_shape_and_does_something(name):
    from PIL import Image

    ramp = np.stack([np.tile(np.arange(40, 200, 4, dtype=np.uint8), (40, 1))] * 3, axis=-1)
    ramp[10:20, 5:15] = (200, 30, 60)
    out = np.asarray(OPERATIONS[name](Image.fromarray(ramp), 0.7, 1))
    assert out.shape == ramp.shape and out.dtype == np.uint8
    assert not np.array_equal(out, ramp)


def test_rand_augment_treats_all_frames_alike():
    still = np.repeat(CLIP[:1], 3, axis=0)
    for seed in range(10):
        out = RandAugment()(still, np.random.default_rng(seed))
        assert np.array_equal(out[0], out[1]) and np.array_equal(out[0], out[2])


def test_erasing_covers_one_box_in_all_frames():
    rng = np.random.default_rng(0)
    for _ in range(20):
        erased = random_erase(CLIP, rng)
        changed = (erased != CLIP).any(axis=-1)
        rows, columns = np.where(changed.any(axis=0))
        share = (np.ptp(rows) + 1) * (np.ptp(columns) + 1) / (48 * 72)
        assert 0.01 < share < 0.36
        box = changed[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert box.mean() > 0.95, "noise in every frame"
