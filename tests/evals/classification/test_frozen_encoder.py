import pytest
import torch

from app.vjepa import train
from app.vjepa.config import PretrainConfig
from app.vjepa.utils import init_video_model
from evals.classification.frozen_encoder import ClipAggregation, load_encoders
from evals.config_sections import PretrainedConfig
from evals.future_prediction.future_predictor import load_future_predictors
from src.models import export
from src.models.registry import BACKBONES, BackboneConfig, create_encoder
from src.utils.checkpoint import save_atomic
from src.utils.errors import UserError
from tests.evals.future_prediction.small_runs import weights

TINY = {"img_size": 32, "num_frames": 4}


def clips(segments, views, batch=2):
    torch.manual_seed(0)
    return [[torch.randn(batch, 3, 4, 32, 32) for _ in range(views)] for _ in range(segments)]


@pytest.fixture(scope="module")
def encoder():
    return create_encoder("vit_tiny", **TINY, depth=1).eval()


@torch.no_grad()
def test_attend_across_segments_is_the_tokens_one_after_the_other(encoder):
    x = clips(3, 2)
    out = ClipAggregation(encoder, 2, attend_across_segments=True)(x)
    assert len(out) == 2
    for view in range(2):
        by_hand = torch.cat([encoder(x[segment][view]) for segment in range(3)], dim=1)
        torch.testing.assert_close(out[view], by_hand, atol=1e-5, rtol=0)


@torch.no_grad()
def test_otherwise_each_clip_stands_alone(encoder):
    x = clips(3, 2)
    out = ClipAggregation(encoder, 2)(x)
    assert len(out) == 6
    torch.testing.assert_close(out[3], encoder(x[1][1]), atol=1e-5, rtol=0)


@torch.no_grad()
def test_clip_positions_come_from_the_frames_place_in_the_video(encoder):
    x, indices = clips(2, 1), [torch.tensor([[0, 4, 8, 12]] * 2), torch.tensor([[16, 20, 24, 28]] * 2)]
    plain = ClipAggregation(encoder, 2, True)(x)[0]
    placed = ClipAggregation(encoder, 2, True, use_pos_embed=True)(x, indices)[0]
    code = (placed - plain)[0].unflatten(0, (4, 4))  # 4 tubelets of 4 patches
    omega = 1 / 10000 ** (torch.arange(96) / 96)
    for tubelet, frame in enumerate((0, 8, 16, 24)):
        expected = torch.cat([(frame * omega).sin(), (frame * omega).cos()])
        torch.testing.assert_close(code[tubelet], expected.expand(4, -1), atol=1e-5, rtol=0)


