import copy
import io
import json
import logging
import os
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from evals.config import ImageProbeConfig, VideoProbeConfig
from evals.image_classification_frozen import eval as image_eval
from evals.video_classification_frozen import eval as video_eval
from src.datasets.embedded.digit_scene import SceneConfig
from src.datasets.embedded.generate import write_motion
from src.utils.errors import UserError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    scene = SceneConfig(frames=4, size=32, glyph=(10.0, 12.0))
    write_motion(folder / "motion", scene, train=48, val=19, workers=1)
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 5)):  # red or blue noise: even a random encoder tells them apart
        for label, colour in enumerate(([255, 60, 60], [60, 60, 255])):
            where = folder / "images" / split / f"class {label}"
            where.mkdir(parents=True)
            for i in range(count):
                pixels = rng.random((40, 48, 1)) * np.array(colour)
                Image.fromarray(pixels.astype(np.uint8)).save(where / f"{i}.png")
    return folder


@pytest.fixture
def config(data, tmp_path, save_checkpoint):
    save_checkpoint(tmp_path)
    return {
        "eval_name": "video_classification_frozen",
        "tag": "t",
        "probes": ["attentive", "linear", "knn"],
        "random_baseline": True,
        "data": {
            "dataset_train": str(data / "motion/train.csv"),
            "dataset_val": str(data / "motion/val.csv"),
            "dataset_type": "MotionDataset",
            "num_classes": 16,
            "frames_per_clip": 4,
            "frame_step": 1,
            "num_workers": 0,
            "cache_features": True,
        },
        "optimization": {"num_epochs": 2, "batch_size": 16, "resolution": 32},
        "pretrain": {"model_name": "vit_tiny", "frames_per_clip": 4, "folder": str(tmp_path)},
    }


def run(config, **changes):
    config = copy.deepcopy(config)
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        (config[section] if section else config)[name] = value
    if config["eval_name"].startswith("video"):
        return video_eval.main(VideoProbeConfig.model_validate(config))
    return image_eval.main(ImageProbeConfig.model_validate(config))


def test_video_evaluation_from_config_to_files(config, tmp_path, capsys):
    results = run(config)
    folder = tmp_path / "video_classification_frozen" / "t"
    assert json.loads((folder / "jepa-results.json").read_text()) == results
    rows = [(s["row"], s["probe"]) for s in results["scores"]]
    assert rows == [(row, probe) for row in ("pretrained", "random") for probe in ("attentive", "linear", "knn")]
    for score in results["scores"]:
        assert score["total"] == 19 and np.sum(score["confusion_matrix"]) == 19 and score["missing"] == 0
        assert score["ci95"][0] <= score["accuracy"] <= score["ci95"][1]
    names = {p.name for p in folder.iterdir()}
    assert {
        "jepa-latest.pth.tar",
        "jepa-random-latest.pth.tar",
        "jepa_r0.csv",
        "jepa-results.csv",
        "jepa-config.yaml",
    } <= names
    out = capsys.readouterr().out
    assert out.index("pretrained") < out.index("random") < out.index("chance")
    assert out.rstrip().endswith("┘")  # the table is the last thing printed
    assert run(config)["scores"] == results["scores"]


def test_cache_is_used_again_and_never_when_stale(config, tmp_path, caplog, save_checkpoint):
    caplog.set_level(logging.INFO)
    config |= {"probes": ["knn"], "random_baseline": False}

    def used(**changes):
        caplog.clear()
        run(config, **changes)
        return ["from the cache" in r.message for r in caplog.records if " features: " in r.message]

    assert used() == [False, False]
    assert used() == [True, True]
    assert used(data__frame_step=2) == [False, False]
    assert used(data__num_views_per_segment=2, data__frame_step=2) == [False, False]
    assert used() == [False, False] and used() == [True, True]
    assert used(data__max_val_samples=7) == [True, False]
    save_checkpoint(tmp_path, 1.3)  # same name, other weights
    assert used() == [False, False]


def test_several_heads_views_and_segments_without_a_cache(config):
    results = run(
        config,
        data__cache_features=False,
        data__num_segments=2,
        data__num_views_per_segment=2,
        optimization__lrs=[1e-3, 3e-3],
        optimization__attend_across_segments=True,
        optimization__num_epochs=1,
        random_baseline=False,
    )
    heads = results["heads"]["pretrained"]
    assert [h["lr"] for h in heads] == [1e-3, 3e-3] and sum(h["reported"] for h in heads) == 1
    assert all(h["inner_val_accuracy"] is not None for h in heads)
    assert [s["probe"] for s in results["scores"]] == ["attentive", "linear", "knn"]
    assert "held-out" in results["scores"][0]["note"] and results["scores"][0]["total"] == 19


@pytest.fixture(scope="module")
def shards(data):
    """The same videos in the same order: labels in .cls files, or as a field of .json files, or in words."""
    for split in ("train", "val"):
        lines = (data / "motion" / f"{split}.csv").read_text().splitlines()
        for form in ("cls", "json", "words"):
            for number, part in enumerate(np.array_split(lines, 2)):
                with tarfile.open(data / f"{split}-{form}-{number}.tar", "w") as archive:
                    for i, line in enumerate(part):
                        path, label = line.rsplit(maxsplit=1)
                        archive.add(data / "motion" / path, f"{i:03}.mp4")
                        text = {"cls": label, "json": json.dumps({"class": int(label)}), "words": "running"}[form]
                        info = tarfile.TarInfo(f"{i:03}.{'json' if form == 'json' else 'cls'}")
                        info.size = len(text)
                        archive.addfile(info, io.BytesIO(text.encode()))
    return data


