"""Pretraining configs and models that train in milliseconds, for the tests beside this file."""

import csv
from pathlib import Path

import torch

from app.vjepa.config import PretrainConfig
from app.vjepa.utils import Run, init_opt, init_video_model
from src.jepa.build import make_target_encoder
from src.jepa.objective import VideoJEPA


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
