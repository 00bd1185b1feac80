"""One loader for all data: order, resuming, faults, and workers that die."""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from src.datasets.clip_reader import ClipReader
from src.datasets.data_manager import init_data
from src.datasets.decoding.decode import DecodeError
from src.datasets.decoding.frame_sampling import ClipSampling
from src.datasets.transforms import EvalTransform, TrainTransform
from src.datasets.video_dataset import VideoDataset
from src.masks.multiblock3d import MaskCollator
from src.utils.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
MASK = {
    "aspect_ratio": [0.75, 1.5],
    "num_blocks": 2,
    "spatial_scale": [0.2, 0.4],
    "temporal_scale": [1.0, 1.0],
    "max_temporal_keep": 1.0,
}


def _loader(lists, **kwargs):
    defaults = {
        "datasets": [lists] if isinstance(lists, (str, Path)) else lists,
        "batch_size": 4,
        "num_frames": 8,
        "sampling_rate": 2,
        "transform": TrainTransform(32),
        "total_steps": 6,
        "seed": 5,
    }
    return init_data(**(defaults | kwargs))


def _masks():
    return MaskCollator([MASK], 32, 8, 8, 2, seed=1)


def _fingerprints(loader):
    return [
        (b.step, b.clips[0].sum().item(), *(t.tolist() for t in (b.indices, b.labels, *b.clip_indices, *b.masks_enc)))
        for b in loader
    ]


def test_batches_have_the_documented_shapes(mp4_list):
    batch = next(iter(_loader(mp4_list, collator=_masks(), num_clips=2)))
    assert [c.shape for c in batch.clips] == [(4, 3, 8, 32, 32)] * 2 and batch.clips[0].dtype == torch.uint8
    assert batch.labels.shape == (4,) and batch.labels.dtype == torch.int64
    assert [i.shape for i in batch.clip_indices] == [(4, 8)] * 2 and batch.clip_indices[0].dtype == torch.int64
    assert batch.masks_enc[0].shape[0] == batch.masks_pred[0].shape[0] == len(batch) == 4
    assert (batch.step, batch.skipped, batch.attempts) == (0, [], 4)
    assert batch.to("cpu").clips[0].shape == (4, 3, 8, 32, 32)


def test_frames_and_labels_are_those_of_the_list(mp4_list, media):
    for batch in _loader(mp4_list, transform=None):
        for clip, index, frames, label in zip(batch.clips[0], batch.indices, batch.clip_indices[0], batch.labels):
            assert media.frame_numbers(clip.permute(1, 2, 3, 0).numpy()) == frames.tolist()
            assert label == index % 4


def test_order_masks_and_pixels_are_the_same_for_any_number_of_workers(mp4_list):
    reference = _fingerprints(_loader(mp4_list, collator=_masks()))
    assert [r[0] for r in reference] == list(range(6))
    for workers in (1, 4):
        assert _fingerprints(_loader(mp4_list, collator=_masks(), num_workers=workers)) == reference


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_sees_the_rest(mp4_list, workers):
    reference = _fingerprints(_loader(mp4_list, collator=_masks()))
    resumed = _loader(mp4_list, collator=_masks(), num_workers=workers, start_step=4)
    assert len(resumed) == 2
    assert _fingerprints(resumed) == reference[4:]


def test_ranks_share_a_step(mp4_list):
    whole = [b.indices.tolist() for b in _loader(mp4_list)]
    ranks = [[b.indices.tolist() for b in _loader(mp4_list, batch_size=2, rank=r, world_size=2)] for r in range(2)]
    assert [a + b for a, b in zip(*ranks)] == whole


def test_length_and_steps(mp4_list):
    loader = _loader(mp4_list, total_steps=None, world_size=2)
    assert (loader.dataset_size, loader.steps_per_pass, len(loader)) == (12, 1, 1)
    loader.total_steps = 7
    loader.start_step = 3
    assert len(loader) == 4
    assert len(_loader(mp4_list, training=False, batch_size=5)) == 3


def test_weighted_lists(mp4_list, tmp_path):
    (tmp_path / "one.csv").write_text(f"{mp4_list.parent}/video 0.mp4 9\n")
    loader = _loader([mp4_list, tmp_path / "one.csv"], datasets_weights=[1, 1], total_steps=20)
    labels = torch.cat([b.labels for b in loader])
    assert 0.25 < (labels == 9).float().mean() < 0.75


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_counts_each_video_once_and_repeats(mp4_list, workers):
    loader = _loader(
        mp4_list,
        training=False,
        batch_size=5,
        num_clips=2,
        random_clip_sampling=False,
        transform=EvalTransform(32, num_views=3),
        num_workers=workers,
    )
    for _ in range(2):
        batches = list(loader)
        assert torch.cat([b.indices for b in batches]).tolist() == list(range(12))
        assert [len(b.clips) for b in batches] == [6, 6, 6]
        assert batches[0].clip_indices[1][0].tolist() == [12, 14, 16, 18, 20, 22, 23, 23]


