"""The config in a checkpoint, of this version and of earlier ones: the same encoder is built from it."""

import copy
import json
from pathlib import Path

import pytest
import torch

from app import scaffold
from app.vjepa.utils import init_video_model
from evals.classification.frozen_encoder import load_encoders
from evals.config_sections import CheckpointConfig, PretrainedConfig
from evals.future_prediction.future_predictor import load_future_predictors
from src.jepa.build import build_encoder_and_predictor, make_target_encoder
from src.jepa.checkpoint_config import check_same_start, checkpoint_config
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


STARTS = [
    ("meta.seed", 2, "1"),
    ("data.crop_size", 64, "32"),
    ("data.patch_size", 16, "8"),
    ("data.num_frames", 8, "4"),
    ("data.tubelet_size", 1, "2"),
    ("model.model_name", "videomamba_small", '"videomamba_tiny"'),
    ("model.pred_model_name", "vit_small", '"vit_tiny"'),
    ("model.pred_depth", 2, "1"),
    ("model.pred_embed_dim", 48, "24"),
    ("model.pred_num_heads", 3, "null"),
    ("model.pred_token_order", "concat", '"raster"'),
    ("model.projector", "mlp", "null"),
    ("model.uniform_power", True, "false"),
    ("model.use_mask_tokens", False, "true"),
    ("model.zero_init_mask_tokens", False, "true"),
    ("model.pos_embed", "learned", '"sincos"'),
    ("model.bidirectional", False, "true"),
    ("model.scan_order", "temporal", '"spatial"'),
    ("model.halve_directions", True, "false"),
    ("model.init", "fan_in", '"default"'),
    ("study.linear_std", 0.02, "null"),
    ("study.zero_dt_bias", True, "false"),
]


@pytest.mark.parametrize(("key", "value", "then"), STARTS, ids=[key for key, *_ in STARTS])
def test_another_start_is_refused(checkpoint, key, value, then):
    stored = checkpoint_config(load(checkpoint[1]), checkpoint[1])
    section, name = key.split(".")
    now = copy.deepcopy(stored)
    check_same_start(stored, now, Path("p"))
    now[section][name] = value
    with pytest.raises(UserError) as error:
        check_same_start(stored, now, Path("p"))
    assert str(error.value) == (
        f"p: its run began with {key}={then}, and {json.dumps(value)} is asked for: the random baseline of "
        f"evaluations, drawn from the config, would not be its start; set {key}={then}, or start afresh (no "
        "meta.read_checkpoint, another folder)"
    )


def test_a_checkpoint_of_before_a_key_began_as_the_code_then_did(checkpoint):
    state = load(checkpoint[0])
    now = copy.deepcopy(state["config"])
    for key in ("init", "scan_order", "halve_directions", "projector"):
        del state["config"]["model"][key]
    del state["config"]["study"], state["config"]["meta"]["seed"]
    now["meta"]["seed"] = 0
    stored = checkpoint_config(state, Path("p"))
    check_same_start(stored, now, Path("p"))
    now["model"]["scan_order"] = "temporal"
    with pytest.raises(UserError, match=r'began with model\.scan_order="spatial"'):
        check_same_start(stored, now, Path("p"))


class Noting(dict):
    """A section that notes which of its keys are read."""

    def __init__(self, name, keys, seen):
        super().__init__(keys)
        self.name, self.seen = name, seen

    def __getitem__(self, key):
        self.seen.add(f"{self.name}.{key}")
        return super().__getitem__(key)


@pytest.mark.parametrize("encoder", ["videomamba_tiny", "vit_tiny"])
def test_every_key_that_the_start_is_made_from_is_held_to(small, small_backbones, encoder):
    """But those that change neither a weight nor what the network computes once it is trained."""
    _, path = small("run", model={"model_name": encoder})
    config, seen = scaffold.load(path, [])[1].model_dump(), set()
    sections = ("data", "meta", "model", "study")
    build_encoder_and_predictor(config | {name: Noting(name, config[name], seen) for name in sections})
    assert {"meta.seed", "model.model_name", "study.linear_std"} <= seen
    assert seen - {key for key, *_ in STARTS} == {"model.drop_path_rate", "meta.use_sdpa"}
