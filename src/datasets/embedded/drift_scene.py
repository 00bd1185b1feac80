"""Scenes of two embedded sets, one slow: a random texture fills the frame and drifts in one of eight directions.

No two places of the texture have anything in common but how they move: it is noise, band-passed so that neither the
brightness of a region nor a shape larger than a few pixels is there to be seen, and moves over a torus, so that every
frame of every class has one distribution. What can be predicted of one place from others is the motion alone, and it
is what the label says. All clips of a set have one speed: it would be a second thing in common.

Units: pixels and frames. Legend: T frames, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from src.datasets.embedded.digit_scene import pan

DIRECTIONS: tuple[str, ...] = ("right", "down_right", "down", "down_left", "left", "up_left", "up", "up_right")


@dataclass(frozen=True)
class DriftConfig:
    """Everything that sets how hard the data is."""

    frames: int = 16
    size: int = 64  # side of the square image
    fps: int = 8
    speed: float = 0.75  # pixels per frame
    grain: float = 2.0  # of the texture: lengths well above it are filtered out, and those below half of it
    contrast: float = 0.16  # the texture's standard deviation, white minus black being 1
    colour: tuple[float, float, float] = (0.485, 0.456, 0.406)  # the mean: what inputs are normalised with is taken off
    noise: float = 0.07  # standard deviation of the sensor's, drawn anew for each frame


def draw_texture(rng: np.random.Generator, size: int, grain: float) -> np.ndarray:
    """A toroidal tile (H, W) of band-passed noise, mean 0 and variance 1."""
    radians = 2 * np.pi * np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)) * grain
    band = np.exp(-0.5 * (radians / 2) ** 2) * (1 - np.exp(-0.5 * radians**2))
    texture = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((size, size))) * band, s=(size, size))
    return texture / texture.std()


def render_drift(rng: np.random.Generator, label: int, scene: DriftConfig) -> np.ndarray:
    """One uint8 clip (T, H, W, 3), of one colour, of class `label` (DIRECTIONS; y grows downwards, as rows do)."""
    heading = 2 * np.pi * label / len(DIRECTIONS)
    velocity = scene.speed * np.array([np.cos(heading), np.sin(heading)])
    time = np.arange(scene.frames)[:, None] - (scene.frames - 1) / 2
    clip = pan(scene.contrast * draw_texture(rng, scene.size, scene.grain)[None], velocity * time)
    clip = clip + scene.noise * rng.standard_normal(clip.shape, dtype=np.float32)
    clip = clip.transpose(0, 2, 3, 1) + np.asarray(scene.colour, np.float32)
    return np.clip(clip * 255 + 0.5, 0, 255).astype(np.uint8)