def _damaged(mp4_list, folder, good=10):
    """A list with one file of every fault among `good` sound ones."""
    sound = [f"{mp4_list.parent}/video {i}.mp4" for i in range(good)]
    data = Path(sound[0]).read_bytes()
    (folder / "zero.mp4").touch()
    (folder / "garbage.mp4").write_bytes(b"\x01\x02garbage" * 100)
    (folder / "truncated.mp4").write_bytes(data[: len(data) // 2])
    (folder / "folder.mp4").mkdir()
    bad = ["zero.mp4", "garbage.mp4", "truncated.mp4", "folder.mp4", "missing.mp4"]
    path = folder / "mixed.csv"
    path.write_text("".join(f"{p} 1\n" for p in [*bad, *sound]))
    return path, bad


@pytest.mark.parametrize("workers", [0, 2])
def test_faults_are_replaced_counted_and_written_down(mp4_list, tmp_path, workers):
    path, bad = _damaged(mp4_list, tmp_path)
    out = tmp_path / "run"
    settings = {"max_skip_fraction": 0.6, "num_workers": workers, "total_steps": 12, "folder": out}
    loader = _loader(path, **settings)
    batches = list(loader)
    assert all(len(b) == 4 and b.indices.min() >= len(bad) for b in batches)
    assert dict(loader.skips.kinds).keys() == {"empty", "unreadable", "truncated", "directory", "missing"}
    with (out / "skipped.csv").open() as file:
        rows = list(csv.reader(file))
    assert {Path(r[0]).name: r[1] for r in rows} == {
        "zero.mp4": "empty",
        "garbage.mp4": "unreadable",
        "truncated.mp4": "truncated",
        "folder.mp4": "directory",
        "missing.mp4": "missing",
    }
    assert len(rows) == 5 and all(r[2] for r in rows)
    again = list(_loader(path, **{**settings, "num_workers": 0}))
    assert (out / "skipped.csv").read_text().count("\n") == 5, "a resumed run adds only what is new"
    assert [b.indices.tolist() for b in again] == [b.indices.tolist() for b in batches]


@pytest.mark.parametrize("decoder", ["auto", "decord"])
def test_names_in_no_encoding_are_read_and_written_down(mp4_list, tmp_path, decoder):
    (tmp_path / os.fsdecode(b"caf\xe9 1.mp4")).write_bytes((mp4_list.parent / "video 1.mp4").read_bytes())
    path = tmp_path / os.fsdecode(b"list\xe9.csv")
    path.write_bytes(b"caf\xe9 1.mp4 7\nabsent\xe9.mp4 1\n")
    (batch,) = list(_loader(path, training=False, max_skip_fraction=1.0, folder=tmp_path, decoder=decoder))
    assert batch.paths == [f"{tmp_path}/caf\udce9 1.mp4"] and batch.labels.tolist() == [7]
    assert (tmp_path / "skipped.csv").read_bytes() == os.fsencode(tmp_path) + b"/absent\xe9.mp4,missing,no such file\n"


def test_labels_are_needed_in_evaluation_only(mp4_list, tmp_path):
    path = tmp_path / "words.csv"
    path.write_text("".join(f"{mp4_list.parent}/video {i}.mp4{text}\n" for i, text in enumerate((" a word", "", " 3"))))
    batches = list(_loader(path, labelled=False, training=False))
    assert torch.cat([b.labels for b in batches]).tolist() == [-1, -1, 3]
    with pytest.raises(UserError, match=r"words\.csv, line 1: .*no integer label"):
        _loader(path)


def test_evaluation_leaves_faults_out(mp4_list, tmp_path):
    path, bad = _damaged(mp4_list, tmp_path)
    loader = _loader(path, training=False, batch_size=2, max_skip_fraction=0.5)
    assert torch.cat([b.indices for b in loader]).tolist() == list(range(len(bad), 15))
    assert loader.skips.failed == 5


def test_too_many_faults_stop_the_run(mp4_list, tmp_path):
    path, _ = _damaged(mp4_list, tmp_path)
    with pytest.raises(UserError, match=r"videos could not be used \(.*missing.*max_skip_fraction \(0\.1\)"):
        list(_loader(path, max_skip_fraction=0.1, total_steps=50))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("training", [True, False])
def test_a_list_of_bad_videos_ends_within_a_minute(tmp_path, workers, training):
    for i in range(30):
        (tmp_path / f"{i}.mp4").write_bytes(b"garbage" * i)
    path = tmp_path / "bad.csv"
    path.write_text("".join(f"{i}.mp4 0\n" for i in range(30)))
    loader = _loader(path, num_workers=workers, training=training, total_steps=10**6, max_skip_fraction=1.0 - training)
    with pytest.raises(UserError, match=r"could (not )?be used"):
        list(loader)
    assert 20 <= loader.skips.failed == loader.skips.attempts <= 30, "no video is tried for long"


def test_short_and_long_videos_are_filtered_on_request(mp4_list):
    with pytest.raises(UserError, match="short"):
        list(_loader(mp4_list, sampling_rate=4, filter_short_videos=True))
    assert len(list(_loader(mp4_list, sampling_rate=4))) == 6
    with pytest.raises(UserError, match="filter_long_videos"):
        list(_loader(mp4_list, filter_long_videos=100))


@pytest.mark.parametrize("decoder", ["auto", "decord"])
def test_very_short_videos_are_padded_or_skipped_as_configured(tmp_path, media, decoder):
    for frames in (1, 3):
        media.write_video(tmp_path / f"{frames}.mp4", frames=frames)
    media.write_audio(tmp_path / "sound.mp4")
    path = tmp_path / "short.csv"
    path.write_text("1.mp4 0\n3.mp4 1\nsound.mp4 2\n")
    settings = {"training": False, "transform": None, "num_frames": 8, "sampling_rate": 1, "decoder": decoder}
    (batch,) = list(_loader(path, **settings))
    assert batch.labels.tolist() == [0, 1] and batch.clips[0].shape == (2, 3, 8, 64, 64)
    assert media.frame_numbers(batch.clips[0][1].permute(1, 2, 3, 0).numpy()) == [0, 1, 2, 2, 2, 2, 2, 2]
    with pytest.raises(UserError, match="2 short"):
        list(_loader(path, filter_short_videos=True, **settings))


def test_a_truncated_video_is_padded_when_asked_for(tmp_path, media):
    path = media.write_video(tmp_path / "a.avi", codec="mpeg4")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    (tmp_path / "list.csv").write_text("a.avi 0\n")
    settings = {"training": False, "num_frames": 24, "transform": None}
    with pytest.raises(UserError, match="truncated"):
        list(_loader(tmp_path / "list.csv", **settings))
    (batch,) = list(_loader(tmp_path / "list.csv", pad_truncated=True, **settings))
    assert batch.clip_indices[0][0, -1] < 47 and batch.clip_indices[0][0, -1] == batch.clip_indices[0][0, -2]


class _Killer(TrainTransform):
    """Ends its own process, as the kernel does to one that takes too much memory."""

    def __call__(self, frames, rng):
        if self.size == 33:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(frames, rng)


def test_a_killed_worker_is_an_error_that_names_the_file(mp4_list, ends):
    with pytest.raises(UserError, match=r"worker was killed.*video \d+\.mp4"):
        list(_loader(mp4_list, transform=_Killer(33), num_workers=1))


def test_mistakes(mp4_list, tmp_path):
    with pytest.raises(UserError, match="datasets is empty"):
        _loader([])
    with pytest.raises(UserError, match="2 entries for 1"):
        _loader(mp4_list, datasets_weights=[1, 2])
    with pytest.raises(UserError, match="not one of VideoDataset"):
        _loader(mp4_list, dataset_type="Video")
    with pytest.raises(UserError, match="does not exist"):
        _loader(tmp_path / "absent.csv")


def test_unwritable_folder(mp4_list, tmp_path):
    path, _ = _damaged(mp4_list, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*skipped\.csv"):
        list(_loader(path, folder=tmp_path / "file", max_skip_fraction=1.0))


def test_images_in_class_folders(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / name / f"{i}.png")
    Image.new("L", (40, 40)).save(tmp_path / "dog" / "grey.jpeg")
    (tmp_path / "dog" / "broken.jpg").write_bytes((tmp_path / "dog" / "grey.jpeg").read_bytes()[:200])
    (tmp_path / "dog" / "notes.txt").touch()
    settings = {"dataset_type": "ImageDataset", "training": False, "transform": EvalTransform(32), "batch_size": 8}
    for frames in (1, 4):
        loader = _loader(tmp_path, num_frames=frames, **settings)
        (batch,) = list(loader)
        assert batch.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
        assert batch.clips[0].shape == (7, 3, frames, 32, 32)
        assert sum(loader.skips.kinds.values()) == 1
    with pytest.raises(UserError, match="no class folders"):
        _loader(tmp_path / "cat", **settings)
    with pytest.raises(UserError, match="does not exist"):
        _loader(tmp_path / "bird", **settings)


def test_load_raises_only_decode_errors(tmp_path):
    (tmp_path / "a.csv").write_text("absent.mp4 0\n")
    with pytest.raises(DecodeError, match="missing"):
        VideoDataset([tmp_path / "a.csv"], ClipReader(ClipSampling(4))).load(0, 0)
