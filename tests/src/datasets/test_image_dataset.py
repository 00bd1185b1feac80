"""Images in class folders and lists: which are found, and which class each is."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from src.datasets.image_dataset import ImageDataset
from src.utils.errors import UserError


def _images(root, **counts):
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("RGB", (8, 6), (i, 0, 0)).save(root / name / f"{i}.png")


def test_hidden_and_empty_folders_are_no_classes(tmp_path, caplog):
    _images(tmp_path, dog=2, cat=1, **{".ipynb_checkpoints": 1, "bird": 0, "elk/deep": 1})
    (tmp_path / "cat/._0.png").write_bytes(b"\0\5\26\7")
    (tmp_path / "dog/notes.txt").touch()
    (tmp_path / "fox").mkdir()
    (tmp_path / "fox/words.txt").touch()
    (tmp_path / "stray.png").touch()
    (tmp_path / "up").symlink_to("..")
    with caplog.at_level("INFO"):
        images = ImageDataset([tmp_path])
    assert (images.classes, images.labels.tolist()) == (["cat", "dog", "elk"], [0, 1, 1, 2])
    assert [images.path(i) for i in (0, 3)] == [f"{tmp_path}/cat/0.png", f"{tmp_path}/elk/deep/0.png"]
    assert "4 images in 3 class folders; left out: " in caplog.text
    for what in ("2 hidden", "2 sub-folders without images", "2 .txt", "1 beside the class folders", "1 links to"):
        assert what in caplog.text
    assert images.load(1, 0)[0][0].shape == (3, 1, 6, 8)


def test_the_training_sets_names_number_the_classes(tmp_path):
    _images(tmp_path / "train", ant=1, bee=1, cow=1)
    _images(tmp_path / "val", bee=2, cow=1, ant=0)
    train = ImageDataset([tmp_path / "train"])
    val = ImageDataset([tmp_path / "val"], classes=train.classes)
    assert train.classes == ["ant", "bee", "cow"] and val.labels.tolist() == [1, 1, 2]
    _images(tmp_path / "val", dog=1)
    with pytest.raises(UserError, match=r"val has the class folders 'dog', which the training set lacks"):
        ImageDataset([tmp_path / "val"], classes=train.classes)
    # Several roots are one set: a class has one number in all of them.
    both = ImageDataset([tmp_path / "val", tmp_path / "train"])
    assert both.labels.tolist() == [1, 1, 2, 3, 0, 1, 2] and both.sizes == [4, 3]


def test_an_image_has_one_class(tmp_path):
    """Links to a class are no second class, and folders of systems none at all."""
    for name in ("a", "b", "@eaDir", "__MACOSX"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "x.png")
    (tmp_path / "alias").symlink_to("a")
    (tmp_path / "b" / "loop").symlink_to("../a")
    images = ImageDataset([tmp_path])
    assert [images.path(i) for i in range(len(images))] == [str(tmp_path / c / "x.png") for c in ("a", "b")]
    assert images.classes == ["a", "b"] and images.labels.tolist() == [0, 1]


def test_lists_carry_their_own_numbers(tmp_path):
    _images(tmp_path, cat=2)
    (tmp_path / "a.csv").write_text("cat/1.png 7\ncat/0.png 3\n")
    images = ImageDataset([tmp_path / "a.csv"], classes=["dog"])
    assert images.labels.tolist() == [7, 3] and images.path(0) == f"{tmp_path}/cat/1.png"
    (tmp_path / "a.csv").write_text("cat/1.png\n")
    assert ImageDataset([tmp_path / "a.csv"], labelled=False).labels.tolist() == [-1]
    with pytest.raises(UserError, match="line 1"):
        ImageDataset([tmp_path / "a.csv"])


def test_turned_and_deep_images_are_samples_as_they_look(tmp_path):
    (tmp_path / "grey").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    levels = np.tile(np.linspace(0, 65535, 12).astype(np.uint16), (4, 1))
    Image.fromarray(levels).save(tmp_path / "grey/a.png", exif=exif)
    (clip,), label, _ = ImageDataset([tmp_path], num_frames=2).load(0, 0)
    assert clip.shape == (3, 2, 12, 4) and label == 0
    assert np.abs(clip[0, 1, :, 0].numpy() - np.linspace(0, 255, 12)).max() <= 1
