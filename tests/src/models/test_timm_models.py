"""What timm's users do with a model, done with ours. Needs timm: `pip install -e .[timm]`."""

import importlib
import importlib.util

import pytest
import torch

from app.vjepa.config import PretrainConfig
from app.vjepa.utils import init_video_model
from src.models.registry import BACKBONES
from src.utils.checkpoint import save_atomic
from src.utils.errors import UserError

if importlib.util.find_spec("timm") is None:
    pytest.skip("timm is not installed (pip install -e .[timm])", allow_module_level=True)


def import_timm():
    """timm imports torchvision, whose CUDA build misses two operators beside a CPU build of torch: declare them."""
    try:
        return importlib.import_module("timm")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("timm")


timm = import_timm()
timm_models = importlib.import_module("src.models.timm_models")

SMALL = {"img_size": 32, "num_frames": 4, "depth": 3}


def create(name="videomamba_tiny", **options):
    return timm.create_model(name, **SMALL, **options).eval()


@pytest.fixture
def clip():
    return torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))


def test_every_backbone_is_listed_and_none_has_a_class_token():
    assert set(BACKBONES) <= set(timm.list_models(module="timm_models"))
    with pytest.raises(ValueError, match="cls_token=True"):
        create(cls_token=True)


@torch.no_grad()
@pytest.mark.parametrize("name", ["videomamba_tiny", "vit_tiny"])
def test_features_pooling_and_classifier(name, clip):
    model = create(name, num_classes=5)
    tokens = model.forward_features(clip)
    torch.testing.assert_close(tokens, model.encoder(clip))  # the encoder's own way
    assert tokens.shape == (2, 8, 192) and model.num_features == model.head_hidden_size == 192
    torch.testing.assert_close(model.forward_head(tokens, pre_logits=True), tokens.mean(1))
    torch.testing.assert_close(model(clip), model.get_classifier()(tokens.mean(1)))
    assert model(clip).shape == (2, 5) and model.num_classes == 5 and model.global_pool == "avg"

    model.reset_classifier(7)
    assert model(clip).shape == (2, 7) and model.global_pool == "avg"
    model.reset_classifier(0, "max")
    torch.testing.assert_close(model(clip), tokens.amax(1))
    model.reset_classifier(0, "")
    torch.testing.assert_close(model(clip), tokens)
    with pytest.raises(ValueError, match="global_pool 'token'"):
        model.reset_classifier(0, "token")


@torch.no_grad()
def test_without_a_number_of_classes_it_gives_features(clip):
    model = create()
    assert model.num_classes == 0 and model(clip).shape == (2, model.num_features)


