"""The switches that make the mistakes of an earlier attempt again do just that, and nothing while they are off."""

import copy

import pytest
import torch

from app.vjepa import train
from app.vjepa.config import PretrainConfig
from app.vjepa.utils import init_opt, init_video_model, make_schedule
from src.jepa.objective import jepa_losses

pytestmark = pytest.mark.usefixtures("small_backbones", "process_group")


@pytest.fixture
def config(small):
    def make(**study):
        sections = {key: study.pop(key) for key in ("model", "optimization", "data") if key in study}
        raw = small("run", **sections)[0]
        return PretrainConfig.model_validate(raw | {"study": study})

    return make


def test_off_by_default(config):
    plain, zeros = init_video_model(config())[0], init_video_model(config(zero_dt_bias=True))[0]
    names = [name for name, value in plain.named_parameters() if not torch.equal(value, zeros.get_parameter(name))]
    assert names and all(name.endswith(("dt_proj.bias", "dt_proj_b.bias")) for name in names)


def test_linear_std(config):
    cfg = config(linear_std=0.02, model={"pred_model_name": "videomamba_tiny"})
    plain = init_video_model(config(model={"pred_model_name": "videomamba_tiny"}))
    for module, before in zip(init_video_model(cfg), plain):
        for name, value in module.named_parameters():
            if name.endswith("_proj.weight") and "x_proj" not in name and "dt_proj" not in name:
                assert value.std().item() == pytest.approx(0.02, rel=0.1), name
            elif name.endswith(("A_log", "A_b_log", "norm.weight")):
                assert torch.equal(value, before.get_parameter(name)), name
    encoder = init_video_model(cfg)[0]
    assert encoder.patch_embed.proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not encoder.patch_embed.proj.bias.any()
    assert encoder.layers[0].mixer.dt_proj.bias.any()  # a switch of its own


def test_decay_of_the_state_space(config):
    for on in (False, True):
        cfg = config(decay_state_space=on)
        encoder, predictor = init_video_model(cfg)
        optimizer = init_opt(encoder, predictor, cfg)
        decayed = {id(p) for group in optimizer.param_groups if not group["WD_exclude"] for p in group["params"]}
        assert (id(encoder.layers[0].mixer.A_b_log) in decayed) == on
        assert id(encoder.layers[0].mixer.D) not in decayed


def test_schedules_that_run_past_their_end(config):
    options = {"accumulate_steps": 4, "epochs": 2, "ipe": 10, "warmup": 0, "lr": 1.0, "final_lr": 0.0}
    right = make_schedule(config(optimization=options), 10)
    wrong = make_schedule(config(optimization=options, schedule_per_batch=True), 10)
    assert [right(step).lr for step in (0, 10, 20)] == pytest.approx([1.0, 0.5, 0.0])
    assert [wrong(step).lr for step in (0, 5, 10, 15)] == pytest.approx([1.0, 0.0, 1.0, 0.0])


def test_stochastic_depth_in_the_targets(config, monkeypatch):
    modes, step = [], train.train_step

    def noted(args, run, *rest):
        modes.append(run.target_encoder.training)
        return step(args, run, *rest)

    monkeypatch.setattr(train, "train_step", noted)
    for on in (False, True):
        cfg = config(target_drop_path=on, optimization={"epochs": 1, "ipe": 1, "warmup": 0})
        cfg.logging.folder += str(on)
        train.main(cfg)
    assert modes == [False, True]


def test_the_variance_term_as_printed_pulls_the_variance_down():
    for shrink in (False, True):
        z = torch.randn(2, 8, 4, requires_grad=True)
        losses = jepa_losses([z], [z.detach()], reg_coeff=1.0, shrink=shrink)
        losses.reg.backward()
        before = z.detach().var(dim=1).mean()
        after = (z.detach() - 0.1 * z.grad).var(dim=1).mean()
        assert (after < before) == shrink


def test_masks_cut_at_the_end_of_the_clip(config):
    counts = {}
    for how in ("size_sorted", "truncate"):
        cfg = config(data={"length_matching": how, "batch_size": 8})
        data = cfg.data
        (batch, *_) = train.make_loader(cfg, 0, 1)
        frames = torch.cat([mask.flatten() for mask in batch.masks_enc]) // (data.crop_size // data.patch_size) ** 2
        counts[how] = torch.bincount(frames, minlength=data.num_frames // data.tubelet_size)
    assert counts["size_sorted"].min() == counts["size_sorted"].max()
    assert counts["truncate"][-1] < counts["truncate"][0]


@pytest.mark.parametrize("key", ["scan_order", "halve_directions", "pos_embed"])
def test_new_keys_reach_the_encoder_and_its_twin(config, key):
    value = {"scan_order": "temporal", "halve_directions": True, "pos_embed": "none"}[key]
    cfg = config(model={key: value})
    encoder = init_video_model(cfg)[0]
    found = {
        "scan_order": encoder.scan_order,
        "halve_directions": encoder.layers[0].mixer.halve_directions,
        "pos_embed": encoder.pos_kind,
    }
    assert found[key] == value
    raw = copy.deepcopy(cfg.model_dump())
    raw["model"]["model_name"] = "vit_tiny"
    with pytest.raises(ValueError, match=f"model.{key}=.* means nothing for vit_tiny"):
        PretrainConfig.model_validate(raw)
