"""The predictor: where its mask tokens go, and that the trunk sees them in the order of the clip."""

import pytest
import torch

from src.models.predictor import Predictor, VisionTransformerPredictor, make_projector
from src.models.spec import EncoderSpec, describe_predictor
from src.models.utils.attention import Block
from src.models.utils.mamba import MambaBlock
from src.utils.errors import UserError

GRID = {"img_size": 32, "patch_size": 8, "num_frames": 4, "tubelet_size": 2, "uniform_power": True}
SIZES = {"embed_dim": 12, "predictor_embed_dim": 24, "depth": 2, "use_mask_tokens": True, "num_mask_tokens": 2}


def halves(seed):
    """Two disjoint, ascending index sets of 9 and 11 of the 32 tokens, different per sample."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(32, generator=generator) for _ in range(2)])
    return order[:, :9].sort(dim=1).values, order[:, 9:20].sort(dim=1).values


def predictor(kind, **options):
    torch.manual_seed(0)
    if kind == "vit":
        return VisionTransformerPredictor(**GRID, **SIZES, num_heads=2, **options).eval()
    if kind == "hybrid":
        return Predictor(**GRID, **SIZES, trunk="hybrid", num_heads=2, **options).eval()
    return Predictor(**GRID, **SIZES, trunk="mamba", **options).eval()


def test_trunk_sees_raster_order():
    model = predictor("mamba")
    context, target = halves(0)
    seen = []
    model.predictor_blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.predictor_embed.weight.data.zero_()  # so that a token is its position alone
    model.predictor_embed.bias.data.zero_()
    model(torch.randn(2, 9, 12), None, context, target)
    both = torch.cat([context, target], dim=1).sort(dim=1).values
    wanted = torch.stack([model.predictor_pos_embed[0, row] for row in both])
    torch.testing.assert_close(seen[0], wanted)


@pytest.mark.parametrize("kind", ["vit", "mamba", "hybrid"])
def test_order_matters_to_a_scan_and_not_to_attention(kind):
    context, target = halves(1)
    tokens = torch.randn(2, 9, 12)
    raster, concat = predictor(kind, token_order="raster"), predictor(kind, token_order="concat")
    concat.load_state_dict(raster.state_dict())
    difference = (raster(tokens, None, context, target) - concat(tokens, None, context, target)).abs().max()
    assert (difference < 1e-5) == (kind == "vit")


@pytest.mark.parametrize("kind", ["vit", "mamba", "hybrid"])
def test_predictions_follow_their_targets(kind):
    """Asking for the same targets in another order gives the same predictions in that order."""
    model = predictor(kind)
    context, target = halves(2)
    tokens, shuffle = torch.randn(2, 9, 12), torch.randperm(11)
    torch.testing.assert_close(
        model(tokens, None, context, target[:, shuffle]), model(tokens, None, context, target)[:, shuffle]
    )


def test_each_mask_config_has_its_own_token():
    model = predictor("vit", zero_init_mask_tokens=False)
    context, target = halves(3)
    tokens = torch.randn(2, 9, 12)
    first, second, third = (model(tokens, None, context, target, mask_index=i) for i in range(3))
    assert not torch.allclose(first, second)
    assert torch.equal(first, third)
    assert all((t == 0).all() for t in predictor("vit").mask_tokens)


def test_a_hybrid_takes_turns_and_each_block_is_drawn_for_its_depth():
    options = GRID | SIZES | {"depth": 5, "predictor_embed_dim": 96}
    blocks = Predictor(**options, trunk="hybrid", num_heads=3, drop_path_rate=0.4).predictor_blocks
    assert [type(block) for block in blocks] == [MambaBlock, Block, MambaBlock, Block, MambaBlock]
    assert [block.drop_path.rate for block in blocks] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    for i in (1, 3):  # V-JEPA's: the output of block i is drawn smaller by the root of the branches before it
        assert blocks[i].attn.proj.weight.std().item() == pytest.approx(0.02 / (2 * (i + 1)) ** 0.5, rel=0.05)


@pytest.mark.parametrize(
    ("kind", "name"), [("vit", "vit_tiny"), ("mamba", "videomamba_tiny"), ("hybrid", "hybrid_tiny")]
)
def test_the_kind_is_read_off_a_file_s_tensors(kind, name):
    tensors = predictor(kind, projector="mlp").state_dict()
    spec = describe_predictor(tensors, EncoderSpec("vit_tiny", GRID), "a file", num_heads=2)
    assert (spec.name, spec.options["depth"], spec.options["projector"]) == (name, 2, "mlp")
    spec.build().load_state_dict(tensors)


@pytest.mark.parametrize("kind", ["vit", "mamba", "hybrid"])
def test_a_projector_projects_the_context(kind):
    plain, projected = predictor(kind), predictor(kind, projector="linear")
    rest = {name: value for name, value in projected.state_dict().items() if not name.startswith("projector")}
    plain.load_state_dict(rest)  # strictly: without one there is nothing of it
    context, target = halves(4)
    tokens = torch.randn(2, 9, 12)
    torch.testing.assert_close(
        projected(tokens, None, context, target), plain(projected.projector(tokens), None, context, target)
    )
    assert make_projector("mlp", 12)(tokens).shape == tokens.shape


@pytest.mark.parametrize("kind", ["vit", "mamba", "hybrid"])
def test_parameters_are_in_v_jepas_order(kind):
    """The state of an optimizer knows parameters by their number: in another order, no run could go on."""
    first = [name.split(".")[0] for name, _ in predictor(kind, projector="linear").named_parameters()]
    want = ["predictor_pos_embed", "predictor_embed", "mask_tokens", "predictor_blocks", "predictor_norm"]
    assert list(dict.fromkeys(first)) == [*want, "predictor_proj", "projector"]


def test_what_is_refused():
    with pytest.raises(UserError, match=r"projector 'conv' .* linear or mlp"):
        predictor("vit", projector="conv")
    with pytest.raises(UserError, match="use_mask_tokens"):
        predictor("vit", **{"token_order": "raster"}).__class__(**GRID, **SIZES | {"use_mask_tokens": False})
    with pytest.raises(UserError, match=r"spiral.*raster or concat"):
        predictor("mamba", token_order="spiral")
