"""What a checkpoint holds, and how a run goes on from it: bit for bit, from the one before, or not at all."""

import os
import shutil
import signal

import pytest
import torch

from app.vjepa import train
from app.vjepa.checkpoints import load_checkpoint, resume, save_checkpoint
from app.vjepa.train import main
from src.launch.preemption import Preempted
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
    path = tmp_path / "jepa-latest.pth.tar"
    load_checkpoint(load(path), path, run)
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
    said = (
        "written with world size 1, batch size 2, accumulate_steps 1 and 8 steps an epoch, which now are 1, 4, 1 and 4"
    )
    assert any(said in message for message in caplog.messages)
    assert [(int(r["epoch"]), int(r["itr"])) for r in rows(tmp_path)] == [
        *((0, i) for i in range(8)),
        *((1, i) for i in range(4)),
    ]


def test_missing_checkpoint_is_an_error_when_named(lists, tmp_path):
    with pytest.raises(UserError, match="read_checkpoint"):
        main(config(lists, tmp_path, meta={"read_checkpoint": "nowhere.pth.tar"}))


_trained = []  # the folder of the run below, trained once


@pytest.fixture
def elsewhere(lists, tmp_path, tmp_path_factory):
    """A finished run of one epoch in another folder; its latest checkpoint."""
    if not _trained:
        _trained.append(tmp_path_factory.mktemp("trained"))
        main(config(lists, _trained[0], optimization={"epochs": 1, "ipe_scale": 2}))
    shutil.copytree(_trained[0], tmp_path / "first")
    return tmp_path / "first" / "jepa-latest.pth.tar"


def stop_after(monkeypatch, step):
    """The next run is asked to stop when it has taken so many steps."""

    def stopping(args, run, group, now):
        if run.step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(args, run, group, now)

    train_step = train.train_step
    monkeypatch.setattr(train, "train_step", stopping)
    return lambda: monkeypatch.setattr(train, "train_step", train_step)


@pytest.mark.parametrize(("requeued", "relative"), [(True, False), (False, True)], ids=["requeued", "the same command"])
def test_a_run_that_began_from_a_file_goes_on_from_its_own(
    lists, tmp_path, elsewhere, monkeypatch, caplog, requeued, relative
):
    folder, asked = tmp_path / "second", str(elsewhere)
    if relative:
        folder.mkdir()
        elsewhere.rename(folder / "start.pth.tar")
        asked = "start.pth.tar"
    cfg = config(lists, folder, meta={"read_checkpoint": asked})
    for step in (4, 5):
        go_on = stop_after(monkeypatch, step)
        with pytest.raises(Preempted):
            main(cfg, resume_preempt=requeued and step > 4)
        go_on()
    (folder / asked).unlink()  # no longer needed
    main(cfg, resume_preempt=requeued)
    begun = [message.split(" (")[0] for message in caplog.messages if message.startswith("resumed from ")]
    latest = folder / "jepa-latest.pth.tar"
    assert begun == [
        f"resumed from {place} at step {n}" for place, n in ((folder / asked, 3), (latest, 4), (latest, 5))
    ]
    assert [(row["epoch"], row["itr"]) for row in rows(folder)] == [("1", "0"), ("1", "1"), ("1", "2")]
    assert load(latest)["began_from"] == asked


def test_a_folder_with_another_run_is_not_begun_anew_from_a_file(lists, tmp_path, elsewhere, caplog):
    own = tmp_path / "own"
    main(config(lists, own, logging={"folder": str(own), "save_every_epochs": 1}))
    latest = own / "jepa-latest.pth.tar"
    before = latest.read_bytes()
    for i, asked in enumerate((str(elsewhere), "jepa-e1.pth.tar", "jepa-previous.pth.tar", "nowhere.pth.tar")):
        with pytest.raises(UserError) as error:
            main(config(lists, own, meta={"read_checkpoint": asked, "load_checkpoint": i % 2 == 0}))
        assert str(error.value) == (
            f"meta.read_checkpoint={asked}: {latest} holds a run that began afresh: unset the key to go on with that "
            "run, or choose another logging.folder to begin from the file"
        )
    assert latest.read_bytes() == before
    # What is meant is plain: the folder's latest by its name, and a job that was queued again.
    longer = {"epochs": 3, "warmup": 0, "ipe": 3}
    main(config(lists, own, meta={"read_checkpoint": "jepa-latest.pth.tar"}, optimization=longer))
    main(config(lists, own, meta={"read_checkpoint": str(elsewhere)}, optimization=longer | {"epochs": 4}), True)
    assert caplog.text.count(f"resumed from {latest} at step ") == 2
    assert (load(latest)["step"], load(latest)["began_from"]) == (12, None)


