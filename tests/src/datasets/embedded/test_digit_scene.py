"""The moving digits: exact by construction, and a clip played backwards is one of another class."""

from dataclasses import replace

import numpy as np
import pytest

from src.datasets.embedded.digit_scene import (
    CLASSES,
    DIRECTION,
    REVERSED,
    SceneConfig,
    draw_object,
    draw_path,
    glyph_mask,
    render_clip,
    render_path,
)
from src.datasets.embedded.scenes import digit_images

SCENE = SceneConfig()


def test_classes_come_in_time_reversed_pairs():
    assert len(CLASSES) == len(set(CLASSES)) == 16
    for label, back in enumerate(REVERSED):
        assert back != label and REVERSED[back] == label
        np.testing.assert_array_equal(DIRECTION[back], -DIRECTION[label])
    np.testing.assert_allclose(np.linalg.norm(DIRECTION, axis=1), 1)


@pytest.mark.parametrize("label", range(16))
def test_a_path_reversed_is_a_path_of_the_reversed_class(label):
    path = draw_path(np.random.default_rng(label), label, SCENE)
    back = path.reversed()
    assert back.label == REVERSED[label]
    np.testing.assert_allclose(back.phases(16), path.phases(16)[::-1], atol=1e-12)
    np.testing.assert_allclose(back.world(16), path.world(16)[::-1], atol=1e-12)
    # A path of a class moves along that class's direction and no other coordinate, at a speed within the range.
    for one in (path, back):
        assert one.velocity @ DIRECTION[one.label] == pytest.approx(np.linalg.norm(one.velocity))
        assert np.linalg.norm(one.world_velocity - one.velocity[:2] * SCENE.size) >= SCENE.relative_speed


@pytest.mark.parametrize("label", [0, 9, 10, 13, 14])
def test_rendering_a_reversed_path_plays_the_clip_backwards(label):
    still = replace(SCENE, noise=0.0)
    path = draw_path(np.random.default_rng(label), label, still)
    glyph = digit_images("val")[5][0]
    forth = render_path(np.random.default_rng(1), path, glyph, still).astype(int)
    back = render_path(np.random.default_rng(1), path.reversed(), glyph, still).astype(int)
    assert abs(forth[::-1] - back).max() <= 1  # a rounding
    assert abs(forth - back).max() > 20


def test_every_phase_is_uniform_at_every_frame_whatever_the_class():
    rng, draws = np.random.default_rng(0), 300
    for label in range(16):
        phases = np.stack([draw_path(rng, label, SCENE).phases(16) for _ in range(draws)])
        # Rayleigh's test: draws * |mean direction|^2 exceeds z with probability exp(-z) if uniform.
        assert (draws * abs(np.exp(2j * np.pi * phases).mean(axis=0)) ** 2).max() < 14, CLASSES[label]


def test_the_object_moves_as_its_class_says():
    mask = glyph_mask(digit_images("val")[8][0])

    def measure(label):  # of the object alone, over a clip that does not wrap
        calm = replace(SCENE, wobble=0.0, zoom=(0.4, 0.8), gap=(0.7, 1.2))
        path = draw_path(np.random.default_rng(0), label, calm)
        path = replace(path, middle=np.full(6, 0.5), velocity=path.velocity * 0.5)
        cover = draw_object(path.phases(16), mask, 20.0, 0.0, calm)
        weight = cover.sum(axis=(1, 2))
        grid = np.arange(64)
        x, y = (cover.sum(axis=1) @ grid) / weight, (cover.sum(axis=2) @ grid) / weight
        dx, dy = grid[None, None, :] - x[:, None, None], grid[None, :, None] - y[:, None, None]
        spread = (cover * (dx**2 + dy**2)).sum(axis=(1, 2)) / weight
        angle = np.unwrap(np.arctan2(2 * (cover * dx * dy).sum((1, 2)), (cover * (dx**2 - dy**2)).sum((1, 2)))) / 2
        last = {"x": x, "y": y, "angle": angle, "spread": spread, "mass": weight, "peak": cover.max(axis=(1, 2))}
        return {name: value[-1] - value[0] for name, value in last.items()}

    moves = {name: measure(label) for label, name in enumerate(CLASSES)}
    for names, what, sense in [
        ("right down_right up_right", "x", 1),
        ("left up_left down_left", "x", -1),
        ("down down_right down_left", "y", 1),
        ("up up_left up_right", "y", -1),
    ]:
        assert all(sense * moves[name][what] > 3 for name in names.split())
    assert moves["clockwise"]["angle"] > 0.5 > -0.5 > moves["counterclockwise"]["angle"]
    assert moves["zoom_in"]["mass"] > 30 and moves["zoom_out"]["mass"] < -30
    assert moves["part"]["spread"] > 5 and abs(moves["part"]["mass"]) < 30 and moves["approach"]["spread"] < -5
    assert moves["appear"]["peak"] > 0.1 and abs(moves["appear"]["spread"]) < 1 and moves["vanish"]["peak"] < -0.1


def test_another_size_and_length():
    small = replace(SCENE, size=32, frames=5, glyph=(10.0, 12.0))
    assert render_clip(np.random.default_rng(0), 4, np.ones((12, 12)), small).shape == (5, 32, 32, 3)
