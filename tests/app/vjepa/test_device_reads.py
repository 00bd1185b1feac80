"""A step never reads what lies on the device: on a GPU each such read would wait for all work that is queued there."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from app.vjepa import train
from app.vjepa.config import PretrainConfig
from app.vjepa.metrics import MetricLogger
from app.vjepa.utils import Run, Schedule, init_opt, init_video_model
from src.jepa.build import make_target_encoder
from src.jepa.objective import VideoJEPA
from src.utils.distributed import init_distributed, shutdown
from src.utils.experiment_loggers import ExperimentLogger
from src.utils.progress import Progress

NOW = Schedule(lr=1e-3, weight_decay=0.04, momentum=0.9)
# What reads values on the host, and what has to know values to tell the shape of its result.
READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero")


@pytest.fixture(autouse=True)
def shut_down(small_backbones):
    yield
    shutdown()


def build(cfg, device):
    encoder, predictor = init_video_model(cfg)
    target_encoder = make_target_encoder(encoder)
    for module in (encoder, predictor, target_encoder):
        module.to(device)
    scaler = torch.amp.GradScaler("cpu", enabled=device == "cpu")
    optimizer = init_opt(encoder, predictor, cfg)
    return Run(encoder, predictor, target_encoder, VideoJEPA(encoder, predictor), optimizer, scaler, 4, 2)


class Reads(TorchDispatchMode):
    """Notes the operators that read."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(name in func.__name__ for name in READS):
            self.seen.append(func.__name__)
        return func(*args, **(kwargs or {}))


class TakesFoundInf(torch.optim.Optimizer):
    """Decides on the device, as the fused optimizers do, none of which knows the meta device."""

    _step_supports_amp_scaling = True

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            changes = torch._foreach_mul([p.grad for p in group["params"]], group["lr"])
            torch._foreach_mul_(changes, 1 - self.found_inf)
            torch._foreach_sub_(group["params"], changes)


@pytest.mark.parametrize("clip_grad", [None, 1.0])
def test_no_operator_of_a_step_reads(small, clip_grad, monkeypatch):
    """With the gradient scaler of float16 and the fused optimizer, as on a GPU."""
    raw, _ = small("run", optimization={"clip_grad": clip_grad, "accumulate_steps": 2})
    cfg = PretrainConfig.model_validate(raw)
    init_distributed(device="cpu")
    run = build(cfg, "cpu")
    keys = ("params", "lr_scale", "WD_exclude")
    run.optimizer = torch.optim.AdamW([{k: g[k] for k in keys} for g in run.optimizer.param_groups], fused=True)
    batches = iter(train.make_loader(cfg, 0, 1))
    before = [p.clone() for p in run.encoder.parameters()]
    groups = [[next(batches), next(batches)] for _ in range(2)]
    with Reads() as reads:
        for group in groups:
            numbers = train.train_step(cfg, run, group, NOW)
        with monkeypatch.context() as patch:  # a step that is skipped
            patch.setattr(train, "spread_to_gradient", lambda loss: loss * math.nan)
            skipped = train.train_step(cfg, run, groups[0], NOW)
    assert reads.seen == []
    assert (numbers[5].item(), skipped[5].item()) == (1, 0)
    assert any(not torch.equal(a, b) for a, b in zip(before, run.encoder.parameters()))
    with Reads() as reads:
        assert math.isfinite(numbers[0])
    assert reads.seen  # so this is how a read looks


def test_a_step_on_a_device_without_values(small, tmp_path):
    """Tensors of the meta device have no values: what reads one raises, `tolist` and copies to the host included."""
    raw, _ = small("run", model={"model_name": "vit_tiny", "drop_path_rate": 0.0})
    cfg = PretrainConfig.model_validate(raw)
    init_distributed(device="meta")
    run = build(cfg, "meta")
    run.optimizer = TakesFoundInf(run.optimizer.param_groups, {})
    batches = iter(train.make_loader(cfg, 0, 1))
    metrics = MetricLogger(cfg, run, ExperimentLogger(tmp_path, enabled=False), resumed=False, enabled=False)
    for _ in range(3):
        batch = next(batches)
        metrics.append(train.train_step(cfg, run, [batch], NOW), NOW, [batch])
    assert all(step.metrics.shape == (7,) for step in metrics.pending)
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        metrics.flush(Progress(3))


def test_numbers_are_read_at_the_interval_and_before_a_checkpoint(small, tmp_path, monkeypatch):
    read_at, written = [], {}

    def noting(self, progress):
        read_at.append((self.run.step, len(self.pending)))
        return flush(self, progress)

    flush = MetricLogger.flush
    monkeypatch.setattr(MetricLogger, "flush", noting)
    for name, read_every in (("each", 1), ("some", 3)):
        raw, _ = small(name, optimization={"epochs": 2})
        raw["logging"]["read_every"] = read_every
        read_at.clear()
        train.main(PretrainConfig.model_validate(raw))
        written[name] = [line.rsplit(",", 2)[0] for line in (tmp_path / name / "jepa_r0.csv").read_text().splitlines()]
    assert read_at == [(3, 3), (4, 1), (6, 2), (8, 2)]
    assert written["each"] == written["some"]
    assert len(written["some"]) == 9
