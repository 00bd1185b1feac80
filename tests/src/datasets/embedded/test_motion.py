"""The embedded data: exact by construction, the same from the same seed, whole whatever happens while it is written."""

import json
import multiprocessing
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from src.datasets.embedded.motion import write_motion
from src.datasets.embedded.motion_scene import (
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
from src.datasets.embedded.motion_store import check_motion
from src.datasets.embedded.scenes import digit_images, render_split
from src.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[4]
SCENE = SceneConfig()
TINY = {"train": 32, "val": 16, "seed": 3, "workers": 1}
TINY_FLAGS = ["--train", "32", "--val", "16", "--seed", "3"]


def command(out: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "src.datasets.embedded.motion", "--out", str(out), *flags]


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """One small set, for tests that only read it."""
    root = tmp_path_factory.mktemp("motion") / "set"
    assert write_motion(root, **TINY)
    return root


# --- The clips


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


def test_clips_depend_on_the_seed_and_on_nothing_else():
    first = list(render_split("train", 20, 7, SCENE))
    again = list(render_split("train", 24, 7, SCENE))
    assert all(np.array_equal(a[0], b[0]) and a[1:] == b[1:] for a, b in zip(first, again))
    clip = first[0][0]
    assert clip.shape == (16, 64, 64, 3) and clip.dtype == np.uint8
    for other in (render_split("train", 1, 8, SCENE), render_split("val", 1, 7, SCENE)):
        assert not np.array_equal(clip, next(other)[0])


def test_another_size_and_length():
    small = replace(SCENE, size=32, frames=5, glyph=(10.0, 12.0))
    assert render_clip(np.random.default_rng(0), 4, np.ones((12, 12)), small).shape == (5, 32, 32, 3)


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


# --- The digits and labels


def test_no_digit_image_is_in_both_splits():
    train, val = ({image.tobytes() for images in digit_images(split) for image in images} for split in ("train", "val"))
    assert len(train) > 1000 and len(val) > 300
    assert not train & val
    assert all(len(images) for split in ("train", "val") for images in digit_images(split))


def test_lists_are_balanced_and_point_at_the_files(tiny):
    for split, count in (("train", 32), ("val", 16)):
        rows, digits = ([line.rsplit(" ", 1) for line in (tiny / name).read_text().splitlines()]
                        for name in (f"{split}.csv", f"{split}_digit.csv"))  # fmt: skip
        assert [path for path, _ in rows] == [path for path, _ in digits]
        assert all((tiny / path).is_file() for path, _ in rows)
        assert (np.bincount([int(label) for _, label in rows], minlength=16) == count // 16).all()
        assert np.ptp(np.bincount([int(digit) for _, digit in digits], minlength=10)) <= 3
        rendered = [(label, digit) for _, label, digit in render_split(split, count, 3, SCENE)]
        assert rendered == [(int(a), int(b)) for (_, a), (_, b) in zip(rows, digits)]


def test_videos_are_h264_and_look_as_rendered(tiny):
    av = pytest.importorskip("av")
    clip, _, _ = next(render_split("val", 1, 3, SCENE))
    with av.open(str(tiny / "videos/val/000000.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 8)
        frames = list(container.decode(stream))
    assert all(frame.key_frame for frame in frames)
    seen = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])
    assert seen.shape == clip.shape
    errors = ((seen.astype(float) - clip) ** 2).mean(axis=(1, 2, 3))
    assert errors.max() < 60 and errors.max() / errors.min() < 1.5  # every frame is coded alike


# --- Writing


def test_two_writes_give_the_same_bytes_with_one_or_two_processes(tiny, tmp_path):
    done = []
    assert write_motion(tmp_path / "again", **{**TINY, "workers": 2}, progress=lambda: done.append(1))
    assert len(done) == 48
    assert contents(tmp_path / "again") == contents(tiny)
    manifest = json.loads((tiny / "manifest.json").read_text())
    assert manifest["classes"] == list(CLASSES) and manifest["versions"].keys() == {"av", "numpy", "scikit-learn"}


def test_a_complete_set_is_left_alone_at_once(tiny):
    before = {p: p.stat().st_mtime_ns for p in tiny.rglob("*")}
    start = time.perf_counter()
    assert write_motion(tiny, **TINY) is False
    assert time.perf_counter() - start < 0.3
    assert {p: p.stat().st_mtime_ns for p in tiny.rglob("*")} == before


def test_a_set_that_lost_a_file_is_written_again(tmp_path):
    root = tmp_path / "set"
    write_motion(root, **TINY)
    whole = contents(root)
    (root / "videos/train/000005.mp4").unlink()
    with pytest.raises(UserError, match=r"000005\.mp4 is missing"):
        check_motion(root)
    assert write_motion(root, **TINY) is True
    assert contents(root) == whole
    assert names_in(tmp_path) == ["set"]


def test_a_killed_writer_leaves_no_set_and_is_cleaned_up_after(tmp_path):
    root = tmp_path / "set"
    writer = subprocess.Popen(command(root, "--train", "4000", "--workers", "2"), cwd=ROOT)
    try:
        deadline = time.monotonic() + 30
        while not list(tmp_path.glob(".set.tmp-*/set/videos/train/00000[1-9].mp4")):
            assert time.monotonic() < deadline and writer.poll() is None
            time.sleep(0.02)
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert not root.exists()
    left = list(tmp_path.glob(".set.tmp-*"))
    assert len(left) == 1
    # Its processes notice and end by themselves: nothing is written there any more.
    counts = []
    while len(counts) < 3 or len(set(counts[-3:])) > 1:
        assert len(counts) < 40
        counts.append(len(list(left[0].rglob("*.mp4"))))
        time.sleep(0.15)
    assert write_motion(root, **TINY) is True
    assert check_motion(root) == 52
    assert names_in(tmp_path) == ["set"]


def test_two_processes_at_once_both_end_with_a_good_set(tiny, tmp_path):
    root = tmp_path / "set"
    writers = [subprocess.Popen(command(root, *TINY_FLAGS, "--workers", "1"), cwd=ROOT) for _ in range(2)]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    assert contents(root) == contents(tiny)
    assert names_in(tmp_path) == ["set"]


def test_the_slower_of_two_writers_discards_its_copy(tiny, tmp_path):
    root, outcome = tmp_path / "set", []

    def faster():  # a whole other write, while the first clip of the slower one is done
        if not outcome:
            outcome.append(None)
            outcome[0] = write_motion(root, **TINY)
            outcome.append(root.stat().st_ino)

    assert write_motion(root, **TINY, progress=faster) is False
    assert outcome == [True, root.stat().st_ino]
    assert contents(root) == contents(tiny)
    assert names_in(tmp_path) == ["set"]


def test_a_daemonic_process_writes_alone(tmp_path):
    settings = {"root": tmp_path / "set", "train": 16, "val": 16, "workers": 4}
    process = multiprocessing.get_context("spawn").Process(target=write_motion, kwargs=settings, daemon=True)
    process.start()
    process.join(timeout=60)
    assert process.exitcode == 0
    assert check_motion(tmp_path / "set") == 36


# --- What is refused


def test_check_names_the_file_with_a_flipped_byte(tmp_path):
    root = tmp_path / "set"
    write_motion(root, train=16, val=16, workers=1)
    assert check_motion(root) == 36
    bad = root / "videos/val/000007.mp4"
    data = bytearray(bad.read_bytes())
    data[len(data) // 2] ^= 1
    bad.write_bytes(data)
    result = subprocess.run(command(root, "--check"), cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.startswith("error: ") and "val/000007.mp4" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_other_settings_are_refused_by_name(tiny):
    before = contents(tiny)
    with pytest.raises(UserError, match=r"other settings \(seed 3 there, 4 asked\)"):
        write_motion(tiny, **{**TINY, "seed": 4})
    with pytest.raises(UserError, match=r"scene\.noise 0\.02 there, 0\.5 asked"):
        write_motion(tiny, scene=replace(SCENE, noise=0.5), **TINY)
    assert contents(tiny) == before


def test_what_is_not_ours_is_refused_and_left(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "holiday.txt").write_text("keep me")
    with pytest.raises(UserError, match="not a motion data set"):
        write_motion(mine, **TINY)
    for text in ("{}", "[]", "not json", '{"kind": "motion-digits"}'):
        (mine / "manifest.json").write_text(text)
        with pytest.raises(UserError, match="not a motion data set"):
            write_motion(mine, **TINY)
    assert (mine / "holiday.txt").read_text() == "keep me"
    with pytest.raises(UserError, match="not a motion data set"):
        write_motion(mine / "holiday.txt", **TINY)
    with pytest.raises(UserError, match="cannot write"):
        write_motion(mine / "holiday.txt" / "below", **TINY)
    with pytest.raises(UserError, match="holds no motion data set"):
        check_motion(tmp_path / "nothing")
    with pytest.raises(UserError, match="at least one clip"):
        write_motion(tmp_path / "none", train=0)
    with pytest.raises(UserError, match="seed is 0 or more"):
        write_motion(tmp_path / "none", seed=-1)


def test_an_empty_folder_and_a_link_to_one_are_written_to(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert write_motion(tmp_path / "link", train=1, val=1, workers=1)
    assert check_motion(tmp_path / "real") == 6
