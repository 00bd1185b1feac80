"""What is exported is loaded again, to the same outputs; nothing is overwritten."""

import json
import subprocess
import sys

import pytest
import torch

from src.models import load_encoder
from src.models.export import main, to_vjepa
from src.models.loading import load_predictor
from src.models.registry import BACKBONES, BackboneConfig, create_encoder, create_predictor
from src.models.spec import encoder_spec, predictor_spec
from src.utils.checkpoint import load, save_atomic
from src.utils.errors import UserError

CLIP = torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
MODELS = {
    "vit": {"model_name": "vit_tiny", "pred_model_name": "videomamba_tiny", "uniform_power": True},
    "videomamba": {"model_name": "videomamba_tiny", "pred_model_name": "vit_tiny", "pos_embed": "sincos"},
    "learned": {"model_name": "videomamba_tiny", "pred_model_name": "vit_tiny", "pos_embed": "learned"},
}


@pytest.fixture
def shallow(monkeypatch):
    monkeypatch.setitem(BACKBONES, "videomamba_tiny", BackboneConfig("mamba", 192, 2))
    monkeypatch.setitem(BACKBONES, "vit_tiny", BackboneConfig("attention", 192, 2, 3))


@pytest.fixture
def checkpoint(shallow, tmp_path):
    """`checkpoint(kind)`: path of a checkpoint as pretraining writes it, its three models all different."""

    def write(kind):
        model = {"pos_embed": "sincos", "uniform_power": False, **MODELS[kind], "bidirectional": True}
        model |= {"drop_path_rate": 0.0, "pred_embed_dim": 48, "pred_depth": 1, "pred_num_heads": None}
        model |= {"pred_token_order": "raster", "use_mask_tokens": True, "zero_init_mask_tokens": False}
        data = {"crop_size": 32, "patch_size": 16, "num_frames": 4, "tubelet_size": 2}
        config = {"data": data | {"datasets": ["/home/someone/train.csv"]}, "model": model, "mask": [{}, {}]}
        config["meta"] = {"use_sdpa": True}
        torch.manual_seed(0)
        state = {"encoder": encoder_spec(config).build(), "target_encoder": encoder_spec(config).build()}
        state |= {"predictor": predictor_spec(config).build()}
        state = {key: module.state_dict() for key, module in state.items()}
        numbers = {"epoch": 7, "loss": 0.25, "batch_size": 8, "world_size": 1, "lr": 1e-3, "step": 70}
        path = tmp_path / "run" / "jepa-latest.pth.tar"
        path.parent.mkdir()
        save_atomic({**state, "opt": {}, "scaler": {}, **numbers, "config": config}, path)
        return path

    return write


