"""Files that look like VideoMamba's and are Vim's, and V-JEPA 2's: refused by name; good files are not."""

import argparse

import pytest
import torch

from src.models import load_encoder
from src.models.loading import load_predictor
from src.models.lookalikes import class_token_place
from src.models.registry import BACKBONES, BackboneConfig
from src.models.spec import EncoderSpec
from src.models.utils.pos_embs import sincos_pos_embed_3d
from src.utils.errors import UserError
from src.utils.token_grid import Grid

VIM = "vim_tiny_patch16_224_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2"
SIDE, WIDTH = 14, 192


@pytest.fixture
def image(monkeypatch):
    """Tensors of an untrained image model: VideoMamba's and Vim's alike."""
    monkeypatch.setitem(BACKBONES, "videomamba_tiny", BackboneConfig("mamba", WIDTH, 1))
    monkeypatch.setitem(BACKBONES, "vit_tiny", BackboneConfig("attention", 24, 2, 3))
    options = {"img_size": 16 * SIDE, "num_frames": 1, "tubelet_size": 1, "pos_embed": "learned", "cls_token": True}
    torch.manual_seed(0)
    tensors = EncoderSpec("videomamba_tiny", options).build().state_dict()
    tensors["patch_embed.proj.weight"] = tensors["patch_embed.proj.weight"].squeeze(2)
    del tensors["temporal_pos_embedding"]
    return tensors


def positions(place: int, side: int = SIDE, width: int = WIDTH, noise: float = 0.3):
    """Of a trained model, in kind: smooth over the image and noisy, with the class token's at `place`."""
    patches = sincos_pos_embed_3d(width, Grid(1, side, side))[0]
    patches = patches + noise * torch.randn(patches.shape)
    return torch.cat([patches[:place], torch.randn(1, width), patches[place:]])[None] * 0.05


