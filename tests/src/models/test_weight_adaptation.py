"""Published names and shapes fit ours, and what is inflated or resampled keeps its meaning."""

import pytest
import torch
import torch.nn.functional as F

from src.models.registry import BACKBONES, BackboneConfig, create_encoder, create_predictor
from src.models.spec import EncoderSpec, describe_encoder, describe_predictor
from src.models.utils.patch_embed import PatchEmbed3D, inflate
from src.models.utils.pos_embs import resample_plane, resample_time, sincos_pos_embed_3d
from src.models.weight_adaptation import Report, adapt, bare_names
from src.utils.checkpoint import load_state_dict_strict
from src.utils.errors import UserError
from src.utils.token_grid import Grid


def on_meta(shapes, **real):
    return {name: real.get(name, torch.empty(shape, device="meta")) for name, shape in shapes.items()}


def fit(tensors, file, **options):
    """Adapted tensors, loaded strictly into the model that they were adapted to, and the report."""
    report = Report("x.pth")
    wanted = EncoderSpec(file.name, file.options | {"num_classes": 0} | options if "cls_token" in file.options
                         else file.options | options)  # fmt: skip
    tensors = adapt(tensors, file, wanted, report)
    model = wanted.build("meta")
    load_state_dict_strict(model, tensors, "x.pth", assign=True)
    return model.eval(), report


def test_published_vjepa_vit_large_is_ours(published_shapes):
    shapes = published_shapes("vjepa_vitl16_encoder")
    key = "module.backbone.pos_embed"
    report = Report("vitl16.pth.tar")
    table = sincos_pos_embed_3d(1024, Grid(8, 14, 14), uniform_power=True)
    tensors = bare_names(on_meta(shapes, **{key: table}), report)
    spec = describe_encoder(tensors, "vitl16.pth.tar")
    sizes = {"img_size": 224, "num_frames": 16, "patch_size": 16, "tubelet_size": 2}
    assert spec == ("vit_large", {**sizes, "uniform_power": True})
    assert report.changes == ["prefix dropped: module.backbone."]
    encoder, report = fit(tensors, spec)
    assert str(report) == f"x.pth: {len(shapes)} tensors for vit_large"
    assert torch.equal(encoder.pos_embed, table)

    shapes = published_shapes("vjepa_vitl16_predictor")
    found = describe_predictor(bare_names(on_meta(shapes), report), spec, "vitl16.pth.tar")
    assert (found.options["depth"], found.options["num_heads"], found.options["num_mask_tokens"]) == (12, 16, 2)
    load_state_dict_strict(found.build("meta"), bare_names(on_meta(shapes), report), "vitl16.pth.tar", assign=True)


def test_ours_have_the_published_names_and_shapes(published_shapes):
    """Independently of the key map: what create_encoder and create_predictor build, name by name."""
    with torch.device("meta"):
        encoder = create_encoder("vit_large", img_size=224, num_frames=16)
        predictor = create_predictor("vit_large", embed_dim=1024, predictor_embed_dim=384, depth=12, num_frames=16)
        middle = {"img_size": 224, "num_frames": 16, "tubelet_size": 1, "pos_embed": "learned", "cls_token": True}
        mamba = create_encoder("videomamba_middle", **middle, num_classes=400)
    for model, name in ((encoder, "vjepa_vitl16_encoder"), (predictor, "vjepa_vitl16_predictor")):
        ours = {f"module.backbone.{key}": tuple(value.shape) for key, value in model.state_dict().items()}
        assert ours == published_shapes(name)
    assert {k: tuple(v.shape) for k, v in mamba.state_dict().items()} == published_shapes("videomamba_m16_k400_f16")


def test_published_videomamba_video_model(published_shapes):
    tensors = on_meta(published_shapes("videomamba_m16_k400_f16"))
    spec = describe_encoder(tensors, "x.pth")
    assert spec.name == "videomamba_middle"
    assert spec.options == {"patch_size": 16, "tubelet_size": 1, "pos_embed": "learned", "bidirectional": True,
                            "cls_token": True, "num_classes": 400, "img_size": 224, "num_frames": 16}  # fmt: skip
    _, report = fit(tensors, spec, num_classes=400)
    assert report.changes == []
    model, report = fit(tensors, spec, tubelet_size=2, img_size=288, cls_token=False)
    assert (model.tubelet_size, model.grid, model.cls_token) == (2, (8, 18, 18), None)
    assert report.changes == [
        "inflated: patch_embed.proj.weight (576, 3, 1, 16, 16) to (576, 3, 2, 16, 16)",
        "resampled: pos_embed 14x14 to 18x18 patches",
        "resampled: temporal_pos_embedding 16 to 8 tubelets",
        "left out: cls_token, head.weight, head.bias",
    ]


