"""Pretraining end to end on real mp4 files: what a step changes, resuming, and how it stops."""

import copy
import csv
from pathlib import Path

import pytest
import torch

from app.vjepa.checkpoints import load_checkpoint
from app.vjepa.config import PretrainConfig
from app.vjepa.train import main, make_loader, train_step
from app.vjepa.utils import Run, Schedule, apply_schedule, init_opt, init_video_model, make_schedule
from src.datasets.embedded.motion import write_motion
from src.jepa.build import make_target_encoder
from src.jepa.objective import ema_update
from src.models import load_encoder
from src.models.decay import NO_DECAY_NAMES
from src.models.registry import BACKBONES
from src.utils.checkpoint import load
from src.utils.errors import UserError


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    root = tmp_path_factory.mktemp("motion")
    root.rmdir()
    write_motion(root, train=16, val=16, workers=1)
    return root


@pytest.fixture(autouse=True)
def small_backbones(monkeypatch):
    """The real constructors at a size that trains in milliseconds."""
    for name, row in BACKBONES.items():
        monkeypatch.setitem(BACKBONES, name, row._replace(depth=2))


def config(lists, folder, **sections):
    raw = {
        "app": "vjepa",
        "data": {
            "dataset_type": "VideoDataset",
            "datasets": [str(lists / "train.csv")],
            "batch_size": 2,
            "num_frames": 4,
            "sampling_rate": 1,
            "crop_size": 32,
            "patch_size": 8,
            "tubelet_size": 2,
            "num_workers": 0,
            "mask_type": "random_tube",
        },
        "logging": {"folder": str(folder)},
        "mask": [{"ratio": 0.5}, {"ratio": 0.75}],
        "meta": {"seed": 1},
        "model": {
            "model_name": "videomamba_tiny",
            "pred_model_name": "vit_tiny",
            "pred_depth": 1,
            "pred_embed_dim": 24,
            "uniform_power": True,
            "use_mask_tokens": True,
        },
        "optimization": {
            "ipe": 3,
            "epochs": 2,
            "warmup": 1,
            "start_lr": 1e-3,
            "lr": 1e-3,
            "final_lr": 1e-5,
            "ema": [0.9, 1.0],
        },
    }
    for section, keys in sections.items():
        if isinstance(keys, dict):
            raw[section] = raw[section] | keys if section in raw else keys
        else:
            raw[section] = keys
    return PretrainConfig.model_validate(raw)


def build(cfg):
    encoder, predictor = init_video_model(cfg)
    from src.jepa.objective import VideoJEPA

    model = VideoJEPA(encoder, predictor)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    optimizer, target_encoder = init_opt(encoder, predictor, cfg), make_target_encoder(encoder)
    return Run(encoder, predictor, target_encoder, model, optimizer, scaler, steps_per_epoch=3, samples_per_step=2)


def rows(folder):
    with (Path(folder) / "jepa_r0.csv").open() as file:
        return list(csv.DictReader(file))


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


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


def test_ema_equals_its_closed_form():
    torch.manual_seed(0)
    online = [[torch.randn(5, 3), torch.randn(7)] for _ in range(4)]
    target = [torch.randn(5, 3), torch.randn(7)]
    start, momenta = [t.clone() for t in target], [0.9, 0.99, 0.5, 0.999]
    for parameters, m in zip(online, momenta):
        ema_update(target, parameters, m)
    for i, t in enumerate(target):
        weight = torch.tensor(momenta).prod()
        closed = weight * start[i]
        for k, m in enumerate(momenta):
            closed = closed + (1 - m) * torch.tensor(momenta[k + 1 :]).prod() * online[k][i]
        torch.testing.assert_close(t, closed)


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


def test_a_resumed_run_equals_one_that_never_stopped(lists, tmp_path):
    whole = config(lists, tmp_path / "whole", model={"drop_path_rate": 0.2})
    main(whole)
    part = config(lists, tmp_path / "part", model={"drop_path_rate": 0.2})
    stopped = config(lists, tmp_path / "part", model={"drop_path_rate": 0.2})
    stopped.optimization.epochs = 1
    stopped.optimization.ipe_scale = 2 * part.optimization.ipe_scale  # the same schedules, cut off earlier
    main(stopped)
    assert len(rows(tmp_path / "part")) == 3
    main(part, resume_preempt=True)
    a, b = load(tmp_path / "whole/jepa-latest.pth.tar"), load(tmp_path / "part/jepa-latest.pth.tar")
    for key in ("encoder", "predictor", "target_encoder"):
        assert_same(a[key], b[key])
    timeless = [{k: v for k, v in row.items() if "time" not in k} for row in rows(tmp_path / "whole")]
    assert timeless == [{k: v for k, v in row.items() if "time" not in k} for row in rows(tmp_path / "part")]
    assert [(r["epoch"], r["itr"]) for r in timeless] == [(str(e), str(i)) for e in range(2) for i in range(3)]


def test_checkpoint_has_v_jepas_keys_and_its_files(lists, tmp_path):
    main(config(lists, tmp_path, logging={"folder": str(tmp_path), "save_every_epochs": 1}))
    state = load(tmp_path / "jepa-latest.pth.tar")
    wanted = (
        "encoder",
        "predictor",
        "target_encoder",
        "opt",
        "scaler",
        "epoch",
        "loss",
        "batch_size",
        "world_size",
        "lr",
    )
    assert set(wanted) <= state.keys()
    assert state["epoch"] == 2
    assert "layers.0.mixer.A_b_log" in state["encoder"]
    assert "predictor_blocks.0.attn.qkv.weight" in state["predictor"]
    assert {p.name for p in tmp_path.iterdir()} >= {"jepa-e1.pth.tar", "jepa-e2.pth.tar", "params-pretrain.yaml"}
    assert (tmp_path / "jepa_r0.csv").exists()


