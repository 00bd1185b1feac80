import pytest
import torch

from app.vjepa.config import PretrainConfig
from app.vjepa.utils import init_video_model
from src.utils.checkpoint import save_atomic


@pytest.fixture(autouse=True)
def one_thread():
    """Models this small only lose time between threads, most of all where other tests run beside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_checkpoint(folder, scale=1.2):
    """A pretraining checkpoint of vit_tiny for 4 frames of 32 pixels, every trained weight scaled, in `folder`."""
    cfg = PretrainConfig.model_validate(
        {
            "data": {"datasets": ["x.csv"], "batch_size": 4, "num_frames": 4, "crop_size": 32},
            "logging": {"folder": str(folder)},
            "mask": [{"num_blocks": 1, "spatial_scale": [0.5, 0.5]}],
            "model": {"model_name": "vit_tiny", "pred_embed_dim": 48, "pred_depth": 1, "use_mask_tokens": True},
            "optimization": {"epochs": 1, "lr": 1e-3},
        }
    )
    encoder = init_video_model(cfg)[0]
    with torch.no_grad():
        for p in encoder.parameters():
            p.mul_(scale if p.requires_grad else 1)
    path = folder / "jepa-latest.pth.tar"
    save_atomic({"target_encoder": encoder.state_dict(), "epoch": 1, "config": cfg.model_dump(mode="json")}, path)
    return path


@pytest.fixture(scope="session")
def save_checkpoint():
    return write_checkpoint
