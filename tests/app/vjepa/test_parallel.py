"""The same training however it is computed: side by side or one after another, block by block again, compiled."""

import pytest
import torch

from app.vjepa.config import PretrainConfig
from app.vjepa.train import main, make_loader, train_step
from app.vjepa.utils import Run, Schedule, apply_checkpointing_and_compile, init_opt, init_video_model
from src.jepa.build import make_target_encoder
from src.jepa.objective import VideoJEPA
from src.utils.checkpoint import load

MODULES = ("encoder", "predictor", "target_encoder")


def assert_close(one, other, tolerance):
    states = [load(folder / "jepa-latest.pth.tar") for folder in (one, other)]
    for module in MODULES:
        for name, tensor in states[0][module].items():
            torch.testing.assert_close(tensor, states[1][module][name], rtol=0, atol=tolerance, msg=f"{module} {name}")


def test_processes_do_what_accumulation_does_and_either_goes_on_from_the_other(small, start, rows, tmp_path):
    _, two = small("two")
    _, one = small("one", optimization={"accumulate_steps": 2})
    code, shown = start(two)
    assert code == 0, shown
    code, shown = start(one, words=("--devices", "cpu"))
    assert code == 0, shown
    assert_close(tmp_path / "one", tmp_path / "two", 1e-5)
    for ours, theirs in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        for key in ours:
            assert float(ours[key]) == pytest.approx(float(theirs[key]), rel=1e-3, abs=1e-5), key

    code, shown = start(two, words=("--devices", "cpu", "optimization.epochs=4"))
    assert code == 0, shown
    said = (
        "written with world size 2, batch size 2, accumulate_steps 1 and 4 steps an epoch, which now are 1, 2, 1 and 4"
    )
    assert said in shown
    assert len(rows(tmp_path / "two")) == 16
    state = load(tmp_path / "two" / "jepa-latest.pth.tar")
    assert (state["step"], state["world_size"], state["samples"]) == (16, 1, 12 * 4 + 4 * 2)


@pytest.mark.parametrize("encoder", ["vit_tiny", "videomamba_tiny"])
def test_activation_checkpointing_changes_no_bit(small, small_backbones, tmp_path, encoder):
    for name, value in (("plain", False), ("spared", True)):
        model = {"model_name": encoder, "use_activation_checkpointing": value}
        raw, _ = small(name, model=model, optimization={"epochs": 1})
        main(PretrainConfig.model_validate(raw))
    assert_close(tmp_path / "plain", tmp_path / "spared", 0)


def gradients(small, encoder, **model):
    """Loss and gradients of three steps of other lengths, without stochastic depth, which would be drawn otherwise."""
    raw, _ = small("run", model={"model_name": encoder, "drop_path_rate": 0.0} | model)
    cfg = PretrainConfig.model_validate(raw)
    encoder, predictor = init_video_model(cfg)
    target_encoder = make_target_encoder(encoder)
    apply_checkpointing_and_compile(cfg, encoder, predictor, target_encoder)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    model = VideoJEPA(encoder, predictor)
    run = Run(encoder, predictor, target_encoder, model, init_opt(encoder, predictor, cfg), scaler, 4, 2)
    found = []
    for batch, _ in zip(make_loader(cfg, 0, 1), range(3)):
        numbers = train_step(cfg, run, [batch], Schedule(lr=0.0, weight_decay=0.0, momentum=1.0))
        found.append([numbers[:3], *(p.grad for p in model.parameters() if p.grad is not None)])
    return found


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("encoder", ["vit_tiny", "videomamba_tiny"])
def test_compiled_blocks_have_the_same_loss_and_gradients(small, small_backbones, monkeypatch, encoder, backend):
    """aot_eager traces, differentiates and guards as the real compiler does, and takes seconds instead of minutes."""
    plain = gradients(small, encoder)
    torch.compiler.reset()
    compile_ = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda block, **kwargs: compile_(block, backend=backend, **kwargs))
    compiled = gradients(small, encoder, compile_model=True)
    for ours, theirs in zip(compiled, plain, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