def test_a_checkpoint_of_an_earlier_version_says_in_its_config_where_its_run_began(lists, tmp_path, elsewhere):
    folder = tmp_path / "second"
    cfg = config(lists, folder, meta={"read_checkpoint": str(elsewhere)})
    main(cfg)
    latest = folder / "jepa-latest.pth.tar"
    state = load(latest)
    del state["began_from"]
    torch.save(state, latest)
    main(cfg)
    other = tmp_path / "first" / "jepa-e1.pth.tar"
    with pytest.raises(UserError, match=f"holds a run that began from {elsewhere}: unset the key"):
        main(config(lists, folder, meta={"read_checkpoint": str(other)}))


@pytest.mark.parametrize("by", ["resuming", "a file"])
def test_another_start_is_refused(lists, tmp_path, elsewhere, by):
    """The weights fit, and the random twin that evaluations draw from the config would be another network."""
    folder = elsewhere.parent if by == "resuming" else tmp_path / "second"
    meta = {"load_checkpoint": True} if by == "resuming" else {"read_checkpoint": str(elsewhere)}
    before = elsewhere.read_bytes()
    with pytest.raises(UserError, match=f"^{elsewhere}: its run began with meta.seed=1, and 2 is asked for: "):
        main(config(lists, folder, meta=meta | {"seed": 2}))
    with pytest.raises(UserError, match=r'its run began with model\.init="default", and "fan_in" is asked for: '):
        main(config(lists, folder, meta=meta, model={"init": "fan_in"}))
    assert elsewhere.read_bytes() == before


def test_the_clip_s_shape_is_part_of_the_start(lists, tmp_path, elsewhere):
    """2 x 4 x 4 tokens become 8 x 2 x 2: every shape fits."""
    data = {"crop_size": 16, "num_frames": 16}
    with pytest.raises(UserError, match=r"its run began with data\.crop_size=32, and 16 is asked for"):
        main(config(lists, tmp_path / "b", data=data, meta={"read_checkpoint": str(elsewhere)}))


def test_what_is_no_part_of_the_start_may_change(lists, tmp_path, elsewhere):
    changed = {"model": {"drop_path_rate": 0.2, "use_activation_checkpointing": True}, "meta": {"use_sdpa": False}}
    changed["meta"]["read_checkpoint"] = str(elsewhere)
    main(config(lists, tmp_path / "b", optimization={"lr": 2e-3}, loss={"reg_coeff": 0.1}, **changed))
    assert load(tmp_path / "b" / "jepa-latest.pth.tar")["step"] == 6


STREAM = {"data": {"dataset_type": "WebVideoDataset", "datasets": ["https://host/{0..3}.tar"]}}
OTHER_STEPS = "the run goes on at the same sample, its steps are others"
OTHER_MASKS = "the run goes on at the same sample, each step has the same samples and other masks"
DEALT_ANEW = "the run goes on at the same place of its epoch, and streamed shards are dealt out anew"


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ((1, 2, 2, {}), None),
        ((2, 2, 1, {}), None),
        ((4, 1, 1, {}), f"4, 1, 1 and 3: {OTHER_MASKS}"),
        ((1, 4, 1, {}), f"1, 4, 1 and 3: {OTHER_MASKS}"),
        ((1, 2, 1, {}), f"1, 2, 1 and 3: {OTHER_STEPS}"),
        ((2, 2, 2, {}), f"2, 2, 2 and 3: {OTHER_STEPS}"),
        ((1, 2, 2, {"optimization": {"ipe": 6}}), f"1, 2, 2 and 6: {OTHER_STEPS}"),
        ((1, 2, 2, {"data": {"num_workers": 3}}), None),
        ((1, 2, 2, STREAM), None),
        ((1, 2, 2, {"data": STREAM["data"] | {"num_workers": 1}}), None),
        ((2, 2, 1, STREAM), f"2, 2, 1 and 3: {DEALT_ANEW}"),
        ((1, 2, 2, {"data": STREAM["data"] | {"num_workers": 2}}), f"1, 2, 2 and 3: {DEALT_ANEW}"),
        ((1, 4, 1, STREAM), f"1, 4, 1 and 3: {DEALT_ANEW}"),
    ],
)  # fmt: skip
def test_other_steps_are_said_and_only_those(lists, tmp_path, caplog, now, said):
    """Written by one process that accumulates two batches of two. Processes in the place of accumulation change nothing
    (test_parallel.py), but which of them gets what of a stream.
    """
    data = STREAM["data"] if "datasets" in now[3].get("data", {}) else {}
    written = config(lists, tmp_path, optimization={"accumulate_steps": 2}, data=data)
    run = build(written)
    save_checkpoint(run, written, 1)
    world_size, batch_size, accumulate, sections = now
    data = sections.get("data", {}) | {"batch_size": batch_size}
    optimization = sections.get("optimization", {}) | {"accumulate_steps": accumulate}
    cfg = config(lists, tmp_path, data=data, optimization=optimization)
    run.steps_per_epoch = cfg.optimization.ipe
    resume(cfg, run, [tmp_path / "jepa-latest.pth.tar"], world_size, True)
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    before = "it was written with world size 1, batch size 2, accumulate_steps 2 and 3 steps an epoch, which now are "
    assert warned == ([before + said] if said else [])
