"""What tests of several folders share. First of all, before torch is loaded: they share their cores with processes."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import copy
import csv
import signal
import time
from pathlib import Path

import pytest
import yaml

from src.datasets.embedded.generate import write_motion
from src.models.registry import BACKBONES
from src.utils.distributed import init_distributed, shutdown

# For what takes moments on an idle machine: a test waits for a condition, and no longer than this.
PATIENCE_S = 300

SMALL = {
    "app": "vjepa",
    "data": {
        "dataset_type": "VideoDataset",
        "batch_size": 2,
        "num_frames": 4,
        "sampling_rate": 1,
        "crop_size": 32,
        "patch_size": 8,
        "tubelet_size": 2,
        "num_workers": 0,
        "mask_type": "multiblock3d",
    },
    "mask": [
        {"num_blocks": 2, "spatial_scale": [0.15, 0.4]},
        {"num_blocks": 1, "spatial_scale": [0.4, 0.6]},
    ],
    "meta": {"seed": 1, "load_checkpoint": True},
    "model": {
        "model_name": "videomamba_tiny",
        "pred_model_name": "vit_tiny",
        "pred_depth": 1,
        "pred_embed_dim": 24,
        "use_mask_tokens": True,
        "drop_path_rate": 0.2,
    },
    "optimization": {"ipe": 4, "epochs": 3, "warmup": 1, "start_lr": 1e-4, "lr": 1e-3, "ema": [0.9, 1.0]},
}


@pytest.fixture(scope="session")
def wait_for():
    """Polls until `condition()` is true, and returns what it is."""

    def wait(condition, what):
        deadline = time.monotonic() + PATIENCE_S
        while not (found := condition()):
            assert time.monotonic() < deadline, f"{what}: not within {PATIENCE_S} s"
            time.sleep(0.02)
        return found

    return wait


@pytest.fixture
def ends():
    """For what might never end: then the test fails, and the others are run."""

    def give_up(signum, frame):
        raise TimeoutError(f"no end within {PATIENCE_S} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(PATIENCE_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def small_backbones(monkeypatch):
    """The real constructors at a size that trains in milliseconds."""
    for name, row in BACKBONES.items():
        monkeypatch.setitem(BACKBONES, name, row._replace(depth=2))


@pytest.fixture
def process_group():
    """This process by itself, as a launched run is."""
    init_distributed(device="cpu")
    yield
    shutdown()


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """A list of 15 videos: no batch size divides it."""
    root = tmp_path_factory.mktemp("motion")
    root.rmdir()
    write_motion(root, train=15, val=1, workers=1)
    return root / "train.csv"


@pytest.fixture
def small(videos, tmp_path):
    """Writes the YAML of a small run into tmp_path/NAME.yaml; sections are merged into it. Returns (raw, path)."""

    def write(name, **sections):
        raw = copy.deepcopy(SMALL)
        raw["data"]["datasets"] = [str(videos)]
        raw["logging"] = {"folder": str(tmp_path / name)}
        for section, keys in sections.items():
            raw[section] |= keys
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(raw))
        return raw, path

    return write


@pytest.fixture
def rows():
    """Reads the csv of a run, without its times."""

    def read(folder):
        with (Path(folder) / "jepa_r0.csv").open() as file:
            return [{key: value for key, value in row.items() if "time" not in key} for row in csv.DictReader(file)]

    return read
