"""The drifting textures: exact, the same from the same seed, and with nothing to see in a single frame."""

import av
import numpy as np
import pytest
import torch

from src.datasets.embedded import generate
from src.datasets.embedded.drift_scene import DIRECTIONS, DriftConfig, draw_texture, render_drift
from src.datasets.embedded.generate import main, write_motion
from src.datasets.embedded.scenes import SCENES, render_split
from src.datasets.embedded.store import check_motion
from src.datasets.transforms import normalize
from src.utils.errors import UserError

STILL = DriftConfig(noise=0.0)


@pytest.mark.parametrize("label", range(8))
def test_the_texture_moves_as_its_class_says(label):
    clip = render_drift(np.random.default_rng(1), label, DriftConfig(noise=0.0, speed=1.0))[..., 0].astype(float)
    heading = 2 * np.pi * label / 8
    shift = np.round(8 * np.array([np.sin(heading), np.cos(heading)])).astype(int)  # over 8 frames: rows, columns
    errors = {sense: abs(np.roll(clip[0], tuple(sense * shift), axis=(0, 1)) - clip[8]).mean() for sense in (-1, 0, 1)}
    # On the diagonals 8 frames are 5.66 pixels: rounded to 6, a third of a pixel off on either axis.
    assert errors[1] < 0.4 * min(errors[0], errors[-1]), (DIRECTIONS[label], errors)


def test_a_clip_backwards_is_a_clip_of_the_opposite_class():
    for label in range(8):
        forth = render_drift(np.random.default_rng(2), label, STILL).astype(int)
        back = render_drift(np.random.default_rng(2), (label + 4) % 8, STILL).astype(int)
        assert abs(forth[::-1] - back).max() <= 1  # a rounding
        assert abs(forth - back).max() > 60


def test_a_texture_has_no_brightness_and_nothing_larger_than_its_grain():
    texture = draw_texture(np.random.default_rng(3), 64, grain=2.0)
    assert texture.std() == pytest.approx(1) and abs(texture.mean()) < 1e-9
    blocks = texture.reshape(4, 16, 4, 16).mean(axis=(1, 3))  # of a token's size
    assert blocks.std() < 0.06  # white noise: 1 / 16
    far = np.mean([abs(np.corrcoef(texture.ravel(), np.roll(texture, d, axis=1).ravel())[0, 1]) for d in range(12, 52)])
    assert far < 0.06


def test_clips_depend_on_the_seed_and_every_class_is_as_frequent():
    scene = DriftConfig()
    first, again = (list(render_split("train", count, 7, scene)) for count in (16, 24))
    assert all(np.array_equal(a[0], b[0]) and a[1:] == b[1:] for a, b in zip(first, again))
    assert sorted(label for _, label in first) == sorted([*range(8)] * 2)
    for other in (render_split("train", 1, 8, scene), render_split("val", 1, 7, scene)):
        assert not np.array_equal(first[0][0], next(other)[0])
    clip = first[0][0]
    assert clip.shape == (16, 64, 64, 3) and clip.dtype == np.uint8
    assert (clip == 0).mean() < 0.01 and (clip == 255).mean() < 0.01
    inputs = normalize(torch.from_numpy(clip.transpose(3, 0, 1, 2).copy())[None])
    assert inputs.mean(dim=(0, 2, 3, 4)).abs().max() < 0.02 and 0.6 < inputs.std() < 0.9  # centred in each channel


def test_a_set_on_disk(tmp_path, capsys):
    root = tmp_path / "drift"
    main(["--scene", "drift", "--out", str(root), "--train", "16", "--val", "8", "--workers", "1"])
    assert "16 + 8 clips written" in capsys.readouterr().out
    assert check_motion(root) == 26  # and no list of digits
    assert sorted(path.name for path in root.glob("*.csv")) == ["train.csv", "val.csv"]
    name, label = (root / "train.csv").read_text().splitlines()[0].split()
    with av.open(str(root / name)) as file:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]).astype(float)
    clip, expected = next(render_split("train", 1, 0, DriftConfig()))
    assert int(label) == expected and frames.shape == clip.shape
    assert abs(frames[..., 1] - clip[..., 1]).mean() < 4  # the codec's, of 255
    assert write_motion(root, DriftConfig(), train=16, val=8) is False
    with pytest.raises(UserError, match="other settings"):
        write_motion(root, SCENES["digits"], train=16, val=8)


def test_the_slow_set_moves_less_and_is_written_where_a_config_names_it(tmp_path, monkeypatch):
    slow = SCENES["slow_drift"]
    assert slow.speed == pytest.approx(0.4 * DriftConfig().speed)
    paths = [next(render_split("train", 1, 0, s))[0].astype(float) for s in (slow, DriftConfig())]
    changes = [abs(clip[4] - clip[0]).mean() for clip in paths]  # in four frames: 1.2 and 3 pixels of a grain of 2
    assert changes[0] < 0.75 * changes[1]
    monkeypatch.setattr(generate, "write_motion", lambda root, scene: (root, scene))
    assert generate.ensure_embedded(tmp_path / "train.csv", "SlowDriftDataset") == (tmp_path, slow)
    assert generate.ensure_embedded(tmp_path / "train.csv", "DriftDataset") == (tmp_path, DriftConfig())
