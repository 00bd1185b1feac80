"""What is logged can be read back from its files."""

import importlib.util
import io

import numpy as np
import pytest
from PIL import Image

from src.utils.errors import UserError
from src.utils.experiment_loggers import ExperimentLogger


def read_back(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    return events.Reload()


def scalars(folder, name):
    return [(event.step, event.value) for event in read_back(folder).Scalars(name)]


def test_tensorboard_has_scalars_and_images(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    with ExperimentLogger(tmp_path) as loggers:
        assert loggers.active
        loggers.add_scalars({"train/loss": 0.5, "train/lr": 1e-3}, 0)
        loggers.add_scalars({"train/loss": 0.25}, 10)
        loggers.add_image("masks", pixels, 10)
    assert scalars(tmp_path, "train/loss") == [(0, 0.5), (10, 0.25)]
    (image,) = read_back(tmp_path).Images("masks")
    assert image.step == 10
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(image.encoded_image_string))), pixels)


def test_a_resumed_run_takes_the_place_of_the_steps_after_its_checkpoint(tmp_path):
    with ExperimentLogger(tmp_path) as loggers:
        for step in range(6):
            loggers.add_scalars({"train/loss": 1.0}, step)
    with ExperimentLogger(tmp_path, start=4) as loggers:
        for step in range(4, 8):
            loggers.add_scalars({"train/loss": 2.0}, step)
    assert scalars(tmp_path, "train/loss") == [(s, 1.0) for s in range(4)] + [(s, 2.0) for s in range(4, 8)]


def test_other_ranks_write_nothing(tmp_path):
    with ExperimentLogger(tmp_path, wandb="project", enabled=False) as loggers:
        assert not loggers.active
        loggers.add_scalars({"train/loss": 1.0}, 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_wandb_that_is_not_installed_is_one_line(tmp_path):
    with pytest.raises(UserError) as error:
        ExperimentLogger(tmp_path, wandb="project")
    assert str(error.value) == (
        "logging.wandb=project: wandb is not installed: pip install wandb, or set logging.wandb=null"
    )


def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for start in (0, 1):
        with ExperimentLogger(tmp_path, start=start, wandb="project") as loggers:
            loggers.add_scalars({"train/loss": 0.5}, start)
            loggers.add_image("masks", np.zeros((4, 4, 3), np.uint8), start)
    identity = (tmp_path / "wandb-id.txt").read_text()
    files = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert files and {file.name for file in files} == {f"run-{identity}.wandb"}
    assert b"train/loss" in files[0].read_bytes()