def pretraining(folder, **model):
    return PretrainConfig.model_validate(
        {
            "data": {"datasets": ["x.csv"], "batch_size": 4, "num_frames": 4, "crop_size": 32},
            "logging": {"folder": str(folder)},
            "mask": [{"num_blocks": 1, "spatial_scale": [0.5, 0.5]}],
            "meta": {"seed": 5},
            "model": {"model_name": "vit_tiny", "pred_embed_dim": 48, "pred_depth": 1, "use_mask_tokens": True} | model,
            "optimization": {"epochs": 1, "lr": 1e-3},
        }
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with a checkpoint of ours (config inside), one of V-JEPA's kind (none), and the trained weights."""
    folder = tmp_path_factory.mktemp("run")
    cfg = pretraining(folder)
    trained = init_video_model(cfg)[0]
    with torch.no_grad():
        for p in trained.parameters():
            p.mul_(1.5 if p.requires_grad else 1)
    weights = {"module.backbone." + name: value for name, value in trained.state_dict().items()}
    state = {"target_encoder": weights, "encoder": {}, "epoch": 3}
    save_atomic({**state, "config": cfg.model_dump()}, folder / "ours.pth.tar")
    save_atomic(state, folder / "theirs.pth.tar")
    return folder, trained


def pretrain_section(folder, **keys):
    keys = {"model_name": "vit_tiny", "folder": str(folder), "checkpoint": "ours.pth.tar", "frames_per_clip": 4} | keys
    return PretrainedConfig.model_validate(keys)


@pytest.mark.parametrize("name", ["ours.pth.tar", "theirs.pth.tar"])
def test_trained_weights_are_loaded_and_frozen(run, name):
    folder, trained = run
    torch.manual_seed(0)
    before = torch.get_rng_state()
    found = load_encoders(pretrain_section(folder, checkpoint=name), seed=0, with_random=False)
    assert torch.equal(before, torch.get_rng_state())
    assert list(found) == ["pretrained"] and "epoch 3" in found["pretrained"].source
    encoder = found["pretrained"].encoder
    assert not encoder.training and not any(p.requires_grad for p in encoder.parameters())
    for key, value in trained.state_dict().items():
        assert torch.equal(encoder.state_dict()[key], value), key


def test_the_random_twin_is_the_encoder_as_training_drew_it(run):
    folder, trained = run
    random = load_encoders(pretrain_section(folder), seed=0, with_random=True)["random"].encoder
    drawn = init_video_model(pretraining(folder))[0]
    for key, value in drawn.state_dict().items():
        assert torch.equal(random.state_dict()[key], value), key
    assert not torch.equal(random.patch_embed.proj.weight, trained.patch_embed.proj.weight)


MAMBA = {"model_name": "videomamba_tiny", "drop_path_rate": 0.1}


@pytest.mark.parametrize(
    "model",
    [
        {"init": "default"},
        {"init": "fan_in", "uniform_power": True, "drop_path_rate": 0.2},
        {"pred_model_name": "hybrid_tiny", "pred_depth": 4, "projector": "mlp"},
        MAMBA | {"pred_model_name": "videomamba_tiny", "init": "fan_in"},
        MAMBA | {"scan_order": "temporal", "halve_directions": True, "pred_token_order": "concat"},
        MAMBA | {"bidirectional": False, "pos_embed": "learned", "zero_init_mask_tokens": False},
        MAMBA | {"study": {"linear_std": 0.02, "zero_dt_bias": True}},
    ],
    ids=lambda model: " ".join(map(str, model.values())),
)
def test_a_checkpoint_of_step_0_is_the_random_baseline(small_backbones, tmp_path, model):
    """Bit for bit, for every kind of start: of the probes' encoder, and of the whole model of future prediction."""
    study = model.get("study", {})
    cfg = pretraining(tmp_path, **{key: value for key, value in model.items() if key != "study"})
    cfg = PretrainConfig.model_validate(cfg.model_dump() | {"study": study})
    torch.manual_seed(99)
    encoder, predictor = init_video_model(cfg)
    state = weights(encoder, predictor)
    save_atomic(state | {"config": cfg.model_dump(mode="json"), "step": 0}, tmp_path / "ours.pth.tar")
    torch.manual_seed(7)
    section = pretrain_section(tmp_path, model_name=cfg.model.model_name)
    found = load_encoders(section, seed=3, with_random=True)
    same(found["pretrained"].encoder, found["random"].encoder)
    future, _, _ = load_future_predictors(section, context_tubelets=1)
    same(future["pretrained"], future["random"])


def test_the_random_baseline_is_what_a_run_started_from(small, small_backbones, process_group):
    """A real run whose EMA lets the target encoder stay where it was, and whose encoder moves."""
    raw, _ = small(
        "run",
        model={"init": "fan_in", "scan_order": "temporal", "pred_model_name": "videomamba_tiny"},
        optimization={"ema": [1.0, 1.0], "epochs": 1, "ipe": 1, "warmup": 0},
        meta={"load_checkpoint": False},
    )
    train.main(PretrainConfig.model_validate(raw))
    keys = {"model_name": "videomamba_tiny", "checkpoint": "jepa-latest.pth.tar", "patch_size": 8}
    section = pretrain_section(raw["logging"]["folder"], **keys)
    found = load_encoders(section, seed=3, with_random=True)
    same(found["pretrained"].encoder, found["random"].encoder)
    moved = load_encoders(section.model_copy(update={"checkpoint_key": "encoder"}), seed=3, with_random=False)
    weight = [x.encoder.patch_embed.proj.weight for x in (moved["pretrained"], found["random"])]
    assert not torch.equal(*weight)


def same(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"checkpoint": "absent.pth.tar"}, r"absent\.pth\.tar: no such checkpoint"),
        ({"checkpoint_key": "teacher"}, "no weights under 'teacher'.*target_encoder"),
        ({"model_name": "vit_small"}, "pretrain.model_name is vit_small, but .* was trained with vit_tiny"),
        ({"tubelet_size": 1}, "pretrain.tubelet_size is 1"),
        ({"uniform_power": True}, "pretrain.uniform_power is True"),
        ({"checkpoint": "theirs.pth.tar", "model_name": "vit_small"}, "theirs.* was trained with vit_tiny"),
        ({"checkpoint": "theirs.pth.tar", "model_name": "videomamba_tiny"}, "theirs.* was trained with vit_tiny"),
    ],
)
def test_what_does_not_fit_is_one_line(run, keys, message):
    with pytest.raises(UserError, match=message) as caught:
        load_encoders(pretrain_section(run[0], **keys), seed=0, with_random=False)
    assert "\n" not in str(caught.value)


