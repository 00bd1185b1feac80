"""Checkpoints of small pretraining runs, for the tests beside this file."""

import torch

from app.vjepa.config import PretrainConfig
from app.vjepa.utils import init_video_model
from src.jepa.build import make_target_encoder
from src.utils.checkpoint import save_atomic


def pretraining(folder, data=None, **sections):
    raw = {
        "data": {"datasets": ["x.csv"], "batch_size": 8, "num_frames": 8, "crop_size": 32, "sampling_rate": 2},
        "logging": {"folder": str(folder)},
        "mask": [{"num_blocks": 1, "spatial_scale": [0.5, 0.5], "max_temporal_keep": 0.5}],
        "model": {"model_name": "videomamba_nano", "pred_model_name": "vit_tiny", "pred_embed_dim": 48, "pred_depth": 1,
                  "use_mask_tokens": True},
        "optimization": {"epochs": 1, "lr": 1e-3},
        "loss": {"target_norm": "batch_standardize", "clip_mean_weight": 0.5},
    }  # fmt: skip
    raw["data"] |= data or {}
    return PretrainConfig.model_validate(raw | sections)


def weights(encoder, predictor):
    """What a checkpoint holds of these models, the target encoder being their copy."""
    modules = {
        "encoder": encoder,
        "predictor": predictor,
        "target_encoder": make_target_encoder(encoder),
        "target_projector": make_target_encoder(predictor.projector),
    }
    return {name: module.state_dict() for name, module in modules.items()}


def save_run(cfg, without=()):
    """A whole checkpoint whose weights are not those that training starts from."""
    encoder, predictor = init_video_model(cfg)
    torch.manual_seed(7)
    with torch.no_grad():
        for p in (*encoder.parameters(), *predictor.parameters()):
            p.add_(0.05 * torch.randn_like(p) if p.requires_grad else 0)
    state = weights(encoder, predictor)
    state |= {"config": cfg.model_dump(mode="json"), "step": 5}
    path = cfg.output_folder() / "jepa-latest.pth.tar"
    save_atomic({key: value for key, value in state.items() if key not in without}, path)
    return path