def refused(message, path, **options):
    with pytest.raises(UserError, match=message) as caught:
        load_encoder(path, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("side", [14, 24, 32])
@pytest.mark.parametrize(("kind", "at"), [("first", 0), ("middle", None)])
def test_trained_positions_show_where_the_class_token_is(noise, side, kind, at):
    torch.manual_seed(0)
    assert class_token_place(positions(side**2 // 2 if at is None else at, side, noise=noise)) == kind


@pytest.mark.parametrize(("side", "width"), [(2, 24), (2, 2048), (3, 576), (7, 192), (14, 24), (14, 192), (14, 768)])
def test_untrained_positions_show_nothing(side, width):
    for seed in range(20):
        torch.manual_seed(seed)
        assert class_token_place(torch.randn(1, side**2 + 1, width)) is None
    assert class_token_place(torch.zeros(1, side**2 + 1, width)) is None
    assert class_token_place(torch.full((1, side**2 + 1, width), float("nan"))) is None
    assert class_token_place(torch.randn(1, side**2, width)) is None
    assert class_token_place(positions(0, 27)) is None  # Vim's finer models, which look like another image size


@pytest.mark.parametrize("kept", [argparse.Namespace(model=VIM), {"model": VIM}, {"arch": "Vim-S"}], ids=str)
@pytest.mark.parametrize("name", ["checkpoint.pth", "videomamba_t16_in1k_res224.pth"])
@pytest.mark.parametrize("place", ["untrained", 0, SIDE**2 // 2])
def test_a_checkpoint_that_names_vim_is_refused(image, tmp_path, kept, name, place):
    if place != "untrained":
        image["pos_embed"] = positions(place)
    torch.save({"model": image, "args": kept, "epoch": 299}, tmp_path / name)
    refused(r"model: Vision Mamba's \(Vim's\), not VideoMamba's \(it is of a model '", tmp_path / name)
    refused(r"Vim's", tmp_path / name, model_name="videomamba_tiny")


@pytest.mark.parametrize("name", ["model.pth", "videomamba_t16_in1k_res224.pth", "vim_t_midclstok_76p1acc.pth"])
def test_positions_of_vim_are_refused_whatever_the_file_is_called(image, tmp_path, name):
    torch.save(image | {"pos_embed": positions(SIDE**2 // 2)}, tmp_path / name)
    refused(r"not VideoMamba's \(its positions have the class token in the middle\)", tmp_path / name)
    refused(r"not VideoMamba's", tmp_path / name, model_name="videomamba_tiny")


@pytest.mark.parametrize(
    "name", ["vim_t_midclstok_76p1acc.pth", "Vim-small.pth", "vim.pth", "best_middle_cls_token.pth"]
)
@pytest.mark.parametrize("trained", [True, False])
def test_a_file_that_is_called_vim_is_refused(image, tmp_path, name, trained):
    """Vim's fine-tuning resamples positions as if the class token came first: they then say what VideoMamba's say."""
    torch.save({"model": image | ({"pos_embed": positions(0)} if trained else {})}, tmp_path / name)
    refused(r"not VideoMamba's \(it is called so; if it is VideoMamba's, rename it\)", tmp_path / name)


@pytest.mark.parametrize(
    "change",
    [
        {"cls_token_head": torch.zeros(1, 1, WIDTH), "cls_token_tail": torch.zeros(1, 1, WIDTH), "cls_token": None},
        {"rope.freqs_cos": torch.zeros(196, 96)},
    ],
)
def test_variants_of_vim_are_refused(image, tmp_path, change):
    tensors = {key: value for key, value in (image | change).items() if value is not None}
    torch.save(tensors, tmp_path / "videomamba.pth")
    refused(r"not VideoMamba's \(its tensors are named so\)", tmp_path / "videomamba.pth")


@pytest.mark.parametrize("token", [True, False])
def test_a_file_that_does_not_say_whose_it_is_asks_for_a_word(image, tmp_path, token):
    if not token:
        del image["cls_token"]
        image["pos_embed"] = image["pos_embed"][:, 1:]
    torch.save(image, tmp_path / "model.pth")
    refused("an image model of VideoMamba's or of Vim's, .* if VideoMamba's, pass model_name", tmp_path / "model.pth")
    assert load_encoder(tmp_path / "model.pth", model_name="videomamba_tiny").grid == (16, SIDE, SIDE)


@pytest.mark.parametrize(
    ("name", "trained", "around"),
    [
        ("videomamba_t16_in1k_res224.pth", False, None),
        ("VideoMamba_tiny.pth", False, "model"),
        ("model.pth", True, None),
        ("checkpoint.pth", False, {"args": argparse.Namespace(model="videomamba_tiny")}),
        ("vim.pth", False, {"args": {"model": "videomamba_tiny"}}),
    ],
)
def test_good_image_models_are_read(image, tmp_path, name, trained, around):
    if trained:
        image["pos_embed"] = positions(0)
    state = {"model": image} if around == "model" else {"model": image, **around} if around else image
    torch.save(state, tmp_path / name)
    encoder = load_encoder(tmp_path / name)
    assert torch.equal(encoder.pos_embed, image["pos_embed"]) and encoder.cls_token is not None


def test_video_models_are_none_of_vims(image, tmp_path):
    """No name is needed: an embedding of time and a kernel over it are VideoMamba's."""
    image["patch_embed.proj.weight"] = image["patch_embed.proj.weight"].unsqueeze(2)
    torch.save(image | {"temporal_pos_embedding": torch.zeros(1, 8, WIDTH)}, tmp_path / "vim.pth")
    assert load_encoder(tmp_path / "vim.pth").grid == (8, SIDE, SIDE)


@pytest.mark.parametrize("keys", [("encoder", "target_encoder"), ("target_encoder",), ("encoder",), ("model",), ()])
def test_vjepa2_has_rotary_positions(image, tmp_path, keys):
    spec = EncoderSpec("vit_tiny", {"img_size": 32, "num_frames": 4, "tubelet_size": 2})
    tensors = {f"module.backbone.{k}": v for k, v in spec.build().state_dict().items() if k != "pos_embed"}
    predictor = {"module.backbone.predictor_embed.weight": torch.zeros(12, 24)}
    state = {**dict.fromkeys(keys, tensors), "predictor": predictor} if keys else tensors
    torch.save(state, tmp_path / "vitl.pt")
    refused("a ViT without pos_embed: it has rotary positions, as V-JEPA 2's", tmp_path / "vitl.pt")
    if keys:
        with pytest.raises(UserError, match="rotary positions"):
            load_predictor(tmp_path / "vitl.pt")


def test_a_folder_of_transformers_says_so(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vjepa2"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    refused("not what src.models.export wrote: it is a vjepa2 model of Hugging Face's transformers", tmp_path)