@pytest.fixture
def video_model(tmp_path, monkeypatch):
    """A file as VideoMamba publishes its video models, and that model itself."""
    monkeypatch.setitem(BACKBONES, "videomamba_tiny", BackboneConfig("mamba", 192, 2))
    sizes = {"img_size": 32, "num_frames": 4, "tubelet_size": 1}
    model = create_encoder("videomamba_tiny", **sizes, pos_embed="learned", cls_token=True, num_classes=7).eval()
    torch.save({"model": model.state_dict()}, tmp_path / "videomamba_t16_k400_f4_res32.pth")
    return tmp_path, model


def published(folder, **keys):
    named = {"model_name": "videomamba_tiny", "checkpoint": "videomamba_t16_k400_f4_res32.pth"}
    section = PretrainedConfig.model_validate({"folder": str(folder)} | named | keys)
    return load_encoders(section, seed=0, with_random=True)


@torch.no_grad()
def test_published_videomamba_weights_as_they_are(video_model):
    folder, model = video_model
    clip = torch.randn(1, 3, 4, 32, 32)
    loaded = published(folder)
    assert torch.equal(loaded["pretrained"].encoder(clip), model(clip))
    assert loaded["random"].encoder.grid == model.grid
    torch.save(model.state_dict(), folder / "flat.pth")
    for keys in ({"checkpoint_key": "target_encoder"}, {"checkpoint_key": "target_encoder", "checkpoint": "flat.pth"}):
        assert torch.equal(published(folder, **keys)["pretrained"].encoder(clip), model(clip))
    assert not torch.equal(loaded["random"].encoder(clip), model(clip))


def test_published_videomamba_weights_for_other_clips(video_model, caplog):
    folder, _ = video_model
    loaded = published(folder, frames_per_clip=16, tubelet_size=2, keep_cls_token=False)
    for encoder in (loaded["pretrained"].encoder, loaded["random"].encoder):
        assert (encoder.tubelet_size, encoder.grid, encoder.cls_token) == (2, (8, 2, 2), None)
    assert "resampled: temporal_pos_embedding 4 to 8 tubelets" in caplog.text
    with pytest.raises(UserError, match=r"pretrain\.pos_embed is sincos, but .* was trained with learned"):
        published(folder, pos_embed="sincos")


def test_a_tensor_too_many_has_to_be_named(video_model):
    folder, model = video_model
    weights = model.state_dict() | {"gate": torch.ones(3)}
    torch.save({"model": weights}, folder / "videomamba_t16_k400_f4_res32.pth")
    with pytest.raises(UserError, match=r"res32.pth, model: the model has no gate \(3,\)"):
        published(folder)
    assert set(published(folder, allow_unused=["gate"])) == {"pretrained", "random"}


@torch.no_grad()
def test_an_exported_folder_is_a_checkpoint(run, tmp_path):
    folder, trained = run
    export.main(["--checkpoint", str(folder / "ours.pth.tar"), "--out", str(tmp_path / "exported")])
    section = pretrain_section(tmp_path / "exported", checkpoint="model.safetensors")
    loaded = load_encoders(section, seed=0, with_random=False)["pretrained"]
    clip = torch.randn(1, 3, 4, 32, 32)
    assert torch.equal(loaded.encoder(clip), trained.eval()(clip))
