"""What a checkpoint holds, and how a run goes on from it: bit for bit, from the one before, or not at all."""

import pytest
import torch

from app.vjepa.checkpoints import load_checkpoint
from app.vjepa.train import main
from src.models import load_encoder
from src.utils.checkpoint import load
from src.utils.errors import UserError
from tests.app.vjepa.small_runs import assert_same, build, config, rows

pytestmark = pytest.mark.usefixtures("small_backbones")


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
