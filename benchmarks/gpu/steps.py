"""Whole training steps, where their time goes, and single parts under suspicion: the parts steps, profile, extras."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.common import DEVICE, DRY, attempt, folder, milliseconds, put, sync

PROFILED = 2  # steps
RECIPES = {"videomamba_tiny": "configs/pretrain/vm_tiny.yaml", "vit_tiny": "configs/pretrain/vit_tiny.yaml"}


def prepare_step(model: str, size: int, batch: int, *extra: str) -> tuple[Any, Any, Any]:
    from app import scaffold
    from app.vjepa.train import make_loader
    from app.vjepa.utils import Run, apply_checkpointing_and_compile, init_opt, init_video_model
    from src.jepa.build import make_target_encoder
    from src.jepa.objective import VideoJEPA

    cfg = scaffold.load(
        RECIPES[model],
        [f"data.crop_size={size}", "data.num_frames=16", "data.sampling_rate=1", f"data.batch_size={batch}",
         "data.num_workers=0", "meta.dtype=bfloat16", *extra],
    )[1]  # fmt: skip
    encoder, predictor = init_video_model(cfg)
    target = make_target_encoder(encoder)
    for module in (encoder, predictor, target):
        module.to(DEVICE)
    apply_checkpointing_and_compile(cfg, encoder, predictor, target)
    scaler = torch.amp.GradScaler(DEVICE, enabled=False)
    run = Run(
        encoder, predictor, target, VideoJEPA(encoder, predictor), init_opt(encoder, predictor, cfg), scaler, 1, batch
    )
    return cfg, run, next(iter(make_loader(cfg, 0, 1))).to(DEVICE)


def steps(only: str | None) -> int:
    """A whole training step at 16 x 224: milliseconds, time until the CPU has issued it, memory, tokens a second."""
    from app.vjepa.train import train_step
    from app.vjepa.utils import Schedule
    from src.utils.distributed import init_distributed

    init_distributed(device="cpu" if DRY else "cuda:0")
    now, size, batch = Schedule(1e-4, 0.04, 0.996), *((64, 8) if DRY else (224, 32))
    compiled, spared = "model.compile_model=true", "model.use_activation_checkpointing=true"
    layer = ("loss.target_norm=layer", "loss.clip_mean_weight=0.0")  # without whitening
    plan = [
        ("eager", batch, ()), ("compile", batch, (compiled,)), ("checkpointing", batch, (spared,)),
        ("no_whiten", batch, layer), ("eager_b96", 3 * batch, ()), ("float32", batch, ("meta.dtype=float32",)),
        ("checkpointing_b128", 4 * batch, (spared,)), ("compile_checkpointing", batch, (compiled, spared)),
    ]  # fmt: skip

    def one(name: str, model: str, clips: int, extra: tuple[str, ...]) -> None:
        cfg, run, data = prepare_step(model, size, clips, *extra)
        begun = time.perf_counter()
        for _ in range(1 if DRY else 3):
            train_step(cfg, run, [data], now)
        sync()
        first = time.perf_counter() - begun
        if not DRY:
            torch.cuda.reset_peak_memory_stats()
        issued = []

        def step() -> None:
            start = time.perf_counter()
            train_step(cfg, run, [data], now)
            issued.append(1e3 * (time.perf_counter() - start))

        took = milliseconds(step, 9, 1)
        peak = 0 if DRY else torch.cuda.max_memory_allocated() / 2**20
        tokens = 8 * (size // 16) ** 2
        rates = {"clips_per_s": 1e3 * clips / took, "ktokens_per_s": clips * tokens / took, "first_steps_s": first}
        put("steps", what=name, model=model, B=clips, tokens=tokens, context=[m.shape[1] for m in data.masks_enc],
            ms=took, issue_ms=sorted(issued)[len(issued) // 2], peak_mib=peak, **rates)  # fmt: skip

    for name, clips, extra in plan:
        for model in RECIPES:
            if only and only != name:
                continue
            attempt("steps", f"{name} {model}", partial(one, name, model, clips, extra))
            if not DRY:
                torch.cuda.empty_cache()
    return 0


def profile() -> int:
    """Where a step's time goes: kernels, launches, synchronisations."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    from app.vjepa.train import train_step
    from app.vjepa.utils import Schedule
    from src.utils.distributed import init_distributed

    init_distributed(device="cpu" if DRY else "cuda:0")
    now = Schedule(1e-4, 0.04, 0.996)

    def one(model: str) -> None:
        cfg, run, data = prepare_step(model, *((64, 8) if DRY else (224, 32)))
        for _ in range(1 if DRY else 4):
            train_step(cfg, run, [data], now)
        sync()
        if not DRY:  # which lines wait for the device
            torch.cuda.set_sync_debug_mode("warn")
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                train_step(cfg, run, [data], now)
            torch.cuda.set_sync_debug_mode("default")
            where = Counter(f"{'/'.join(Path(w.filename).parts[-2:])}:{w.lineno}" for w in caught)
            put("profile", model=model, synchronises=dict(where))
        kinds = [ProfilerActivity.CPU] + ([] if DRY else [ProfilerActivity.CUDA])
        begun = time.perf_counter()
        with profiler(activities=kinds, acc_events=True) as prof:
            for _ in range(PROFILED):
                train_step(cfg, run, [data], now)
            sync()
        wall = 1e3 * (time.perf_counter() - begun) / PROFILED
        averages = prof.key_averages()
        # An operator's device time is its kernels', which have events of their own.
        kernels = [e for e in averages if e.self_device_time_total > 0 and e.self_cpu_time_total == 0]
        device = sum(e.self_device_time_total for e in kernels) / 1e3 / PROFILED
        launches = sum(e.count for e in averages if "LaunchKernel" in e.key) / PROFILED
        put("profile", model=model, wall_ms_per_step=wall, device_ms_per_step=device, launches_per_step=launches)
        by = "self_cpu_time_total" if DRY else "self_device_time_total"
        text = averages.table(sort_by=by, row_limit=45, max_name_column_width=70)
        text += "\n" + averages.table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=70)
        (folder() / f"profile_{model}.txt").write_text(text)

    for model in RECIPES:
        attempt("profile", model, partial(one, model))
    return 0


