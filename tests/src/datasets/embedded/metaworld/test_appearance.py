"""Colours, patterns and cameras of the splits; none of it needs a renderer."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest

from src.datasets.embedded.metaworld.appearance import (
    HUES,
    LEVELS,
    PATTERNS,
    SPLITS,
    Camera,
    colour,
    draw_camera,
    texture,
)


def test_splits_share_no_hue_and_no_pattern():
    hues = [hue for split in SPLITS for hue in HUES[split]]
    patterns = [pattern for split in SPLITS for pattern in PATTERNS[split]]
    assert sorted(hues) == list(range(12)) and len(set(patterns)) == len(patterns)


@pytest.mark.parametrize("split", SPLITS)
def test_colours_have_the_hues_of_their_split(split):
    rng = np.random.default_rng(0)
    drawn = [colour(rng, split, (0.3, 0.9)) for _ in range(300)]
    twelfths = {int(colorsys.rgb_to_hsv(*rgb)[0] * 12) for rgb in drawn}
    assert twelfths == set(HUES[split]) and np.min(drawn) >= 0 and np.max(drawn) <= 1


@pytest.mark.parametrize("split", SPLITS)
def test_textures_are_pictures_with_the_contrast_asked_for(split):
    rng = np.random.default_rng(0)
    quiet, loud = (np.mean([texture(rng, split, 32, c).std(axis=(0, 1)).mean() for _ in range(20)]) for c in (0.1, 1.0))
    picture = texture(rng, split, 32, 1.0)
    assert picture.shape == (32, 32, 3) and picture.dtype == np.uint8 and quiet < loud


def test_the_middle_of_the_picture_is_what_the_camera_looks_at():
    camera = Camera((0.1, 0.6, 0.2), 0.8, 152.0, -30.0, 45.0)
    seen = camera.project(np.array([[0.1, 0.6, 0.2], [0.1, 0.6, 0.3], [0.1, 0.6, 0.2]]), 112)
    assert seen[0] == pytest.approx([56, 56])
    assert seen[1][0] == pytest.approx(56) and seen[1][1] < 56  # higher in the world is higher in the picture
    # From azimuth 180 one looks along -x: what lies further along y is further to the right, by the field of view.
    edge = 0.8 * np.tan(np.radians(22.5))
    right = Camera((0.0, 0.0, 0.0), 0.8, 180.0, 0.0, 45.0).project(np.array([[0.0, edge, 0.0]]), 112)
    assert right[0] == pytest.approx([112, 56])


@pytest.mark.parametrize("level", LEVELS)
def test_cameras_keep_the_hand_in_view(level):
    rng = np.random.default_rng(0)
    path = np.linspace([0.0, 0.45, 0.15], [0.1, 0.75, 0.1], 16)
    inside = 0
    for _ in range(50):
        seen = draw_camera(level, path, 45.0, rng).project(path, 1)
        inside += bool(seen.min() > 0 and seen.max() < 1)
    assert inside >= 48
