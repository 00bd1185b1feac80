"""Parity with both upstream code bases, from their own state dicts (tests/golden/README.md), to 1e-4 absolute."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from src.jepa.objective import jepa_losses, make_targets
from src.models.attentive_pooler import AttentiveClassifier
from src.models.predictor import VisionTransformerPredictor
from src.models.videomamba import VideoMamba
from src.models.vision_transformer import VisionTransformer

GOLDEN = Path(__file__).parents[2] / "golden"
GRID = {"img_size": 32, "patch_size": 16, "num_frames": 4, "tubelet_size": 2}
NORM = partial(nn.LayerNorm, eps=1e-6)


@pytest.fixture(scope="module")
def vjepa():
    return {k: torch.from_numpy(v) for k, v in np.load(GOLDEN / "vjepa_small.npz").items()}


def state(arrays, prefix):
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def close(ours, theirs):
    error = (ours - theirs).abs().max().item()
    assert error < 1e-4, f"largest difference {error:.2e}"


@pytest.fixture(scope="module")
def encoder(vjepa):
    model = VisionTransformer(
        **GRID, embed_dim=24, depth=2, num_heads=3, mlp_ratio=4, qkv_bias=True, norm_layer=NORM, uniform_power=True
    )
    fixed = model.pos_embed.detach().clone()
    model.load_state_dict(state(vjepa, "enc::"), strict=True)
    close(fixed, model.pos_embed)  # the sin-cos table itself, not only what was loaded
    return model.eval().requires_grad_(False)


def predictor(vjepa, order):
    model = VisionTransformerPredictor(
        **GRID,
        embed_dim=24,
        predictor_embed_dim=12,
        depth=2,
        num_heads=3,
        uniform_power=True,
        use_mask_tokens=True,
        num_mask_tokens=2,
        norm_layer=NORM,
        token_order=order,
    )
    fixed = model.predictor_pos_embed.detach().clone()
    model.load_state_dict(state(vjepa, "pred::"), strict=True)
    close(fixed, model.predictor_pos_embed)
    return model.eval().requires_grad_(False)


def test_vjepa_encoder(vjepa, encoder):
    close(encoder(vjepa["x"]), vjepa["full"])
    close(encoder(vjepa["x"], vjepa["me0"]), vjepa["z0"])
    close(encoder(vjepa["x"], vjepa["me1"]), vjepa["z1"])


def test_vjepa_encoder_without_fused_attention(vjepa, encoder):
    for block in encoder.blocks:
        block.attn.use_sdpa = False
    close(encoder(vjepa["x"]), vjepa["full"])
    for block in encoder.blocks:
        block.attn.use_sdpa = True


def test_vjepa_interpolated_positions(vjepa, encoder):
    close(encoder(vjepa["x2"]), vjepa["full2"])


@pytest.mark.parametrize("order", ["raster", "concat"])
def test_vjepa_predictor_and_losses(vjepa, encoder, order):
    model = predictor(vjepa, order)
    masks_enc, masks_pred = [vjepa["me0"], vjepa["me1"]], [vjepa["mp0"], vjepa["mp1"]]
    z = [
        model(encoder(vjepa["x"], me), None, me, mp, mask_index=i)
        for i, (me, mp) in enumerate(zip(masks_enc, masks_pred))
    ]
    close(z[0], vjepa["p0"])
    close(z[1], vjepa["p1"])
    losses = jepa_losses(z, make_targets(encoder, vjepa["x"], masks_pred), loss_exp=1.0, reg_coeff=0.0)
    close(losses.jepa, vjepa["loss"])
    close(losses.reg, vjepa["reg"])
    close(losses.loss, vjepa["loss"])


def test_vjepa_attentive_classifier(vjepa):
    model = AttentiveClassifier(embed_dim=24, num_heads=3, depth=1, num_classes=7)
    model.load_state_dict(state(vjepa, "clf::"), strict=True)
    close(model.eval()(vjepa["full"]), vjepa["logits"])


def test_videomamba_tokens_class_token_and_logits():
    golden = {k: torch.from_numpy(v) for k, v in np.load(GOLDEN / "videomamba_small.npz").items()}
    model = VideoMamba(**GRID, embed_dim=24, depth=2, pos_embed="learned", cls_token=True, num_classes=7)
    model.load_state_dict(state(golden, "vm::"), strict=True)
    model.eval().requires_grad_(False)
    close(model.forward_features(golden["x"]), golden["tokens"])
    close(model.forward_features(golden["x"])[:, 0], golden["cls"])
    close(model(golden["x"]), golden["tokens"][:, 1:])
    close(model.logits(golden["x"]), golden["logits"])


def test_videomamba_golden_tells_one_direction_from_two():
    """The parity above would not hold for a model that forgets the backward scan."""
    golden = {k: torch.from_numpy(v) for k, v in np.load(GOLDEN / "videomamba_small.npz").items()}
    model = VideoMamba(
        **GRID, embed_dim=24, depth=2, pos_embed="learned", cls_token=True, num_classes=7, bidirectional=False
    )
    wanted = {k: v for k, v in state(golden, "vm::").items() if k in model.state_dict()}
    model.load_state_dict(wanted, strict=True)
    with torch.no_grad():
        difference = F.l1_loss(model.eval().forward_features(golden["x"]), golden["tokens"])
    assert difference > 1e-3
