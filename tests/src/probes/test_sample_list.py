from pathlib import Path

import numpy as np
import pytest

from src.probes.sample_list import SampleList, check_labels, draw_subset, hold_out, read_sample_list
from src.utils.errors import UserError


def samples(labels):
    labels = np.asarray(labels)
    return SampleList("train.csv", [f"v {i}.mp4" for i in range(len(labels))], labels)


def test_labels_must_fit_the_number_of_classes():
    check_labels(samples([0, 2]), 3)
    for labels in ([0, 3], [-1, 0]):
        with pytest.raises(UserError, match=r"train\.csv.*data\.num_classes"):
            check_labels(samples(labels), 3)


def test_held_out_samples_come_from_every_class_that_can_spare_one():
    labels = np.array([0] * 40 + [1] * 10 + [2] * 2 + [3])
    fit, held = hold_out(labels, seed=0)
    assert np.bincount(labels[held], minlength=4).tolist() == [4, 1, 1, 0]
    assert sorted([*fit, *held]) == list(range(53))
    assert (hold_out(labels, seed=0)[1] == held).all() and len(hold_out(labels, seed=1)[1]) == 6
    with pytest.raises(UserError, match="no class has two"):
        hold_out(np.array([0, 1]), seed=0)


def test_subsets_are_lists_of_their_own(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for i in range(4):
        (folder / f"v {i}.mp4").touch()
    (folder / "train.csv").write_text("".join(f"v {i}.mp4 {i % 2}\n" for i in range(4)))
    whole = read_sample_list(folder / "train.csv", "VideoDataset", "data.dataset_train")
    part = whole.subset(np.array([1, 3]), tmp_path / "part.csv")
    again = read_sample_list(tmp_path / "part.csv", "VideoDataset", "data.dataset_train")
    assert again.files == part.files == [str(folder / "v 1.mp4"), str(folder / "v 3.mp4")]
    assert again.labels.tolist() == [1, 1]
    ids = draw_subset(whole, 2, seed=0)
    assert len(ids) == 2 and (ids == draw_subset(whole, 2, seed=0)).all() and len(draw_subset(whole, 9, seed=0)) == 4


def test_subsets_keep_every_name(tmp_path, monkeypatch):
    names = ["a, b.mp4", 'a"b.mp4', "a.mp4 120", "caf\udce9.mp4", "no suffix 3", "n\nl.mp4"]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "link.mp4").symlink_to("no suffix 3")
    monkeypatch.chdir(tmp_path)
    whole = SampleList(Path("a.csv"), [*names, "link.mp4"], np.arange(7))
    whole.subset(np.arange(7), tmp_path / "part.csv")
    again = read_sample_list(tmp_path / "part.csv", "VideoDataset", "data.dataset_val")
    assert again.files == [f"{tmp_path}/{name}" for name in (*names, "link.mp4")] and again.labels.tolist() == [
        *range(7)
    ]


def test_future_prediction_needs_no_labels(tmp_path):
    (tmp_path / "a.csv").write_text("a.mp4\n")
    assert read_sample_list(tmp_path / "a.csv", "VideoDataset", "key", labelled=False).labels.tolist() == [-1]
    with pytest.raises(UserError, match="no integer label"):
        read_sample_list(tmp_path / "a.csv", "VideoDataset", "key")


def test_missing_and_empty_lists(tmp_path):
    with pytest.raises(UserError, match=r"data\.dataset_val: .*absent\.csv does not exist"):
        read_sample_list(tmp_path / "absent.csv", "VideoDataset", "data.dataset_val")
    (tmp_path / "empty.csv").write_text("\n")
    with pytest.raises(UserError, match=r"empty\.csv is empty"):
        read_sample_list(tmp_path / "empty.csv", "VideoDataset", "data.dataset_val")
