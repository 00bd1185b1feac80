"""Telling the true future from others, from config to report."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from evals import scaffold
from evals.future_prediction import eval as future
from src.config.loading import from_dict, save_config
from src.datasets.embedded.drift_scene import DriftConfig
from src.datasets.embedded.generate import write_motion
from src.models import export
from src.utils.checkpoint import load, save_atomic
from src.utils.errors import UserError
from tests.evals.future_prediction.small_runs import pretraining, save_run
from tools.report.page_parts import Note, Picture, Table
from tools.report.probes import probe_parts
from tools.report.run_folder import read_runs

pytestmark = pytest.mark.usefixtures("small_backbones")


@pytest.fixture(scope="module")
def drift(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "drift"
    write_motion(root, DriftConfig(), train=1, val=9, workers=1)
    return root / "val.csv"


@pytest.fixture
def config(drift, tmp_path):
    save_run(pretraining(tmp_path))
    return {
        "eval_name": "future_prediction",
        "tag": "t",
        "data": {"dataset_val": str(drift), "num_workers": 0, "batch_size": 5},
        "pretrain": {"folder": str(tmp_path)},
    }


def run(config, **data):
    _, cfg = scaffold.check(config | {"data": config["data"] | data}, "test.yaml")
    return future.main(cfg)


def test_the_mean_leaves_the_clip_itself_out():
    targets = torch.randn(5, 4, 3)
    torch.testing.assert_close(future.mean_of_others(targets)[1], targets[[0, 2, 3, 4]].mean(0))


def test_from_config_to_report(config, tmp_path, capsys):
    results = run(config)
    folder = tmp_path / "future_prediction" / "t"
    assert json.loads((folder / "jepa-results.json").read_text()) == results
    assert results["val"] | {"list": ""} == {"list": "", "samples": 9, "missing": 0}
    assert (results["context_tubelets"], results["tubelets"], results["max_temporal_keep"]) == (2, 4, [0.5])
    assert len(results["choices"]) == 4 * 4 * 3  # answers, what they choose from, tubelets
    with (folder / "jepa-results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["correct"]) for row in rows] == [choice["correct"] for choice in results["choices"]]
    for choice in results["choices"]:
        assert choice["total"] == 9
        assert choice["ci95_low"] <= choice["accuracy"] <= choice["ci95_high"]
    with Image.open(folder / "strip.png") as strip:
        assert strip.width == 1200
        assert len(strip.convert("L").getcolors()) > 50  # frames, not a blank page
    out = capsys.readouterr().out
    for word in ("pretrained +2", "copy last", "mean", "random", "or reversed", "chance"):
        assert word in out

    save_config(pretraining(tmp_path), tmp_path / "params-pretrain.yaml")
    heading, table, picture = probe_parts(read_runs([tmp_path]))
    assert heading.text == "future prediction, t"
    assert isinstance(table, Table)
    assert table.columns == ["prediction", "or other clip", "or reversed", "or static", "all"]
    assert [row[0] for row in table.rows[:2]] == ["pretrained", "pretrained, +1"]
    assert table.rows[-1] == ["chance", "50.0", "50.0", "50.0", "25.0"]
    assert isinstance(picture, Picture)
    assert picture.uri.startswith("data:image/png;base64,")
    (folder / "strip.png").unlink()
    assert isinstance(probe_parts(read_runs([tmp_path]))[-1], Note)


def test_the_same_twice(config):
    first, second = (run(config) for _ in range(2))
    assert first["choices"] == second["choices"]
    assert first["distances"] == second["distances"]


def test_a_lone_clip_is_left_out_and_counted(config):
    results = run(config, batch_size=2)  # 9 clips in twos
    assert results["val"]["samples"] == 8
    assert results["val"]["missing"] == 1


def test_the_picture_is_of_clips_that_any_process_could_read():
    """The first process may have none."""
    clips = {"true": torch.arange(2.0), "static": torch.arange(2.0)}
    nothing, some = np.empty((0, 4, 2)), np.random.default_rng(0).random((5, 4, 2))
    parts = [future.Measured({"pretrained": nothing}, {}), future.Measured({"pretrained": some}, clips)]
    shown, errors = future.to_show(parts)
    assert shown is clips and np.array_equal(errors, some[:2])


def test_fewer_samples(config):
    assert run(config, max_val_samples=4)["val"]["samples"] == 4


@pytest.mark.parametrize("context", [4, 9])
def test_nothing_to_predict(config, context):
    with pytest.raises(UserError, match=f"context_tubelets={context} leaves nothing to predict: .* have 4 tubelets"):
        run(config | {"context_tubelets": context})


def test_a_checkpoint_of_one_tubelet(config, tmp_path):
    save_run(pretraining(tmp_path, {"num_frames": 2}))
    with pytest.raises(UserError, match="have 1 tubelets"):
        run(config | {"context_tubelets": 1})


@pytest.mark.parametrize("without", ["predictor", "encoder", "config"])
def test_a_checkpoint_that_cannot_predict(config, tmp_path, without):
    save_run(pretraining(tmp_path), without=[without])
    with pytest.raises(UserError, match=f"has no {without}: predicting takes a whole checkpoint") as error:
        run(config)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "future_prediction").exists()


def test_an_export_has_no_predictor(config, tmp_path):
    export.main(["--checkpoint", str(tmp_path / "jepa-latest.pth.tar"), "--out", str(tmp_path / "exported")])
    pretrain = {"folder": str(tmp_path), "checkpoint": "exported"}
    with pytest.raises(UserError, match=r"has no .*predictor"):
        run(config | {"pretrain": pretrain})


def test_weights_of_another_architecture(config, tmp_path):
    path = save_run(pretraining(tmp_path))
    state = load(path)
    state["config"]["model"]["pred_embed_dim"] = 24
    save_atomic(state, path)
    with pytest.raises(UserError, match="predictor"):
        run(config)


def test_bad_lists(config, tmp_path):
    empty = tmp_path / "empty.csv"
    empty.write_text("")
    with pytest.raises(UserError, match=r"empty\.csv is empty"):
        run(config, dataset_val=str(empty), dataset_type="VideoDataset")
    with pytest.raises(UserError, match=r"data\.dataset_val: .*nowhere\.csv does not exist"):
        run(config, dataset_val=str(tmp_path / "nowhere.csv"))
    with pytest.raises(UserError, match="has 1 clips: each process needs two or more"):
        run(config, max_val_samples=1)
    with pytest.raises(UserError, match=r"data\.dataset_val is not set"):
        run(config, dataset_val=None)


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"context_tubelets": 0}, "context_tubelets"),
        ({"data": {"batch_size": 1}}, "data.batch_size"),
        ({"data": {"dataset_type": "ImageDataset"}}, "an image stands still"),
        ({"pretrain": {"folder": "x", "checkpoint_key": "encoder"}}, "unknown key pretrain.checkpoint_key"),
    ],
)
def test_what_cannot_work_is_refused(section, expected):
    raw = {"eval_name": "future_prediction", "data": {}, "pretrain": {"folder": "x"}} | section
    with pytest.raises(UserError, match=expected):
        from_dict(raw, scaffold.schema_of("future_prediction", "config"), "config")
