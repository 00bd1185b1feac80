"""Pretraining on real mp4 files: what a step changes, how the optimizer is set, and when a run ends early."""

import copy

import pytest
import torch

from app.vjepa.train import main, make_loader, train_step
from app.vjepa.utils import Schedule, apply_schedule, make_schedule
from src.models.decay import NO_DECAY_NAMES
from src.utils.errors import UserError
from tests.app.vjepa.small_runs import build, config, rows

pytestmark = pytest.mark.usefixtures("small_backbones")


@pytest.mark.parametrize("encoder", ["videomamba_tiny", "vit_tiny"])
@pytest.mark.parametrize("predictor", ["videomamba_tiny", "vit_tiny"])
def test_a_step_changes_every_trainable_parameter_and_the_target_only_by_ema(lists, tmp_path, encoder, predictor):
    cfg = config(lists, tmp_path, model={"model_name": encoder, "pred_model_name": predictor})
    run = build(cfg)
    batch = next(iter(make_loader(cfg, 0, 1)))
    # Zero-initialised mask tokens and biases start to move at once; nothing may be left out of the optimizer.
    before = copy.deepcopy(run.model.state_dict())
    target_before = copy.deepcopy(run.target_encoder.state_dict())
    numbers = train_step(cfg, run, [batch], Schedule(lr=1e-2, weight_decay=0.04, momentum=0.9))
    assert torch.isfinite(numbers).all()
    for name, parameter in run.model.named_parameters():
        changed = not torch.equal(before[name], parameter)
        assert changed == parameter.requires_grad, name
    online = run.encoder.state_dict()
    for name, value in run.target_encoder.state_dict().items():
        torch.testing.assert_close(value, 0.9 * target_before[name] + 0.1 * online[name], rtol=1e-6, atol=1e-7)
        assert not run.target_encoder.get_parameter(name).requires_grad
    assert not run.target_encoder.training


def test_a_cpu_computes_in_float32_unless_a_study_asks_for_less(lists, tmp_path):
    losses, seen = {}, {}
    for study in (False, True):
        cfg = config(lists, tmp_path, meta={"dtype": "bfloat16"}, study={"autocast_on_cpu": study})
        torch.manual_seed(0)
        run = build(cfg)
        attention = run.predictor.predictor_blocks[0].attn.qkv
        attention.register_forward_hook(lambda *args, study=study: seen.update({study: args[-1].dtype}))
        batch = next(iter(make_loader(cfg, 0, 1)))
        losses[study] = train_step(cfg, run, [batch], Schedule(lr=1e-3, weight_decay=0.04, momentum=0.9))[0].item()
    assert seen == {False: torch.float32, True: torch.bfloat16}
    assert losses[True] == pytest.approx(losses[False], rel=0.02) and losses[True] != losses[False]


def test_state_space_and_token_parameters_are_never_decayed(lists, tmp_path):
    cfg = config(lists, tmp_path, model={"pred_model_name": "videomamba_tiny"}, optimization={"pred_lr_scale": 0.5})
    run = build(cfg)
    names = {id(p): n for n, p in run.model.named_parameters()}
    decayed = {names[id(p)] for group in run.optimizer.param_groups if not group["WD_exclude"] for p in group["params"]}
    grouped = [id(p) for group in run.optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in run.model.parameters() if p.requires_grad)
    assert decayed
    assert not [n for n in decayed if n.split(".")[-1] in (*NO_DECAY_NAMES, "bias") or "norm" in n or "mask_tok" in n]
    assert any(n.endswith("A_log") for n in names.values())
    apply_schedule(run.optimizer, Schedule(lr=1e-3, weight_decay=0.1, momentum=0.9))
    for group in run.optimizer.param_groups:
        assert group["weight_decay"] == (0.0 if group["WD_exclude"] else 0.1)
    assert [group["lr"] for group in run.optimizer.param_groups] == [1e-3, 1e-3, 5e-4, 5e-4]


def test_schedules_advance_once_per_optimizer_step(lists, tmp_path):
    plain, accumulated = (
        make_schedule(config(lists, tmp_path, optimization={"accumulate_steps": n}), 3) for n in (1, 4)
    )
    assert [plain(s) for s in range(6)] == [accumulated(s) for s in range(6)]


def test_accumulating_is_the_mean_of_the_batches(lists, tmp_path):
    cfg = config(lists, tmp_path, model={"drop_path_rate": 0.0})
    batches = [b for b, _ in zip(make_loader(cfg, 0, 1), range(2))]
    one, two = build(cfg), build(cfg)
    now = Schedule(lr=0.0, weight_decay=0.0, momentum=1.0)
    numbers = [train_step(cfg, one, [b], now) for b in batches]
    gradients = []
    for b in batches:
        train_step(cfg, one, [b], now)
        gradients.append([p.grad.clone() for p in one.model.parameters() if p.grad is not None])
    both = train_step(cfg, two, batches, now)
    torch.testing.assert_close(both[:3], torch.stack(numbers)[:, :3].mean(0))
    for p, a, b in zip((p for p in two.model.parameters() if p.grad is not None), *gradients):
        torch.testing.assert_close(p.grad, (a + b) / 2, rtol=1e-4, atol=1e-7)


def test_a_run_that_diverges_stops(lists, tmp_path):
    cfg = config(lists, tmp_path, optimization={"start_lr": 1e30, "lr": 1e30, "warmup": 0, "max_skipped_steps": 1})
    with pytest.raises(UserError, match=r"not finite at epoch 0, step 2 \(loss nan\).*lower optimization.lr.* nothing"):
        main(cfg)
    assert not (tmp_path / "jepa-latest.pth.tar").exists()
    assert [row["enc-grad-norm"] for row in rows(tmp_path)][1:] == [
        "nan",
        "nan",
    ]  # the rows that show it are in the csv


def test_training_lowers_the_loss(lists, tmp_path):
    main(config(lists, tmp_path, optimization={"ipe": 20, "epochs": 2}))
    losses = [float(r["loss"]) for r in rows(tmp_path)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
