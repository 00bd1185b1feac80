"""torch.hub finds every backbone in a checkout, with random weights and with those of a file."""

import importlib.util
from pathlib import Path

import pytest
import torch

from src.models.export import main as export
from src.models.registry import BACKBONES, create_encoder
from src.utils.checkpoint import save_atomic
from src.utils.errors import UserError

ROOT = str(Path(__file__).parents[2])
SIZES = {"img_size": 32, "patch_size": 8, "num_frames": 4, "tubelet_size": 2}


def load(name, **options):
    return torch.hub.load(ROOT, name, source="local", **options)


def test_every_backbone_is_listed():
    spec = importlib.util.spec_from_file_location("hubconf", f"{ROOT}/hubconf.py")
    hubconf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hubconf)
    for name, row in BACKBONES.items():
        entry = getattr(hubconf, name)
        assert f"{name} in eval mode" in entry.__doc__ and f"(B, N, {row.embed_dim})" in entry.__doc__


def test_random_weights():
    encoder = load("videomamba_nano", **SIZES)
    assert not encoder.training
    assert encoder(torch.zeros(1, 3, 4, 32, 32)).shape == (1, 32, BACKBONES["videomamba_nano"].embed_dim)


def test_the_weights_of_a_file(tmp_path, monkeypatch):
    saved = create_encoder("vit_nano", **SIZES).eval()
    save_atomic(
        {"target_encoder": saved.state_dict(), "spec": {"name": "vit_nano", "options": SIZES}}, tmp_path / "a.pth"
    )
    clip = torch.randn(1, 3, 4, 32, 32)
    assert torch.equal(load("vit_nano", checkpoint=str(tmp_path / "a.pth"))(clip), saved(clip))
    monkeypatch.setattr("sys.argv", ["export", "--checkpoint", str(tmp_path / "a.pth"), "--out", str(tmp_path / "out")])
    export()
    assert torch.equal(load("vit_nano", checkpoint=str(tmp_path / "out"))(clip), saved(clip))
    with pytest.raises(UserError, match="vit_nano, not of videomamba_tiny"):
        load("videomamba_tiny", checkpoint=str(tmp_path / "a.pth"))
