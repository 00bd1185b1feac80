"""Published files, and files that are none, through load_encoder, load_predictor and load_probe."""

import argparse
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from src.models import load_encoder
from src.models.loading import adapt_state_dict, load_predictor, load_probe, open_weights
from src.models.registry import BACKBONES, BackboneConfig
from src.models.spec import EncoderSpec
from src.utils.errors import UserError

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture
def small(monkeypatch):
    """The golden data's models are rows of the table."""
    monkeypatch.setitem(BACKBONES, "vit_tiny", BackboneConfig("attention", 24, 2, 3))
    monkeypatch.setitem(BACKBONES, "videomamba_tiny", BackboneConfig("mamba", 24, 2))


def arrays(name):
    return {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / name).items()}


def part(arrays, prefix, to=""):
    return {to + key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.fixture
def vjepa(small, tmp_path):
    """V-JEPA's golden models in a file as its training writes it."""
    golden, wrapped = arrays("vjepa_small.npz"), "module.backbone."
    target = part(golden, "enc::", wrapped)
    state = {
        "encoder": {key: value if "pos" in key else value + 1 for key, value in target.items()},
        "predictor": part(golden, "pred::", wrapped),
        "opt": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
        "scaler": {"scale": 65536.0},
        "target_encoder": target,
        "epoch": 300,
        "loss": 0.4,
        "batch_size": 10,
        "world_size": 16,
        "lr": 6.25e-4,
    }
    torch.save(state, tmp_path / "vitl16.pth.tar")
    return golden, tmp_path / "vitl16.pth.tar"


@torch.no_grad()
def test_vjepa_pretraining(vjepa, caplog):
    golden, path = vjepa
    state = torch.get_rng_state()
    encoder = load_encoder(path)
    assert torch.equal(torch.get_rng_state(), state)
    assert not encoder.training and not encoder.pos_embed.requires_grad and encoder.norm.weight.requires_grad
    assert caplog.messages == [f"{path}, target_encoder: 29 tensors for vit_tiny\n  prefix dropped: module.backbone."]
    close(encoder(golden["x"]), golden["full"])
    assert torch.equal(load_encoder(path, "encoder").norm.weight, encoder.norm.weight + 1)
    predictor = load_predictor(path)
    close(predictor(golden["z1"], None, golden["me1"], golden["mp1"], mask_index=1), golden["p1"])


@torch.no_grad()
def test_vjepa_probe(small, tmp_path):
    golden = arrays("vjepa_small.npz")
    torch.save({"classifier": part(golden, "clf::", "module."), "epoch": 20}, tmp_path / "k400-probe.pth.tar")
    probe = load_probe(tmp_path / "k400-probe.pth.tar")
    close(probe(golden["full"]), golden["logits"])
    assert not probe.training and not probe.pooler.cross_attention_block.xattn.proj.weight.requires_grad
    with pytest.raises(UserError, match=r"k400-probe\.pth\.tar, classifier: 5 heads do not divide its width of 24"):
        load_probe(tmp_path / "k400-probe.pth.tar", num_heads=5)


def test_published_probe_has_our_names_and_shapes(published_shapes, tmp_path):
    shapes = published_shapes("vjepa_vitl16_probe")
    torch.save({"classifier": {k: torch.zeros(s) for k, s in shapes.items()}}, tmp_path / "k400-probe.pth.tar")
    probe = load_probe(tmp_path / "k400-probe.pth.tar")
    assert {f"module.{k}": tuple(v.shape) for k, v in probe.state_dict().items()} == shapes
    assert probe.pooler.cross_attention_block.xattn.num_heads == 16


@torch.no_grad()
@pytest.mark.parametrize("place", [None, "model", "module"])
def test_videomamba_video_model(small, tmp_path, place):
    golden, path = arrays("videomamba_small.npz"), tmp_path / "videomamba_t16_k400_f4_res32.pth"
    weights = part(golden, "vm::")
    settings = argparse.Namespace(lr=1e-3, model="videomamba_tiny")  # what DeiT's scripts keep beside the weights
    torch.save(weights if place is None else {place: weights, "args": settings}, path)
    encoder = load_encoder(path, keep_head=True)
    close(encoder.forward_features(golden["x"]), golden["tokens"])
    close(encoder.logits(golden["x"]), golden["logits"])
    encoder = load_encoder(path)
    assert not list(encoder.head.parameters())
    close(encoder(golden["x"]), golden["tokens"][:, 1:])
    encoder = load_encoder(path, keep_cls_token=False, num_frames=8, img_size=48)
    assert encoder.cls_token is None and encoder.grid == (4, 3, 3)


def test_videomamba_image_model_says_what_was_done(small, tmp_path, caplog):
    path = tmp_path / "videomamba_t16_in1k_res32.pth"
    spec = EncoderSpec("videomamba_tiny", {"img_size": 32, "num_frames": 1, "tubelet_size": 1, "patch_size": 16,
                       "pos_embed": "learned", "cls_token": True, "num_classes": 10})  # fmt: skip
    image = spec.build().state_dict()
    image["patch_embed.proj.weight"] = image["patch_embed.proj.weight"].squeeze(2)
    del image["temporal_pos_embedding"]
    torch.save(image, path)
    load_encoder(path, num_frames=4, tubelet_size=2, img_size=48)
    assert caplog.messages[0].split("\n  ") == [
        f"{path}: {len(image) - 1} tensors for videomamba_tiny",
        "inflated: patch_embed.proj.weight (24, 3, 16, 16) to (24, 3, 2, 16, 16)",
        "resampled: pos_embed 2x2 to 3x3 patches",
        "added, as zeros: temporal_pos_embedding (1, 2, 24): an image has no time",
        "left out: head.weight, head.bias",
    ]


@torch.no_grad()
def test_a_tuned_encoder_says_what_it_is(vjepa, tmp_path):
    """Its positions, resampled for other clips, are no table's any more."""
    _, path = vjepa
    weights = adapt_state_dict(open_weights(path), num_frames=8, img_size=48)
    encoder = weights.build()
    torch.save({"encoder": encoder.state_dict(), "spec": weights.spec._asdict()}, tmp_path / "tuned.pth.tar")
    clip = torch.randn(1, 3, 8, 48, 48)
    assert torch.equal(load_encoder(tmp_path / "tuned.pth.tar", "encoder")(clip), encoder(clip))
    torch.save({"encoder": encoder.state_dict()}, tmp_path / "mute.pth.tar")
    one_line("holds no sin-cos positions of square frames", load_encoder, tmp_path / "mute.pth.tar", "encoder")


class Code:
    """Unpickling this would make a folder."""

    def __reduce__(self):
        return os.mkdir, ("made-by-pickle",)


def one_line(message, load, *args, **options):
    with pytest.raises(UserError, match=message) as caught:
        load(*args, **options)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_encoder(vjepa, tmp_path, monkeypatch):
    _, path = vjepa
    monkeypatch.chdir(tmp_path)
    one_line(r"^gone.pth: no such checkpoint$", load_encoder, "gone.pth")
    whole = path.read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    one_line(r"^cut.pth: truncated checkpoint: its end is missing$", load_encoder, "cut.pth")
    torch.save({"target_encoder": {"w": torch.ones(1)}, "args": Code()}, "code.pth")
    one_line(r"^code.pth: refused: .*\(posix.mkdir\), which could run code", load_encoder, "code.pth")
    assert not (tmp_path / "made-by-pickle").exists()
    torch.save({"target_encoder": {"conv1.weight": torch.ones(1)}}, "resnet.pth")
    one_line("^resnet.pth, target_encoder: not an encoder: .*; it has conv1.weight$", load_encoder, "resnet.pth")
    torch.save({"epoch": 3}, "empty.pth")
    one_line("^empty.pth: no weights under 'target_encoder'; it holds none$", load_encoder, "empty.pth")
    one_line("no weights under 'classifier'; it holds encoder, predictor, target_encoder", load_probe, path)
    one_line("vitl16.pth.tar, predictor: not an attentive probe", load_probe, path, "predictor")
    one_line("those of vit_tiny, not of vit_small$", load_encoder, path, model_name="vit_small")
    one_line("it has no head to keep$", load_encoder, path, keep_head=True)
    one_line("tubelet_size=1: a kernel over 2 frames", load_encoder, path, tubelet_size=1)
    one_line("5 frames cannot be cut into whole tubelets of 2", load_encoder, path, num_frames=5)
    torch.save({"target_encoder": {}, "config": {"model": {}}}, "old.pth")
    one_line("^old.pth: its config is not a pretraining config of this version", load_encoder, "old.pth")


def test_a_wrong_key_map_is_named(vjepa, tmp_path):
    """A key that does not fit is an error, whichever way; nothing is loaded in part."""
    _, path = vjepa
    state = torch.load(path, weights_only=True)
    tensors = state["target_encoder"]
    tensors["module.backbone.blocks.0.attention.qkv.bias"] = tensors.pop("module.backbone.blocks.0.attn.qkv.bias")
    torch.save(state, tmp_path / "renamed.pth")
    expected = r"blocks.0.attn.qkv.bias \(72,\) is not in the checkpoint, which has blocks.0.attention.qkv.bias \(72,\)"
    one_line(expected, load_encoder, tmp_path / "renamed.pth")
    allowed = {"allow_unused": ["blocks.0.attention.*"]}
    one_line("blocks.0.attn.qkv.bias", load_encoder, tmp_path / "renamed.pth", **allowed)