def test_published_videomamba_image_model(published_shapes):
    tensors = on_meta(published_shapes("videomamba_m16_in1k"))
    spec = describe_encoder(tensors, "x.pth")
    assert (spec.options["tubelet_size"], spec.options["num_frames"], spec.options["img_size"]) == (1, 16, 224)
    model, report = fit(tensors, spec, tubelet_size=2, num_frames=8)
    assert model.grid == (4, 14, 14) and not model.temporal_pos_embedding.any()
    assert report.changes == [
        "inflated: patch_embed.proj.weight (576, 3, 16, 16) to (576, 3, 2, 16, 16)",
        "added, as zeros: temporal_pos_embedding (1, 4, 576): an image has no time",
        "left out: head.weight, head.bias",
    ]


def test_masked_pretraining_of_videomamba(published_shapes):
    """Its last norm has another name, and it has a decoder that only the training needed."""
    tensors = on_meta(published_shapes("videomamba_m16_k400_f16"))
    tensors = {"norm.weight" if key == "norm_f.weight" else key: value for key, value in tensors.items()}
    del tensors["head.weight"], tensors["head.bias"]
    report = Report("x.pth")
    tensors = bare_names(tensors | {"clip_decoder.0.head.weight": torch.ones(1)}, report)
    assert report.changes == ["left out: clip_decoder.0.head.weight", "renamed: norm.weight to norm_f.weight"]
    fit(tensors, describe_encoder(tensors, "x.pth"))


@pytest.mark.parametrize(("before", "after"), [(None, 2), (1, 2), (1, 1), (2, 4), (2, 2)])
def test_an_inflated_kernel_gives_on_a_still_clip_what_the_short_one_gave(before, after):
    torch.manual_seed(0)
    kernel = torch.randn(8, 3, 4, 4) if before is None else torch.randn(8, 3, before, 4, 4)
    still = torch.randn(2, 3, 1, 8, 8)
    if before is None:
        short = F.conv2d(still[:, :, 0], kernel, stride=4)
    else:
        short = F.conv3d(still.expand(-1, -1, before, -1, -1), kernel, stride=(before, 4, 4))[:, :, 0]
    embed = PatchEmbed3D(4, after, 3, 8)
    embed.proj.load_state_dict({"weight": inflate(kernel, after), "bias": torch.zeros(8)})
    with torch.no_grad():
        long = embed(still.expand(-1, -1, after, -1, -1))
    torch.testing.assert_close(long, short.flatten(2).transpose(1, 2), atol=1e-5, rtol=0)


def test_a_kernel_is_never_shortened_or_cut():
    for before, after in ((2, 1), (2, 3)):
        with pytest.raises(ValueError, match=f"over {before} frames cannot be repeated to span {after}"):
            inflate(torch.ones(8, 3, before, 4, 4), after)


def test_resampling_to_the_same_size_is_the_identity_and_keeps_what_is_constant():
    plane, time = torch.randn(1, 6, 8), torch.randn(1, 5, 8)
    assert resample_plane(plane, Grid(1, 2, 3), Grid(4, 2, 3)) is plane
    assert resample_time(time, 5) is time
    constant = torch.arange(8.0).expand(1, 6, 8)
    torch.testing.assert_close(resample_plane(constant, Grid(1, 2, 3), Grid(1, 4, 7)), constant[:, :1].expand(1, 28, 8))
    torch.testing.assert_close(resample_time(constant, 11), constant[:, :1].expand(1, 11, 8))


@torch.no_grad()
def test_sizes_whose_ratio_is_no_exact_number():
    """13 * (15 / 13) is 14.999999999999998."""
    encoder = create_encoder("vit_tiny", img_size=13 * 16, num_frames=2, depth=1)
    assert encoder(torch.randn(1, 3, 2, 15 * 16, 15 * 16)).shape == (1, 15 * 15, 192)


def test_halving_time_is_the_mean_of_pairs():
    """So a tubelet of two frames has the mean of their positions."""
    time = torch.randn(1, 8, 4)
    torch.testing.assert_close(resample_time(time, 4), time.unflatten(1, (4, 2)).mean(2))


@pytest.fixture
def shallow(monkeypatch):
    monkeypatch.setitem(BACKBONES, "videomamba_tiny", BackboneConfig("mamba", 192, 2))
    monkeypatch.setitem(BACKBONES, "vit_tiny", BackboneConfig("attention", 192, 2, 3))


def built(name, **options):
    torch.manual_seed(0)
    spec = EncoderSpec(name, {"img_size": 32, "patch_size": 16, "num_frames": 4, "tubelet_size": 2} | options)
    model = spec.build().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # nothing is zero, nothing is as it was drawn
            parameter.add_(0.1 * torch.randn_like(parameter) * parameter.requires_grad)
    return spec, model


LEARNED = {"pos_embed": "learned", "cls_token": True}