def test_the_checkpoint_s_encoder_in_one_call(lists, tmp_path):
    main(config(lists, tmp_path))
    encoder = load_encoder(tmp_path / "jepa-latest.pth.tar")
    assert not encoder.training
    assert_same(encoder.state_dict(), load(tmp_path / "jepa-latest.pth.tar")["target_encoder"])
    assert encoder(torch.randn(1, 3, 4, 32, 32)).shape == (1, 32, 192)
    with pytest.raises(UserError, match="no weights under 'teacher'"):
        load_encoder(tmp_path / "jepa-latest.pth.tar", key="teacher")


def test_a_finished_run_is_not_trained_again_and_never_overwritten(lists, tmp_path):
    cfg = config(lists, tmp_path)
    main(cfg)
    before = (tmp_path / "jepa-latest.pth.tar").read_bytes()
    config_before = (tmp_path / "params-pretrain.yaml").read_text()
    with pytest.raises(UserError, match="load_checkpoint=true"):
        main(cfg)
    main(config(lists, tmp_path, optimization={"lr": 5e-3}), resume_preempt=True)
    assert (tmp_path / "jepa-latest.pth.tar").read_bytes() == before
    assert (tmp_path / "params-pretrain.yaml").read_text() == config_before
    assert len(rows(tmp_path)) == 6


def test_checkpoint_of_another_architecture_names_the_parameter(lists, tmp_path):
    main(config(lists, tmp_path))
    with pytest.raises(UserError, match=r"encoder: .*(blocks|layers|pos_embed)"):
        main(config(lists, tmp_path, model={"model_name": "vit_tiny"}), resume_preempt=True)


def test_a_resumed_run_takes_the_optimizer_s_settings_from_its_config(lists, tmp_path):
    main(config(lists, tmp_path))
    run = build(config(lists, tmp_path, optimization={"pred_lr_scale": 0.5, "betas": [0.8, 0.9], "eps": 1e-6}))
    for group in run.optimizer.param_groups:
        group["fused"] = True  # as on a GPU; the checkpoint's was a CPU's
    load_checkpoint([tmp_path / "jepa-latest.pth.tar"], run)
    groups = run.optimizer.param_groups
    assert [group["lr_scale"] for group in groups] == [1.0, 1.0, 0.5, 0.5]
    assert all(tuple(group["betas"]) == (0.8, 0.9) and group["eps"] == 1e-6 and group["fused"] for group in groups)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(lists, tmp_path, caplog):
    main(config(lists, tmp_path / "whole"))
    folder = tmp_path / "run"
    cfg = config(lists, folder)
    main(cfg)
    latest, previous = folder / "jepa-latest.pth.tar", folder / "jepa-previous.pth.tar"
    latest.write_bytes(latest.read_bytes()[:-100])
    main(cfg, resume_preempt=True)
    assert f"{latest}: truncated checkpoint: its end is missing; going back to {previous}" in caplog.messages
    assert f"resumed from {previous} at step 3 (epoch 2, step 0 of 3)" in caplog.messages
    assert_same(load(latest)["encoder"], load(tmp_path / "whole/jepa-latest.pth.tar")["encoder"])
    assert load(previous)["step"] == 3  # not replaced by the damaged one
    assert (folder / "jepa-latest.pth.tar.damaged").exists()
    for path in (latest, previous):
        path.write_bytes(b"PK")
    with pytest.raises(UserError, match=r"latest.*truncated checkpoint.*previous.*no good checkpoint is left"):
        main(cfg, resume_preempt=True)


def test_other_batches_go_on_at_the_same_point_of_the_data(lists, tmp_path, caplog):
    """16 videos: 8 steps an epoch with batches of 2, 4 with batches of 4."""
    main(config(lists, tmp_path, optimization={"ipe": None, "epochs": 1}))
    larger = config(lists, tmp_path, data={"batch_size": 4}, optimization={"ipe": None, "epochs": 2})
    main(larger, resume_preempt=True)
    state = load(tmp_path / "jepa-latest.pth.tar")
    assert (state["epoch"], state["itr"], state["step"], state["samples"]) == (2, 0, 8, 32)
    said = "written with world size 1, batch size 2 and 8 steps an epoch, which now are 1, 4 and 4"
    assert any(said in message for message in caplog.messages)
    assert [(int(r["epoch"]), int(r["itr"])) for r in rows(tmp_path)] == [
        *((0, i) for i in range(8)),
        *((1, i) for i in range(4)),
    ]


def test_missing_checkpoint_is_an_error_when_named(lists, tmp_path):
    with pytest.raises(UserError, match="read_checkpoint"):
        main(config(lists, tmp_path, meta={"read_checkpoint": "nowhere.pth.tar"}))


def test_a_loss_that_is_not_finite_stops_the_run(lists, tmp_path):
    cfg = config(lists, tmp_path, optimization={"start_lr": 1e30, "lr": 1e30, "warmup": 0})
    with pytest.raises(UserError, match=r"the loss is (nan|inf) at epoch 0, step [12].*optimization.lr"):
        main(cfg)
    assert not (tmp_path / "jepa-latest.pth.tar").exists()
    assert len(rows(tmp_path)) >= 2  # the row that shows it is in the csv


def test_training_lowers_the_loss(lists, tmp_path):
    main(config(lists, tmp_path, optimization={"ipe": 20, "epochs": 2}))
    losses = [float(r["loss"]) for r in rows(tmp_path)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