def extras() -> int:
    """Single parts: the whitening of targets by either way to its inverse root, and the normalisation of clips."""
    from src.datasets.transforms import normalize
    from src.jepa.target_norm import SHRINKAGE, inverse_root_by_eigh, newton_schulz_inverse_root, zca_whiten

    for width in (32,) if DRY else (192, 384, 768):
        x = torch.randn(2 if DRY else 32, 8 if DRY else 1568, width, device=DEVICE)
        flat = x.flatten(0, 1)
        cov = torch.lerp(flat.T @ flat / len(flat), torch.eye(width, device=DEVICE), SHRINKAGE)
        exact = inverse_root_by_eigh(cov)
        error = (newton_schulz_inverse_root(cov) - exact).norm() / exact.norm()
        put(
            "extras",
            what="whiten",
            D=width,
            whole_ms=milliseconds(partial(zca_whiten, x), 5),
            eigh_ms=milliseconds(partial(inverse_root_by_eigh, cov), 5),
            newton_ms=milliseconds(partial(newton_schulz_inverse_root, cov), 5),
            newton_error=error.item(),
        )
    clips = (
        torch.zeros(2, 4, 8, 8, 3, dtype=torch.uint8, device=DEVICE)
        if DRY
        else torch.zeros(32, 16, 224, 224, 3, dtype=torch.uint8, device=DEVICE)
    )
    put("extras", what="normalize", ms=milliseconds(lambda: normalize(clips.permute(0, 4, 1, 2, 3)), 5))
    return 0
