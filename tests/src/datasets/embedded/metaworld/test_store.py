"""Sets of Meta-World clips, rendered for real; skipped where that cannot be."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest

from src.datasets.data_manager import init_data
from src.datasets.embedded.metaworld.__main__ import main
from src.datasets.embedded.metaworld.platform import choose_platform
from src.datasets.embedded.metaworld.tasks import CLASSES, PAIRS, TASKS
from src.utils.errors import UserError

MISSING = [name for name in ("metaworld", "mujoco") if importlib.util.find_spec(name) is None]


@pytest.fixture(scope="session")
def renderer():
    """Skips, with the reason, where nothing can be rendered."""
    try:
        choose_platform()
    except UserError as error:
        pytest.skip(str(error))


SMALL = ["--size", "32", "--frames", "4", "--workers", "1"]


def _command(out, *more):
    return [sys.executable, "-m", "src.datasets.embedded.metaworld", "--out", str(out), *SMALL, *more]


def _digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


def test_classes_come_in_pairs_of_one_scene():
    assert len(TASKS) == len(CLASSES) == 2 * len(PAIRS) == len(set(TASKS)) == 24
    assert CLASSES[6:8] == ("faucet_open", "faucet_close")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of --out DIR and --preview PNG"),
        (["--out", "x", "--size", "63"], "--size must be even"),
        (["--out", "x", "--train", "-1"], "--train must be at least 0"),
        (["--out", "x", "--workers", "0"], "--workers must be at least 1"),
    ],
)
def test_arguments_that_make_no_sense(arguments, message):
    with pytest.raises(UserError, match=message):
        main(arguments)


@pytest.mark.skipif(not MISSING, reason="metaworld is installed")
def test_without_the_extra_one_line_says_what_to_install(tmp_path):
    with pytest.raises(UserError, match=r"pip install -e '\.\[scenes\]'"):
        main(["--out", str(tmp_path / "set")])


@pytest.fixture(scope="module")
def whole(tmp_path_factory, renderer):
    """A set of two training shards and a validation shard of 6 clips."""
    out = tmp_path_factory.mktemp("metaworld") / "set"
    done = subprocess.run(_command(out, "--train", "122", "--val", "6", "--test", "0"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def test_a_set_is_read_like_any_shards(whole):
    loader = init_data(
        dataset_type="WebVideoDataset",
        datasets=[f"{whole}/val-*.tar"],
        batch_size=6,
        num_frames=4,
        sampling_rate=1,
        training=False,
        random_clip_sampling=False,
    )
    (batch,) = list(loader)
    assert batch.clips[0].shape == (6, 3, 4, 32, 32) and sorted(batch.labels.tolist()) == list(range(6))
    assert batch.clips[0].float().std() > 10
    manifest = json.loads((whole / "manifest.json").read_text())
    assert manifest["clips"] == 128 and manifest["versions"]["mujoco"]
    assert all(hashlib.sha256((whole / n).read_bytes()).hexdigest() == d for n, d in manifest["files"].items())
    assert (whole / "classes.txt").read_text().split() == list(CLASSES)


def test_the_truth_beside_a_clip(whole):
    with tarfile.open(whole / "val-000000.tar") as archive:
        about = json.load(archive.extractfile("000003.json"))
        truth = np.load(io.BytesIO(archive.extractfile("000003.npz").read()))
        assert archive.extractfile("000003.cls").read() == b"3"
    assert (about["class"], about["scene"], about["direction"], about["split"]) == ("drawer_close", 1, 1, "val")
    assert truth["hand_world"].shape == (4, 3) and truth["hand_image"].shape == (4, 2)
    assert truth["hand_image"].min() > 0 and truth["hand_image"].max() < 32
    assert np.abs(np.diff(truth["objects"], axis=0)).max() > 1e-3  # the drawer moves


def test_a_killed_run_ends_with_the_same_bytes(whole, tmp_path):
    out = tmp_path / "set"
    command = _command(out, "--train", "122", "--val", "6", "--test", "0")
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 300
    while not (out / "train-000000.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "manifest.json").exists()
    subprocess.run(command, check=True, capture_output=True)
    assert _digests(out) == _digests(whole)
    with pytest.raises(UserError, match="begun with another seed"):
        main(["--out", str(out), *SMALL, "--train", "122", "--val", "6", "--test", "0", "--seed", "1"])
