"""The embedded data on disk: the same from the same seed, and whole whatever happens while it is written."""

import json
import multiprocessing
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from src.datasets.embedded import generate, store
from src.datasets.embedded.digit_scene import CLASSES, SceneConfig
from src.datasets.embedded.generate import write_motion
from src.datasets.embedded.scenes import render_split
from src.datasets.embedded.store import check_motion
from src.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[4]
SCENE = SceneConfig()
TINY = {"train": 32, "val": 16, "seed": 3, "workers": 1}
TINY_FLAGS = ["--train", "32", "--val", "16", "--seed", "3"]


def command(out: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "src.datasets.embedded.generate", "--out", str(out), *flags]


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


# --- Lists and videos


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


def test_a_complete_set_is_left_alone_at_once(tiny, monkeypatch):
    before = {p: p.stat().st_mtime_ns for p in tiny.rglob("*")}

    def touched(*args, **kwargs):
        raise AssertionError("nothing is to be rendered, read or written")

    for name in ("render_index", "encode", "digest_of", "temporary_sibling", "put_in_place"):
        monkeypatch.setattr(generate, name, touched)
    monkeypatch.setattr(store, "digest_of", touched)
    assert write_motion(tiny, **TINY) is False
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


def test_a_killed_writer_leaves_no_set_and_is_cleaned_up_after(tmp_path, wait_for):
    root = tmp_path / "set"
    words = command(root, "--train", "100000", "--workers", "2")
    writer = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        begun = ".set.tmp-*/set/videos/train/00000[1-9].mp4"
        wait_for(lambda: list(tmp_path.glob(begun)) or writer.poll() is not None, "a clip")
        assert writer.poll() is None
    finally:
        writer.send_signal(signal.SIGKILL)
        # Its processes notice and end by themselves: nobody has its output open any more, and nothing is written there.
        writer.communicate(timeout=300)
    assert not root.exists()
    left = list(tmp_path.glob(".set.tmp-*"))
    assert len(left) == 1
    assert write_motion(root, **TINY) is True
    assert check_motion(root) == 52
    assert names_in(tmp_path) == ["set"]


def test_two_processes_at_once_both_end_with_a_good_set(tiny, tmp_path):
    root = tmp_path / "set"
    writers = [subprocess.Popen(command(root, *TINY_FLAGS, "--workers", "1"), cwd=ROOT) for _ in range(2)]
    assert [writer.wait(timeout=300) for writer in writers] == [0, 0]
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
    process.join(timeout=300)
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


# --- Where a config may have a set written


@pytest.mark.parametrize(
    ("path", "folder", "message"),
    [
        ("data/drift/train.csv", "work", None),
        ("val.csv", "work", None),
        ("{root}/work/deep/er/train.csv", "work", None),
        ("{root}/set/val.csv", "work", None),
        ("../set/val.csv", "work", None),
        ("{root}/dtaa/drift/train.csv", "work", r"train\.csv does not exist, and .*dtaa does not exist either"),
        ("../dtaa/drift/train.csv", "work", "dtaa does not exist either: mend the path, or make its folder"),
        ("{root}/work/../dtaa/drift/train.csv", "work", "dtaa does not exist either"),
        ("/drifft-nowhere/train.csv", "work", "is the root of the disk"),
        ("/dtaa-nowhere/drift/train.csv", "/", "/dtaa-nowhere does not exist either"),
        (
            "data/drift/trian.csv",
            "work",
            r"trian\.csv does not exist, and DriftDataset has only the lists train\.csv, val",
        ),
        ("{root}/set/train_digit.csv", "work", "has only the lists"),
    ],
)
def test_a_mistyped_path_writes_nothing(tmp_path, monkeypatch, path, folder, message):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / folder)
    monkeypatch.setattr(generate, "write_motion", lambda root, scene: written.append(root))
    written: list[Path] = []
    path = Path(path.format(root=tmp_path))
    if message is None:
        generate.ensure_embedded(path, "DriftDataset")
        assert written == [path.parent]
    else:
        with pytest.raises(UserError, match=message):
            generate.ensure_embedded(path, "DriftDataset")
        assert written == [] and names_in(tmp_path) == ["work"] and names_in(tmp_path / "work") == []


def test_a_list_that_is_there_is_taken_with_its_set(tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "write_motion", lambda root, scene: root)
    (tmp_path / "few.csv").touch()
    assert generate.ensure_embedded(tmp_path / "few.csv", "MotionDataset") == tmp_path
    with pytest.raises(UserError, match=r"train\.csv, train_digit\.csv, val\.csv"):
        generate.ensure_embedded(tmp_path / "some.csv", "MotionDataset")
