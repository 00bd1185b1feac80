"""Time and memory of a training step of VideoMamba-Tiny and ViT-Tiny on a CUDA GPU, over the size of the frames.

    python -m benchmarks.gpu_steps [--sizes 112 160 224] [--batch 32] [--out docs/results/gpu_steps.csv]

The whole step of app.vjepa (targets, both masks, backward, AdamW, EMA) at 16 frames, in bfloat16, on one batch of the
embedded data, enlarged, that is used over and over: loading is not timed. Everything but the encoder is the same.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from app import scaffold
from app.vjepa.config import PretrainConfig
from app.vjepa.train import make_loader, train_step
from app.vjepa.utils import Run, Schedule, init_opt, init_video_model
from benchmarks.gpu_scan import milliseconds
from src.jepa.build import make_target_encoder
from src.jepa.objective import VideoJEPA
from src.utils.csv_log import write_csv
from src.utils.distributed import init_distributed, shutdown
from src.utils.errors import UserError, run_cli

RECIPES = {"videomamba_tiny": "configs/pretrain/vm_tiny.yaml", "vit_tiny": "configs/pretrain/vit_tiny.yaml"}
FIELDS = ("model", "frames", "size", "tokens", "batch", "ms_per_step", "clips_per_s", "peak_mib", "device", "torch")
NOW = Schedule(lr=1e-4, weight_decay=0.04, momentum=0.996)


def configure(model: str, size: int, batch: int) -> PretrainConfig:
    """The recipe at 16 frames of `size` px."""
    overrides = [f"data.crop_size={size}", "data.num_frames=16", "data.sampling_rate=1", f"data.batch_size={batch}"]
    return scaffold.load(RECIPES[model], [*overrides, "data.num_workers=0", "meta.dtype=bfloat16"])[1]


def measure(cfg: PretrainConfig, device: torch.device) -> tuple[float, float]:
    """(milliseconds of a step: a median; peak of the memory that tensors took, MiB)."""
    encoder, predictor = init_video_model(cfg)
    target_encoder = make_target_encoder(encoder)
    for module in (encoder, predictor, target_encoder):
        module.to(device)
    model, optimizer = VideoJEPA(encoder, predictor), init_opt(encoder, predictor, cfg)
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    run = Run(encoder, predictor, target_encoder, model, optimizer, scaler, 1, cfg.data.batch_size)
    batch = next(iter(make_loader(cfg, 0, 1))).to(device)
    torch.cuda.reset_peak_memory_stats()
    time = milliseconds(lambda: train_step(cfg, run, [batch], NOW))
    return time, torch.cuda.max_memory_allocated() / 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[112, 160, 224], help="multiples of 16 pixels")
    parser.add_argument("--batch", type=int, default=32, help="clips")
    parser.add_argument("--out", type=Path, default=Path("docs/results/gpu_steps.csv"))
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise UserError("torch sees no CUDA device: run this on a machine with a GPU")
    device = init_distributed(device="cuda:0").device
    rows: list[list[object]] = []
    for size in args.sizes:
        for model in RECIPES:
            cfg = configure(model, size, args.batch)
            time, peak = measure(cfg, device)
            tokens = cfg.data.num_frames // cfg.data.tubelet_size * (size // cfg.data.patch_size) ** 2
            row = [
                model,
                cfg.data.num_frames,
                size,
                tokens,
                args.batch,
                f"{time:.1f}",
                f"{1000 * args.batch / time:.1f}",
            ]
            rows.append([*row, f"{peak:.0f}", torch.cuda.get_device_name(), torch.__version__])
            print(*rows[-1], flush=True)
            write_csv(args.out, FIELDS, rows)
    shutdown()
    return 0


if __name__ == "__main__":
    run_cli(main)