@torch.no_grad()
@pytest.mark.parametrize(("name", "options"), [("vit_tiny", {}), ("videomamba_tiny", {}), ("videomamba_tiny", LEARNED)])
def test_resampled_on_loading_is_resampled_while_running(shallow, name, options):
    spec, model = built(name, **options)
    other, report = fit(model.state_dict(), spec, img_size=48, num_frames=8)
    assert any(change.startswith("resampled: ") for change in report.changes)
    clip = torch.randn(1, 3, 8, 48, 48)
    torch.testing.assert_close(other(clip), model(clip), atol=1e-5, rtol=0)


@torch.no_grad()
def test_an_image_model_on_a_still_clip(shallow):
    """From one frame to a tubelet of two equal ones, the whole encoder's output stays."""
    _, image = built("videomamba_tiny", **LEARNED, num_frames=1, tubelet_size=1)
    tensors = image.state_dict()
    tensors["patch_embed.proj.weight"] = tensors["patch_embed.proj.weight"].squeeze(2)
    image.temporal_pos_embedding.zero_()
    del tensors["temporal_pos_embedding"]
    clip = torch.randn(2, 3, 1, 32, 32)
    video, _ = fit(tensors, describe_encoder(tensors, "x.pth"), num_frames=2, tubelet_size=2)
    torch.testing.assert_close(video(clip.expand(-1, -1, 2, -1, -1)), image(clip), atol=1e-5, rtol=0)


@torch.no_grad()
def test_without_its_class_token_a_model_is_its_patches_alone(shallow):
    spec, model = built("videomamba_tiny", **LEARNED)
    kept, _ = fit(model.state_dict(), spec)
    clip = torch.randn(1, 3, 4, 32, 32)
    assert torch.equal(kept(clip), model(clip))
    dropped, report = fit(model.state_dict(), spec, cls_token=False)
    assert report.changes == ["left out: cls_token"]
    model.cls_token = None  # the sequence then starts with the first patch
    torch.testing.assert_close(dropped(clip), model(clip), atol=1e-5, rtol=0)


def test_half_precision_becomes_float32(shallow):
    spec, model = built("vit_tiny")
    encoder, report = fit({key: value.half() for key, value in model.state_dict().items()}, spec)
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    assert report.changes == ["cast to float32: pos_embed and 28 more"]


def test_one_direction_and_uneven_power_are_seen(shallow):
    assert describe_encoder(built("videomamba_tiny", bidirectional=False)[1].state_dict(), "x").options == {
        "patch_size": 16, "tubelet_size": 2, "pos_embed": "sincos", "bidirectional": False, "cls_token": False,
        "num_classes": 0, "img_size": 32, "num_frames": 4, "uniform_power": False}  # fmt: skip


def test_what_is_left_over_is_an_error_unless_it_is_named(shallow):
    spec, model = built("vit_tiny")
    tensors = model.state_dict() | {"blocks.0.gate": torch.ones(3), "extra": torch.ones(2)}
    with pytest.raises(UserError, match=r"x.pth: the model has no blocks.0.gate \(3,\)"):
        fit(bare_names(tensors, Report("x.pth"), allow_unused=["extra"]), spec)
    report = Report("x.pth")
    fit(bare_names(tensors, report, allow_unused=["extra", "blocks.*.gate"]), spec)
    assert report.changes == ["left out: blocks.0.gate, extra"]
    with pytest.raises(UserError, match=r"norm.weight \(192,\) is not in the checkpoint"):
        fit(bare_names(tensors, Report("x.pth"), allow_unused=["norm.*", "extra", "blocks.*.gate"]), spec)


def test_keys_that_would_be_one_are_not_mixed():
    with pytest.raises(UserError, match=r"x.pth: two of its keys differ only in 'module.'"):
        bare_names({"module.w": torch.ones(1), "w": torch.zeros(1)}, Report("x.pth"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks.0.attn.qkv.weight": None}, "not an encoder: it should have .*; it has pos_embed, patch_embed"),
        (
            {"pos_embed": None},
            "a ViT without pos_embed: it has rotary positions, as V-JEPA 2's models, or lost its own",
        ),
        ({"patch_embed.proj.weight": torch.ones(20, 3, 2, 16, 16)}, "a ViT 20 wide and 2 deep, which is not in"),
        ({"pos_embed": torch.zeros(1, 8, 192)}, r"pos_embed \(1, 8, 192\) holds no sin-cos positions of square frames"),
    ],
)
def test_what_is_no_encoder_is_one_line(shallow, change, message):
    tensors = built("vit_tiny")[1].state_dict() | change
    with pytest.raises(UserError, match=f"^x.pth: {message}") as caught:
        describe_encoder({key: value for key, value in tensors.items() if value is not None}, "x.pth")
    assert "\n" not in str(caught.value)
