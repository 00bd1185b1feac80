"""The figures that a run keeps about itself, and the lines that warn of a run that is going wrong."""

import csv
import math

import pytest
import torch

from app.vjepa import train
from app.vjepa.config import PretrainConfig
from app.vjepa.diagnostics import RENAMED_COLUMNS, diagnostics_path

pytestmark = pytest.mark.usefixtures("small_backbones", "process_group")


def table(cfg):
    with diagnostics_path(cfg).open() as file:
        return list(csv.DictReader(file))


def config(small, name="run", **sections):
    sections.setdefault("logging", {})
    sections["logging"] = {"diagnose_every": 5} | sections["logging"]
    return PretrainConfig.model_validate(small(name, **sections)[0])


def test_figures_of_a_run(small):
    cfg = config(small)
    train.main(cfg)
    rows = table(cfg)
    assert [(row["epoch"], row["itr"]) for row in rows] == [("0", "0"), ("1", "1"), ("2", "2")]
    for row in rows:
        values = {name: float(value) for name, value in row.items()}
        assert all(math.isfinite(value) for value in values.values()), values
        assert 0 < values["target/between_clip_std"] < 1.5
        assert 1 <= values["target/effective_rank_centered"] <= 192
        for part in ("encoder", "encoder.patch_embed", "encoder.layers.1", "predictor", "predictor.predictor_blocks.0"):
            assert values[f"gradient/{part}"] > 0 and values[f"update/{part}"] > 0, part
        assert 0.001 < values["dt/layers.0.mixer"] < 0.1
        assert 1 < values["A/layers.1.mixer"] < 16
        assert {f"error/time_{t}" for t in range(cfg.data.num_frames // 2)} <= set(values)


def test_what_tensorboard_shows(small):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    cfg = config(small, logging={"log_every": 2, "diagnose_every": 3})
    train.main(cfg)
    events = accumulator.EventAccumulator(
        str(cfg.output_folder() / "tensorboard"), size_guidance={"images": 0}
    ).Reload()
    with (cfg.output_folder() / "jepa_r0.csv").open() as file:
        logged = list(csv.DictReader(file))[::2]
    for name in ("loss", "lr", "weight-decay", "ema"):
        shown = [(event.step, event.value) for event in events.Scalars(f"train/{name}")]
        assert [step for step, _ in shown] == [0, 2, 4, 6, 8, 10]
        assert [value for _, value in shown] == pytest.approx([float(row[name]) for row in logged], rel=1e-3)
    assert all(event.value > 0 for event in events.Scalars("train/clips-per-s"))
    assert [event.step for event in events.Scalars("diagnostics/target/between_clip_std")] == [0, 3, 6, 9]
    for name in ("masks", "features"):  # at the first look of each epoch of 4 steps
        assert [event.step for event in events.Images(name)] == [0, 6, 9]


def test_looking_changes_nothing(small):
    plain, watched = config(small, "plain", logging={"diagnose_every": None}), config(small, "watched")
    for cfg, folder in ((plain, "plain"), (watched, "watched")):
        cfg.logging.folder = str(cfg.output_folder().parent / folder)
        train.main(cfg)
    assert not diagnostics_path(plain).exists()
    states = [torch.load(cfg.output_folder() / "jepa-latest.pth.tar", weights_only=True) for cfg in (plain, watched)]
    for key in ("encoder", "predictor", "target_encoder"):
        for name, value in states[0][key].items():
            assert torch.equal(value, states[1][key][name]), f"{key} {name}"


def test_a_resumed_run_goes_on_with_the_table(small):
    whole = config(small, "whole")
    whole.logging.folder = str(whole.output_folder().parent / "whole")
    train.main(whole)
    parts = config(small, "parts", optimization={"epochs": 2, "ipe_scale": 1.5})
    parts.logging.folder = str(parts.output_folder().parent / "parts")
    train.main(parts)
    train.main(config(small, "parts"))
    assert [(r["epoch"], r["itr"]) for r in table(parts)] == [(r["epoch"], r["itr"]) for r in table(whole)]
    same = ("target/effective_rank", "gradient/encoder.layers.0", "error/time_0")
    assert [[row[name] for name in same] for row in table(parts)][:2] == [
        [row[name] for name in same] for row in table(whole)
    ][:2]


def test_the_table_of_an_earlier_version_is_continued_under_the_present_names(small):
    """A run that stopped under names of columns that have changed since."""
    cfg = config(small, optimization={"epochs": 2, "ipe_scale": 1.5})
    train.main(cfg)
    present = table(cfg)
    old_names = {new: old for old, new in RENAMED_COLUMNS.items()}
    header, *lines = diagnostics_path(cfg).read_text().splitlines()
    header = ",".join(old_names.get(name, name) for name in header.split(","))
    for name in ("target/sample_std", "target/sample_cosine", "prediction/sample_cosine"):
        assert name in header.split(",")
    diagnostics_path(cfg).write_text("\n".join([header, *lines]) + "\n")
    train.main(config(small))
    rows = table(cfg)
    assert rows[:2] == present
    assert [(row["epoch"], row["itr"]) for row in rows] == [("0", "0"), ("1", "1"), ("2", "2")]
    assert "target/between_clip_std" in rows[2] and not rows[2].keys() & RENAMED_COLUMNS.keys()


def test_a_vit_has_no_state_space(small):
    cfg = config(small, model={"model_name": "vit_tiny"})
    train.main(cfg)
    names = table(cfg)[0].keys()
    assert not [name for name in names if name.startswith(("dt/", "A/"))]
    assert "gradient/encoder.blocks.1" in names


def test_collapse_is_said_once(small, caplog, monkeypatch):
    def constant(encoder):
        target = make(encoder)
        for parameter in target.parameters():
            parameter.zero_()
        return target

    make = train.make_target_encoder
    monkeypatch.setattr(train, "make_target_encoder", constant)
    cfg = config(small, optimization={"ema": [1.0, 1.0]})
    train.main(cfg)
    printed = caplog.text
    assert printed.count("the targets of different clips hardly differ") == 1
    assert printed.count("the targets use 1 of 192 dimensions") == 1


def test_a_dead_encoder_is_said(small, caplog, monkeypatch):
    step = train.train_step

    def cut_off(args, run, group, now):
        numbers = step(args, run, group, now)
        for parameter in run.encoder.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(1e-6)
        return numbers

    monkeypatch.setattr(train, "train_step", cut_off)
    train.main(config(small))
    assert caplog.text.count("the encoder does not learn") == 1
