"""Telling the true future from others: the choices by hand, the model's parts, and a run from config to report."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from app.vjepa.config import PretrainConfig
from app.vjepa.utils import init_video_model
from evals import scaffold
from evals.config_sections import CheckpointConfig
from evals.future_prediction import eval as future
from evals.future_prediction.future_predictor import FuturePredictor, load_future_predictors
from evals.future_prediction.scoring import CANDIDATES, DISTRACTORS, choices, distances, hits, make_candidates
from src.config.loading import from_dict, save_config
from src.datasets.embedded.drift_scene import DriftConfig
from src.datasets.embedded.motion import write_motion
from src.jepa.build import build_encoder_and_predictor, make_target_encoder
from src.jepa.target_norm import normalize_targets
from src.masks.utils import generator
from src.models import export
from src.models.registry import BACKBONES
from src.utils.checkpoint import load, save_atomic
from src.utils.errors import UserError
from tools.report.page_parts import Note, Picture, Table
from tools.report.probes import probe_parts
from tools.report.run_folder import read_runs


@pytest.fixture(autouse=True)
def small_backbones(monkeypatch):
    for name, row in BACKBONES.items():
        monkeypatch.setitem(BACKBONES, name, row._replace(depth=2))


@pytest.fixture(scope="module")
def drift(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "drift"
    write_motion(root, DriftConfig(), train=1, val=9, workers=1)
    return root / "val.csv"


def pretraining(folder, data=None, **sections):
    raw = {
        "data": {"datasets": ["x.csv"], "batch_size": 8, "num_frames": 8, "crop_size": 32, "sampling_rate": 2},
        "logging": {"folder": str(folder)},
        "mask": [{"num_blocks": 1, "spatial_scale": [0.5, 0.5], "max_temporal_keep": 0.5}],
        "model": {"model_name": "videomamba_nano", "pred_model_name": "vit_tiny", "pred_embed_dim": 48, "pred_depth": 1,
                  "use_mask_tokens": True},
        "optimization": {"epochs": 1, "lr": 1e-3},
        "loss": {"target_norm": "batch_standardize", "clip_mean_weight": 0.5},
    }  # fmt: skip
    raw["data"] |= data or {}
    return PretrainConfig.model_validate(raw | sections)


def save_run(cfg, without=()):
    """A whole checkpoint whose weights are not those that training starts from."""
    encoder, predictor = init_video_model(cfg)
    torch.manual_seed(7)
    with torch.no_grad():
        for p in (*encoder.parameters(), *predictor.parameters()):
            p.add_(0.05 * torch.randn_like(p) if p.requires_grad else 0)
    modules = {
        "encoder": encoder,
        "predictor": predictor,
        "target_encoder": make_target_encoder(encoder),
        "target_projector": make_target_encoder(predictor.projector),
    }
    state = {name: module.state_dict() for name, module in modules.items()}
    state |= {"config": cfg.model_dump(mode="json"), "step": 5}
    path = cfg.output_folder() / "jepa-latest.pth.tar"
    save_atomic({key: value for key, value in state.items() if key not in without}, path)
    return path


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


def features():
    """Target features (B=6, M=4, D=3) of every candidate."""
    torch.manual_seed(0)
    return {name: torch.randn(6, 4, 3) for name in CANDIDATES}


def test_candidates_share_the_beginning():
    clips = torch.arange(5 * 8).reshape(5, 1, 8, 1, 1).expand(-1, 3, -1, 2, 2)
    made = make_candidates(clips, 3, generator(0))
    assert tuple(made) == CANDIDATES
    for other in made.values():
        assert torch.equal(other[:, :, :3], clips[:, :, :3])
    frames = {name: (x[:, 0, :, 0, 0] - 8 * torch.arange(5)[:, None]).tolist() for name, x in made.items()}
    assert frames["reversed"][2] == [0, 1, 2, 2, 1, 0, 0, 1]
    assert frames["static"][2] == [0, 1, 2, 2, 2, 2, 2, 2]
    partner = made["other clip"][:, 0, 3:, 0, 0] // 8
    assert (partner == partner[:, :1]).all()
    assert sorted(partner[:, 0].tolist()) == [0, 1, 2, 3, 4]
    assert (partner[:, 0] != torch.arange(5)).all()
    assert torch.equal(made["other clip"], make_candidates(clips, 3, generator(0))["other clip"])
    with pytest.raises(ValueError, match="alone"):
        make_candidates(clips[:1], 3, generator(0))


def test_an_oracle_is_always_right():
    targets = features()
    found = choices("oracle", distances(targets["true"], targets, 2).numpy())
    assert {(c.against, c.tubelet) for c in found} == {(a, t) for a in (*DISTRACTORS, "all") for t in (None, 1, 2)}
    assert all(c.accuracy == 1 and c.total == 6 for c in found)
    assert {c.against: c.chance for c in found} == dict.fromkeys(DISTRACTORS, 0.5) | {"all": 0.25}


def test_the_opposite_is_never_right():
    targets = features()
    for distractor in DISTRACTORS:
        found = choices("fooled", distances(targets[distractor], targets, 2).numpy())
        assert all(c.correct == 0 for c in found if c.against in (distractor, "all"))


def test_a_constant_answer_is_at_chance():
    torch.manual_seed(0)
    targets = {name: torch.randn(4000, 4, 3) for name in CANDIDATES}
    for c in choices("constant", distances(torch.zeros(4000, 4, 3), targets, 2).numpy()):
        assert abs(c.accuracy - c.chance) < 0.05


def test_ties_are_no_hits():
    assert hits(np.array([[1.0, 1.0, 2.0], [1.0, 2.0, 3.0], [2.0, 1.0, 3.0], [np.nan, 1.0, 1.0]])).tolist() == [
        False, True, False, False]  # fmt: skip
    same = dict.fromkeys(CANDIDATES, torch.randn(6, 4, 3))
    assert all(c.correct == 0 for c in choices("tied", distances(torch.randn(6, 4, 3), same, 2).numpy()))


def test_distances_by_hand():
    targets = features()
    prediction = torch.randn(6, 4, 3)
    found = distances(prediction, targets, 2)
    assert found.shape == (6, 4, 2)
    by_hand = (prediction[3, 2:] - targets["reversed"][3, 2:]).abs().sum() / 6  # two tokens of three dimensions
    torch.testing.assert_close(found[3, CANDIDATES.index("reversed"), 1], by_hand)


@pytest.mark.parametrize(
    "how", [("layer", 0.0), ("batch_standardize", 0.0), ("batch_standardize", 0.5), ("layer", 0.5)]
)
def test_distractors_are_normalised_by_the_true_clips(how):
    torch.manual_seed(0)
    true, other, masks = torch.randn(6, 8, 4), 3 + 2 * torch.randn(6, 8, 4), [torch.arange(4, 8).expand(6, -1)]
    (own,) = normalize_targets(true, masks, *how)
    assert torch.equal(normalize_targets(true, masks, *how, like_BND=true)[0], own)
    (found,) = normalize_targets(other, masks, *how, like_BND=true)
    mixed = torch.cat([other[:1], true[1:]])  # one clip's answer does not depend on the other distractors
    torch.testing.assert_close(normalize_targets(mixed, masks, *how, like_BND=true)[0][0], found[0])
    if how == ("batch_standardize", 0.0):
        mean = true.mean(0)
        by_hand = (other - mean) / ((true - mean).square().mean((0, 1)) + 1e-6).sqrt()
        torch.testing.assert_close(found, by_hand[:, 4:])


@torch.no_grad()
def test_predictions_know_the_context_only(tmp_path):
    model = FuturePredictor(pretraining(tmp_path).model_dump(), 2, tmp_path)
    torch.manual_seed(0)
    for p in model.parameters():
        p.add_(0.05 * torch.randn_like(p))
    clips = torch.randn(3, 3, 8, 32, 32)
    altered = clips.clone()
    altered[:, :, 4:] = torch.randn(3, 3, 4, 32, 32)
    for answer in (model.predict, model.copy_last):
        assert answer(clips).shape == (3, 8, model.jepa.encoder.backbone.embed_dim)  # 2 tubelets of 4 patches
        assert torch.equal(answer(clips), answer(altered))
        assert not torch.equal(answer(clips), answer(clips.flip(2)))
    tubelets = model.copy_last(clips).unflatten(1, (2, 4))
    assert torch.equal(tubelets[:, 0], tubelets[:, 1])
    targets = model.targets({"true": clips, "static": altered})
    assert not torch.allclose(targets["true"], targets["static"])


def test_the_mean_leaves_the_clip_itself_out():
    targets = torch.randn(5, 4, 3)
    torch.testing.assert_close(future.mean_of_others(targets)[1], targets[[0, 2, 3, 4]].mean(0))


def test_the_checkpoint_is_what_is_evaluated(tmp_path):
    path = save_run(pretraining(tmp_path))
    before = torch.get_rng_state()
    checkpoint = CheckpointConfig(folder=str(path.parent), checkpoint=path.name)
    models, trained_as, source = load_future_predictors(checkpoint, 1)
    assert torch.equal(torch.get_rng_state(), before)
    assert (trained_as["loss"]["target_norm"], source) == ("batch_standardize", f"{path}, step 5")
    state = load(path)
    for name, stored in state["predictor"].items():
        assert torch.equal(models["pretrained"].jepa.predictor.backbone.state_dict()[name], stored)
    for name, fresh in build_encoder_and_predictor(trained_as)[0].state_dict().items():
        assert torch.equal(models["random"].target_encoder.state_dict()[name], fresh)
    assert models["pretrained"].future_tubelets == 3


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
