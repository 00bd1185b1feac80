"""Clips of a split: from the seed alone, and nothing to be told from a single frame."""

import numpy as np

from src.datasets.embedded.digit_scene import SceneConfig
from src.datasets.embedded.scenes import digit_images, render_split

SCENE = SceneConfig()


def test_clips_depend_on_the_seed_and_on_nothing_else():
    first = list(render_split("train", 20, 7, SCENE))
    again = list(render_split("train", 24, 7, SCENE))
    assert all(np.array_equal(a[0], b[0]) and a[1:] == b[1:] for a, b in zip(first, again))
    clip = first[0][0]
    assert clip.shape == (16, 64, 64, 3) and clip.dtype == np.uint8
    for other in (render_split("train", 1, 8, SCENE), render_split("val", 1, 7, SCENE)):
        assert not np.array_equal(clip, next(other)[0])


def features(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """What a probe sees of two frames (N, 64, 64, 3): pictures, oriented edges, one frame against the other moved.

    Of one frame shown twice, the last is its autocorrelation.
    """
    a, b = (f.astype(np.float32).mean(axis=-1) for f in (first, second))
    small = [f.reshape(-1, 8, 8, 8, 8).mean(axis=(2, 4)) for f in (a, b - a)]
    gx, gy = np.roll(a, -1, 2) - a, np.roll(a, -1, 1) - a
    kind = (np.arctan2(gy, gx) / np.pi * 4).astype(int) % 8
    edges = [
        (np.hypot(gx, gy) * (kind == k)).reshape(-1, 4, 16, 4, 16).mean(axis=(2, 4)).reshape(len(a), -1)
        for k in range(8)
    ]
    cross = np.fft.rfft2(b) * np.fft.rfft2(a).conj()
    match = np.fft.fftshift(np.fft.irfft2(cross / (abs(cross) + 100)), axes=(1, 2))[:, 27:38, 27:38]
    return np.concatenate([s.reshape(len(a), -1) for s in (*small, *edges, match)], axis=1)


def probe(x: np.ndarray, y: np.ndarray, train: int) -> float:
    """Held-out accuracy of a ridge classifier, its penalty the best of three: the probe is given every chance."""
    x = (x - x[:train].mean(axis=0)) / (x[:train].std(axis=0) + 1e-6)
    target = np.eye(16)[y[:train]] - 1 / 16
    gram, moment = x[:train].T @ x[:train], x[:train].T @ target
    return max(
        float(((x[train:] @ np.linalg.solve(gram + c * np.eye(len(gram)), moment)).argmax(axis=1) == y[train:]).mean())
        for c in (100.0, 1000.0, 10000.0)
    )


def test_one_frame_tells_nothing_and_two_tell_much():
    count, train = 640, 384
    clips, labels, _ = zip(*render_split("train", count, 11, SCENE))
    clips, labels = np.stack(clips), np.array(labels)
    at = np.random.default_rng(0).integers(0, 14, count), np.arange(count)
    frame, later = clips[at[1], at[0]], clips[at[1], at[0] + 2]
    single, double = probe(features(frame, frame), labels, train), probe(features(frame, later), labels, train)
    error = np.sqrt(1 / 16 * 15 / 16 / (count - train))
    print(f"one frame {single:.3f}, two frames {double:.3f}, chance {1 / 16:.4f} +- {error:.4f}")
    assert single < 1 / 16 + 3.5 * error
    assert double > 1 / 16 + 8 * error


def test_no_digit_image_is_in_both_splits():
    train, val = ({image.tobytes() for images in digit_images(split) for image in images} for split in ("train", "val"))
    assert len(train) > 1000 and len(val) > 300
    assert not train & val
    assert all(len(images) for split in ("train", "val") for images in digit_images(split))