@torch.no_grad()
def test_an_image_is_a_clip_that_stands_still(clip):
    model = create()
    image = clip[:, :, 0]
    torch.testing.assert_close(model(image), model(image[:, :, None].repeat(1, 1, 4, 1, 1)))
    config = timm.data.resolve_model_data_config(model)
    assert config["input_size"] == (3, 224, 224) and config["mean"] == (0.485, 0.456, 0.406)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "options"),
    [("videomamba_tiny", {}), ("videomamba_tiny", {"scan_order": "temporal"}), ("vit_tiny", {})],
)
def test_features_only_gives_maps_of_chosen_blocks(name, options, clip):
    whole = create(name, **options)
    last, taken = whole.forward_intermediates(clip, indices=[0, 2], norm=True)
    torch.testing.assert_close(last, whole.forward_features(clip))
    assert [tuple(y.shape) for y in taken] == [(2, 192, 2, 2, 2)] * 2
    torch.testing.assert_close(taken[1].flatten(2).transpose(1, 2), last)  # raster order

    features = create(name, features_only=True, out_indices=[0, 1], **options)
    features.model.encoder.load_state_dict(
        {k: v for k, v in whole.encoder.state_dict().items() if k in features.model.encoder.state_dict()}
    )
    maps = features(clip)
    assert features.feature_info.channels() == [192, 192] and features.feature_info.reduction() == [16, 16]
    wanted = whole.forward_intermediates(clip, indices=[0, 1], intermediates_only=True)
    for a, b in zip(maps, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("scan_order", ["spatial", "temporal"])
def test_training_with_timms_own_optimizer_and_checkpointing(scan_order, clip):
    model = create("videomamba_tiny", num_classes=5, drop_path_rate=0.1, scan_order=scan_order)
    groups = importlib.import_module("timm.optim").param_groups_layer_decay(
        model, weight_decay=0.1, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.5
    )
    scale = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    layers = model.encoder.layers
    ratios = [scale[id(layer.mixer.in_proj.weight)] for layer in layers]
    assert ratios[1] == 2 * ratios[0] and ratios[2] == 2 * ratios[1]
    assert scale[id(model.encoder.patch_embed.proj.weight)] < ratios[0] < scale[id(model.head.weight)] == 1
    assert decay[id(layers[0].mixer.A_log)] == 0 and decay[id(layers[0].mixer.in_proj.weight)] == 0.1

    plain = torch.autograd.grad(model(clip).square().sum(), layers[0].mixer.in_proj.weight)[0]
    model.train()
    for layer in layers:
        layer.drop_path.rate = 0.0
    model.set_grad_checkpointing()
    tokens = model.forward_features(clip)
    torch.testing.assert_close(tokens, model.encoder(clip))
    spared = torch.autograd.grad(model.forward_head(tokens).square().sum(), layers[0].mixer.in_proj.weight)[0]
    torch.testing.assert_close(plain, spared)


@torch.no_grad()
def test_pretrained_weights_are_loaded_strictly(tmp_path, clip):
    cfg = PretrainConfig.model_validate(
        {
            "data": {"datasets": ["x.csv"], "batch_size": 4, "num_frames": 4, "crop_size": 32},
            "logging": {"folder": str(tmp_path)},
            "mask": [{"num_blocks": 1, "spatial_scale": [0.5, 0.5]}],
            "model": {"model_name": "vit_tiny", "pred_embed_dim": 48, "pred_depth": 1, "use_mask_tokens": True},
            "optimization": {"epochs": 1, "lr": 1e-3},
        }
    )
    encoder, path = init_video_model(cfg)[0].eval(), tmp_path / "jepa-latest.pth.tar"
    save_atomic({"target_encoder": encoder.state_dict(), "config": cfg.model_dump(mode="json")}, path)
    options = {"img_size": 32, "num_frames": 4, "pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}}
    model = timm.create_model("vit_tiny", num_classes=5, **options).eval()
    torch.testing.assert_close(model.forward_features(clip), encoder(clip))
    longer = timm.create_model("vit_tiny", **{**options, "num_frames": 8}).eval()
    assert torch.equal(longer.encoder.blocks[3].attn.qkv.weight, encoder.blocks[3].attn.qkv.weight)
    assert longer.forward_features(clip.repeat(1, 1, 2, 1, 1)).shape == (2, 16, 192)
    with pytest.raises(UserError, match=r"jepa-latest\.pth\.tar, target_encoder: .* vit_tiny, not of vit_small"):
        timm.create_model("vit_small", **options)


@torch.no_grad()
def test_weights_of_another_scan_order_are_refused_until_the_model_has_it(tmp_path, clip):
    raw = {
        "data": {"datasets": ["x.csv"], "batch_size": 4, "num_frames": 4, "crop_size": 32},
        "logging": {"folder": str(tmp_path)},
        "mask": [{"num_blocks": 1, "spatial_scale": [0.5, 0.5]}],
        "model": {"model_name": "videomamba_nano", "scan_order": "temporal", "use_mask_tokens": True},
        "optimization": {"epochs": 1, "lr": 1e-3},
    }
    raw["model"] |= {"pred_embed_dim": 48, "pred_depth": 1}
    cfg = PretrainConfig.model_validate(raw)
    encoder, path = init_video_model(cfg)[0].eval(), tmp_path / "jepa-latest.pth.tar"
    save_atomic({"target_encoder": encoder.state_dict(), "config": cfg.model_dump(mode="json")}, path)
    options = {"img_size": 32, "num_frames": 4, "pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}}
    with pytest.raises(UserError, match=r"trained with scan_order='temporal': give it to timm\.create_model too"):
        timm.create_model("videomamba_nano", **options)
    model = timm.create_model("videomamba_nano", **options, scan_order="temporal").eval()
    torch.testing.assert_close(model.forward_features(clip), encoder(clip))
