"""What `python -m evals.main` says to a user's mistakes: one line on stderr, exit code 2, nothing half done."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from evals import main
from src.datasets.embedded.digit_scene import SceneConfig
from src.datasets.embedded.generate import write_motion
from src.utils import checkpoint
from src.utils.errors import run_cli


class Code:
    """Unpickling this would make a folder."""

    def __reduce__(self):
        return os.mkdir, ("made-by-pickle",)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "motion"
    write_motion(folder, SceneConfig(frames=4, size=32, glyph=(10.0, 12.0)), train=16, val=8, workers=1)
    return folder


@pytest.fixture
def folder(data, tmp_path, monkeypatch, save_checkpoint):
    """The working directory: a checkpoint and the YAML of an evaluation that works."""
    monkeypatch.chdir(tmp_path)
    save_checkpoint(tmp_path)
    config = {
        "eval_name": "video_classification_frozen",
        "probes": ["knn"],
        "data": {
            "dataset_train": str(data / "train.csv"),
            "dataset_val": str(data / "val.csv"),
            "num_classes": 16,
            "frames_per_clip": 4,
            "frame_step": 1,
            "num_workers": 0,
            "pin_mem": False,
        },
        "optimization": {"num_epochs": 1, "batch_size": 8, "resolution": 32},
        "pretrain": {"model_name": "vit_tiny", "frames_per_clip": 4, "folder": "."},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])


def put_code(path):
    torch.save({"target_encoder": {"w": torch.ones(1)}, "epoch": Code()}, path)


def rename_keys(path):
    state = checkpoint.load(path)
    state["target_encoder"] = {"trunk." + name: value for name, value in state["target_encoder"].items()}
    checkpoint.save_atomic(state, path)


def drop_a_block(path):
    state = checkpoint.load(path)
    kept = {k: v for k, v in state["target_encoder"].items() if not k.startswith("blocks.11.mlp")}
    checkpoint.save_atomic({**state, "target_encoder": kept}, path)


def empty_list(path):
    path.with_name("empty.csv").touch()


@pytest.mark.parametrize(
    ("spoil", "overrides", "expected"),
    [
        (rename_keys, [], ("jepa-latest.pth.tar", "trunk.")),
        (drop_a_block, [], ("jepa-latest.pth.tar", "blocks.11.mlp")),
        (None, ["pretrain.model_name=videomamba_tiny"], ("pretrain.model_name", "vit_tiny")),
        (None, ["pretrain.checkpoint=no.pth.tar"], ("no.pth.tar: no such checkpoint",)),
        (truncate, [], ("jepa-latest.pth.tar: truncated checkpoint",)),
        (put_code, [], ("jepa-latest.pth.tar: refused: ", "mkdir")),
        (None, ["data.num_classes=9"], ("train.csv: labels run from 0 to 15", "data.num_classes=16")),
        (empty_list, ["data.dataset_val=empty.csv"], ("empty.csv is empty",)),
        (None, ["data.dataset_type=ImageDataset"], ("run.yaml: data.dataset_type", "image_classification_frozen")),
        (None, ["data.dataset_val=~nobody-here/val.csv"], ("data.dataset_val: ~nobody", "no user 'nobody-here'")),
        (None, ["data.dataset_val=no.csv"], ("data.dataset_val: no.csv does not exist",)),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_one_line_and_exit_code_2(folder, spoil, overrides, expected, capsys, monkeypatch):
    if spoil:
        spoil(folder / "jepa-latest.pth.tar")
    monkeypatch.setattr(sys, "argv", ["evals.main", "--fname", "run.yaml", "--devices", "cpu", *overrides])
    with pytest.raises(SystemExit) as stop:
        run_cli(main.main)
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("[INFO")]
    assert stop.value.code == 2
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    assert all(part in lines[0] for part in expected), lines
    assert not (folder / "made-by-pickle").exists()


def test_the_same_from_a_shell(folder):
    truncate(folder / "jepa-latest.pth.tar")
    command = [sys.executable, "-m", "evals.main", "--fname", "run.yaml", "--devices", "cpu"]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": root})
    errors = [line for line in done.stderr.splitlines() if not line.startswith("[INFO")]
    assert (done.returncode, errors) == (2, ["error: jepa-latest.pth.tar: truncated checkpoint: its end is missing"])
