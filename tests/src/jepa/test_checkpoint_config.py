"""The config in a checkpoint, of this version and of earlier ones: the same encoder is built from it."""

from pathlib import Path

import pytest
import torch

from app import scaffold
from app.vjepa.utils import init_video_model
from evals.classification.frozen_encoder import load_encoders
from evals.config_sections import CheckpointConfig, PretrainedConfig
from evals.future_prediction.future_predictor import load_future_predictors
from src.jepa.build import make_target_encoder
from src.jepa.checkpoint_config import checkpoint_config
from src.models import load_encoder
from src.utils.checkpoint import load, save_atomic
from src.utils.errors import UserError


@pytest.fixture
def checkpoint(small, small_backbones, tmp_path):
    """A checkpoint under present names, and one that an earlier version wrote: (new, old)."""
    _, path = small("run", data={"batch_size": 8})
    _, config = scaffold.load(path, ["data.length_matching=truncate", "loss.target_norm=zca_whiten"])
    torch.manual_seed(0)
    encoder, predictor = init_video_model(config)
    with torch.no_grad():
        for p in encoder.parameters():
            p.mul_(1.2 if p.requires_grad else 1)
    modules = {"encoder": encoder, "predictor": predictor, "target_encoder": make_target_encoder(encoder)}
    state = {name: module.state_dict() for name, module in modules.items()} | {"epoch": 1, "step": 4}
    new = config.model_dump(mode="json")
    assert new["loss"].pop("clip_mean_weight") == 0.0
    old = {name: dict(keys) if isinstance(keys, dict) else keys for name, keys in new.items()}
    del old["data"]["length_matching"]
    old["data"]["mask_equalize"] = "tail"
    old["loss"] |= {"target_norm": "whiten", "target_pooled": 0.5}
    old["model"]["init"] = "published"
    new["loss"]["clip_mean_weight"] = 0.5
    for name, stored in (("new", new), ("old", old)):
        (tmp_path / name).mkdir()
        save_atomic(state | {"config": stored}, tmp_path / name / "jepa-latest.pth.tar")
    return tmp_path / "new" / "jepa-latest.pth.tar", tmp_path / "old" / "jepa-latest.pth.tar"


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_old_names_are_read(checkpoint):
    new, old = (checkpoint_config(load(path), path) for path in checkpoint)
    assert new == old
    assert (old["data"]["length_matching"], old["model"]["init"]) == ("truncate", "default")
    assert (old["loss"]["target_norm"], old["loss"]["clip_mean_weight"]) == ("zca_whiten", 0.5)


def test_keys_that_came_later_are_filled_in(checkpoint):
    state = load(checkpoint[0])
    for section in ("loss", "study"):
        del state["config"][section]
    del state["config"]["model"]["init"], state["config"]["data"]["clip_duration"]
    config = checkpoint_config(state, Path("p"))
    assert config["loss"] == {"target_norm": "layer", "clip_mean_weight": 0.0}
    assert config["study"] == {"linear_std": None, "zero_dt_bias": False}
    assert (config["model"]["init"], config["data"]["clip_duration"]) == ("default", None)


def test_evaluations_load_an_old_checkpoint(checkpoint):
    """The trained encoder and the random one, drawn as the run began."""
    new, old = (
        load_encoders(
            PretrainedConfig(model_name="videomamba_tiny", folder=str(path.parent), checkpoint=path.name), 3, True
        )
        for path in checkpoint
    )
    for name in ("pretrained", "random"):
        assert_same(new[name].encoder.state_dict(), old[name].encoder.state_dict())
        assert (new[name].settings, new[name].config) == (old[name].settings, old[name].config)
    assert_same(old["pretrained"].encoder.state_dict(), load(checkpoint[1])["target_encoder"])


def test_future_prediction_loads_an_old_checkpoint(checkpoint):
    new, old = (
        load_future_predictors(CheckpointConfig(folder=str(path.parent), checkpoint=path.name), 1)[:2]
        for path in checkpoint
    )
    assert new[1] == old[1]
    for name, model in new[0].items():
        assert_same(model.state_dict(), old[0][name].state_dict())


def test_load_encoder_loads_an_old_checkpoint(checkpoint):
    new, old = map(load_encoder, checkpoint)
    assert_same(new.state_dict(), old.state_dict())
    clip = torch.randn(1, 3, 4, 32, 32)
    assert torch.equal(new(clip), old(clip))


def test_published_weights_have_no_config():
    assert checkpoint_config({}, Path("p")) is None
    assert checkpoint_config({"config": None}, Path("p")) is None


@pytest.mark.parametrize("config", [{"model": {}}, {"data": {}, "model": {"model_name": "vit_tiny"}}, [1], {"loss": 3}])
def test_what_is_no_config_is_said_in_one_line(config):
    with pytest.raises(UserError, match="p: its config is not a pretraining config of this version: ") as error:
        checkpoint_config({"config": config}, Path("p"))
    assert "\n" not in str(error.value)