@torch.no_grad()
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("key", ["target_encoder", "encoder"])
def test_round_trip_through_safetensors(checkpoint, tmp_path, kind, key):
    path, out = checkpoint(kind), tmp_path / "shared" / "exported"
    main(["--checkpoint", str(path), "--out", str(out), "--checkpoint-key", key])
    assert sorted(file.name for file in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    expected = load_encoder(path, key)(CLIP)
    assert torch.equal(load_encoder(out)(CLIP), expected)
    assert torch.equal(load_encoder(out / "model.safetensors", key)(CLIP), expected)
    assert [file.name for file in out.parent.iterdir()] == ["exported"]


def test_the_card_and_the_config_say_what_the_checkpoint_says(checkpoint, tmp_path, capsys):
    path, out = checkpoint("learned"), tmp_path / "exported"
    main(["--checkpoint", str(path), "--out", str(out)])
    assert f"{path}, target_encoder: 39 tensors for videomamba_tiny" in capsys.readouterr().out
    config = json.loads((out / "config.json").read_text())
    assert (config["model_name"], config["options"]["pos_embed"]) == ("videomamba_tiny", "learned")
    assert config["training"] == {"origin": "V-JEPA feature prediction", "file": "jepa-latest.pth.tar",
        "model": "target_encoder", "epoch": 7, "step": 70, "loss": 0.25, "lr": 1e-3, "batch_size": 8, "world_size": 1,
        "data": "train.csv"}  # fmt: skip
    card = (out / "README.md").read_text()
    for line in ("# videomamba_tiny", 'load_encoder("exported")', "(B, 3, 4, 32, 32) -> (B, 8, 192)", "| epoch | 7 |"):
        assert line in card
    assert "/home/someone" not in card + (out / "config.json").read_text()


@torch.no_grad()
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("with_config", [True, False])
def test_round_trip_through_vjepa_s_format(checkpoint, tmp_path, kind, with_config):
    path, out = checkpoint(kind), tmp_path / "theirs"
    main(["--checkpoint", str(path), "--out", str(out), "--format", "vjepa"])
    theirs = out / "jepa-latest.pth.tar"
    state = load(theirs)
    for key in ("encoder", "predictor", "target_encoder"):
        assert all(name.startswith("module.backbone.") for name in state[key])
    assert (state["epoch"], state["config"]["data"]["datasets"]) == (7, ["train.csv"])
    heads = None
    if not with_config:  # then tensors alone have to tell what the model is
        save_atomic({key: value for key, value in state.items() if key != "config"}, theirs)
        heads = 1  # of a predictor 48 wide; no file says it
    for key in ("target_encoder", "encoder"):
        back = load_encoder(theirs, key)
        assert torch.equal(back(CLIP), load_encoder(path, key)(CLIP))
    before, back = load_predictor(path), load_predictor(theirs, num_heads=heads)
    context, target = torch.tensor([[0, 1, 5]]), torch.tensor([[2, 7]])
    z = torch.randn(1, 3, 192)
    assert torch.equal(back(z, None, context, target, 1), before(z, None, context, target, 1))


def test_vjepa_s_format_has_the_names_and_shapes_of_vit_large(published_shapes):
    with torch.device("meta"):
        encoder = create_encoder("vit_large", img_size=224, num_frames=16).state_dict()
        predictor = create_predictor("vit_large", embed_dim=1024, predictor_embed_dim=384, depth=12, num_frames=16)
    state = {"encoder": encoder, "target_encoder": encoder, "predictor": predictor.state_dict(), "epoch": 1}
    theirs = to_vjepa(state, "x")
    for key, name in (("encoder", "encoder"), ("target_encoder", "encoder"), ("predictor", "predictor")):
        shapes = {name: tuple(tensor.shape) for name, tensor in theirs[key].items()}
        assert shapes == published_shapes(f"vjepa_vitl16_{name}")


def test_published_weights_are_exported_as_ours_and_again(checkpoint, tmp_path):
    path = tmp_path / "videomamba_t16_k400_f4_res32.pth"
    torch.save(load(checkpoint("learned"))["target_encoder"], path)
    main(["--checkpoint", str(path), "--out", str(tmp_path / "a")])
    main(["--checkpoint", str(tmp_path / "a"), "--out", str(tmp_path / "b")])
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert "weights converted from another code base" in (tmp_path / "b" / "README.md").read_text()


def test_nothing_is_overwritten_and_nothing_is_left_half_written(checkpoint, tmp_path):
    path, out = checkpoint("vit"), tmp_path / "exported"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"exported is there already and not empty: choose another --out"):
        main(["--checkpoint", str(path), "--out", str(out)])
    assert [file.name for file in out.iterdir()] == ["notes.txt"]
    with pytest.raises(UserError, match="no weights under 'teacher'"):
        main(["--checkpoint", str(path), "--out", str(tmp_path / "b"), "--checkpoint-key", "teacher"])
    with pytest.raises(UserError, match="--checkpoint-key means nothing for --format vjepa"):
        main(["--checkpoint", str(path), "--out", str(out), "--checkpoint-key", "encoder", "--format", "vjepa"])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["exported", "run"]


def test_damaged_exports(checkpoint, tmp_path):
    out = tmp_path / "exported"
    main(["--checkpoint", str(checkpoint("vit")), "--out", str(out)])
    weights, config = out / "model.safetensors", out / "config.json"

    def refused(message):
        with pytest.raises(UserError, match=message) as caught:
            load_encoder(out)
        assert "\n" not in str(caught.value)

    with pytest.raises(UserError, match="it was exported from 'target_encoder' and has no 'encoder'"):
        load_encoder(out, "encoder")
    text = config.read_text()
    config.write_text(text.replace('"img_size": 32', '"img_size": 64'))
    refused(
        r"model.safetensors, target_encoder: pos_embed has shape \(1, 8, 192\) in the checkpoint and \(1, 32, 192\)"
    )
    config.write_text(text.replace('"model_name"', '"name"'))
    refused("config.json: not what src.models.export wrote: 'model_name'")
    config.write_text(text[:50])
    refused("config.json: not what src.models.export wrote")
    config.write_text(text)
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    refused("model.safetensors: damaged weights")
    weights.unlink()
    refused("model.safetensors: .*not what src.models.export wrote")
    config.unlink()
    refused("config.json: No such file or directory: not what src.models.export wrote")


def test_a_full_disk_leaves_nothing(tmp_path):
    """The system stops writes beyond a file size, as a full disk does."""
    torch.save({"target_encoder": create_encoder("vit_tiny", img_size=32, num_frames=4).state_dict()}, tmp_path / "c")
    script = (
        "import resource, sys\n"
        "from src.utils.errors import run_cli\n"
        "from src.models.export import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "run_cli(lambda: main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", script, "--checkpoint", str(tmp_path / "c"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"error: {tmp_path}/out: cannot be written: ") and "File too large" in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["c"]


def test_the_command_line_says_one_line_and_exits_with_2(tmp_path):
    command = [sys.executable, "-m", "src.models.export", "--checkpoint", "gone.pth", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: gone.pth: no such checkpoint\n")
    assert not (tmp_path / "out").exists()