def test_shards_give_what_their_videos_give(config, shards):
    config |= {"random_baseline": False, "probes": ["attentive", "knn"]}
    settings = {"data__max_train_samples": 30, "data__cache_features": False, "optimization__lrs": [1e-3, 1e-2]}
    listed = run(config, **settings)["scores"]
    for form, key in (("cls", None), ("json", "class")):
        packed = run(
            config,
            data__dataset_type="WebVideoDataset",
            data__dataset_train=str(shards / f"train-{form}-*.tar"),
            data__dataset_val=str(shards / f"val-{form}-{{0..1}}.tar"),
            data__label_key=key,
            **settings,
        )
        assert packed["scores"] == listed and listed[0]["total"] == 19


def test_features_of_shards_are_made_anew_when_a_shard_changes(config, shards, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    where = shutil.copy(shards / "val-cls-0.tar", tmp_path)
    config |= {"random_baseline": False, "probes": ["knn"]}

    def used():
        caplog.clear()
        run(config, data__dataset_type="WebVideoDataset", data__dataset_train=where, data__dataset_val=where)
        return ["from the cache" in r.message for r in caplog.records if " features: " in r.message]

    assert used() == [False, False] and used() == [True, True]
    os.utime(where, (0, 0))
    assert used() == [False, False]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{0}/train-words-*.tar", r"48 of 48 videos have no label.*words-0\.tar::000\.mp4: its 000\.cls has 'running'"),
        ("{0}/train-json-*.tar", r"have no label.*data\.label_key.*has no \.cls file"),
        ("{0}/absent-*.tar", r"does not exist \(data\.dataset_train"),
        ("http://localhost:1/{{0..3}}.tar", r"data\.dataset_train: http.*would be streamed"),
    ],
)
def test_shards_that_cannot_be_probed(config, shards, pattern, message):
    with pytest.raises(UserError, match=message):
        run(config, data__dataset_type="WebVideoDataset", data__dataset_train=pattern.format(shards))


def test_a_list_has_no_label_key(config):
    with pytest.raises(ValueError, match=r"data\.label_key is for data\.dataset_type=WebVideoDataset"):
        run(config, data__label_key="class")


def test_a_video_that_cannot_be_read_is_left_out_and_counted(config, data, tmp_path):
    lines = (data / "motion/val.csv").read_text().splitlines()
    lines = [f"{data / 'motion' / line}" for line in lines]
    (tmp_path / "val.csv").write_text("\n".join([lines[0], "/nowhere.mp4 3", *lines[1:]]) + "\n")
    results = run(config, data__dataset_val=str(tmp_path / "val.csv"), random_baseline=False)
    assert {(s["total"], s["missing"]) for s in results["scores"]} == {(19, 1)}


def test_image_evaluation_learns_what_can_be_learned(config, data):
    config["eval_name"] = "image_classification_frozen"
    config["data"] = {
        "root_path": str(data),
        "image_folder": "images",
        "num_classes": 2,
        "resolution": 32,
        "num_workers": 0,
        "cache_features": True,
    }
    config["optimization"] = {"num_epochs": 10, "batch_size": 8}
    results = run(config)
    assert all(s["accuracy"] == 1 for s in results["scores"]), [s["accuracy"] for s in results["scores"]]
    assert results["chance"] == 0.5
    live = run(config, data__cache_features=False, probes=["attentive"], random_baseline=False)
    assert live["scores"][0]["accuracy"] == 1


def test_class_folders_of_val_have_the_numbers_of_train(config, data, tmp_path):
    config["eval_name"] = "image_classification_frozen"
    keys = {"root_path": str(tmp_path), "num_classes": 2, "resolution": 32, "num_workers": 0, "pin_mem": False}
    config |= {"data": keys, "optimization": {"num_epochs": 10, "batch_size": 8}, "random_baseline": False}
    for folder in ("train/.ipynb_checkpoints", "train/class -1 is empty", "val/.cache"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "train/.ipynb_checkpoints/0.png").symlink_to(data / "images/train/class 0/0.png")
    for link in ("train/class 0", "train/class 1", "val/class 1"):
        (tmp_path / link).symlink_to(data / "images" / link)
    for cached in (True, False):
        results = run(config, data__cache_features=cached)
        found = [(s["accuracy"], s["total"], sum(s["confusion_matrix"][1])) for s in results["scores"]]
        assert found == [(1, 5, 5)] * len(config["probes"])
    (tmp_path / "val/class 2").symlink_to(data / "images/val/class 0")
    with pytest.raises(UserError, match=r"val has the class folders 'class 2', which the training set lacks"):
        run(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__num_classes": 10}, r"train\.csv: labels run from 0 to 15, .*set data\.num_classes=16"),
        ({"data__dataset_val": "/nowhere/val.csv", "data__dataset_type": "VideoDataset"}, "data.dataset_val: /nowhere"),
        ({"pretrain__checkpoint": "other.pth.tar"}, r"other\.pth\.tar: no such checkpoint"),
        ({"optimization__num_heads": 5}, "optimization.num_heads=5 does not divide"),
    ],
)
def test_bad_input_is_one_line(config, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        run(config, **changes)
    assert "\n" not in str(caught.value)


def test_empty_val_list_and_unreadable_videos(config, tmp_path):
    (tmp_path / "val.csv").write_text("")
    with pytest.raises(UserError, match=r"val\.csv is empty"):
        run(config, data__dataset_val=str(tmp_path / "val.csv"))
    (tmp_path / "val.csv").write_text("/nowhere.mp4 3\n")
    with pytest.raises(UserError, match=r"none of the .* could be"):
        run(config, data__dataset_val=str(tmp_path / "val.csv"), random_baseline=False)
