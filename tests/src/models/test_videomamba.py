"""VideoMamba: both directions, positions, the class token, and the mixer against the plain recurrence."""

import pytest
import torch
import torch.nn.functional as F

from src.models.utils.mamba import MambaMixer
from src.models.utils.multimask import MultiMaskWrapper
from src.models.videomamba import VideoMamba
from src.utils.errors import UserError

SMALL = {"img_size": 32, "patch_size": 8, "num_frames": 4, "tubelet_size": 2, "embed_dim": 24, "depth": 2}


def plain_mixer(m, x):
    """The mixer as its equations say, one token at a time, in float64."""
    x = x.double()
    p = {k: v.double() for k, v in m.state_dict().items()}
    inner, zgate = (x @ p["in_proj.weight"].T).chunk(2, dim=-1)
    total = 0
    for suffix in m.suffixes:
        u = inner.flip(1) if suffix else inner
        z = zgate.flip(1) if suffix else zgate
        u = F.conv1d(
            F.pad(u.transpose(1, 2), (3, 0)), p[f"conv1d{suffix}.weight"], p[f"conv1d{suffix}.bias"], groups=m.inner
        )
        u = F.silu(u).transpose(1, 2)
        dt, B, C = (u @ p[f"x_proj{suffix}.weight"].T).split([m.dt_rank, m.d_state, m.d_state], dim=-1)
        dt = F.softplus(dt @ p[f"dt_proj{suffix}.weight"].T + p[f"dt_proj{suffix}.bias"])
        A, D = -p[f"A{suffix}_log"].exp(), p[f"D{suffix}"]
        h, outputs = 0, []
        for t in range(x.shape[1]):
            step = dt[:, t, :, None]
            h = (step * A).exp() * h + step * B[:, t, None, :] * u[:, t, :, None]
            outputs.append((h * C[:, t, None, :]).sum(-1) + D * u[:, t])
        y = torch.stack(outputs, dim=1) * F.silu(z)
        total = total + (y.flip(1) if suffix else y)
    return total @ p["out_proj.weight"].T


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("backend", ["auto", "reference", "chunked"])
def test_mixer_equals_its_equations(bidirectional, backend):
    torch.manual_seed(0)
    mixer = MambaMixer(24, bidirectional=bidirectional, backend=backend)
    x = torch.randn(2, 13, 24)
    torch.testing.assert_close(mixer(x).double(), plain_mixer(mixer, x), rtol=1e-4, atol=1e-6)


def test_halving_averages_the_directions():
    torch.manual_seed(0)
    whole, half = MambaMixer(24), MambaMixer(24, halve_directions=True)
    half.load_state_dict(whole.state_dict())
    x = torch.randn(2, 9, 24)
    torch.testing.assert_close(half(x), whole(x) / 2)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_which_tokens_see_which(bidirectional):
    model = VideoMamba(**SMALL, bidirectional=bidirectional).eval()
    tokens = torch.randn(1, 32, 24, requires_grad=True)
    model.run_trunk(tokens)[0, 10].sum().backward()
    seen = tokens.grad[0].abs().sum(-1) > 0
    assert seen[:11].all()
    assert seen[11:].all() == bidirectional
    assert seen[11:].any() == bidirectional


@pytest.mark.parametrize("cls_token", [True, False])
def test_scanning_along_time_first(cls_token):
    """A model that scans along time equals one that scans space, on a clip whose tokens are put in that order."""
    torch.manual_seed(0)
    options = {**SMALL, "num_frames": 6, "pos_embed": "none", "cls_token": cls_token}
    space, time = VideoMamba(**options).eval(), VideoMamba(**options, scan_order="temporal").eval()
    time.load_state_dict(space.state_dict())
    T, P = space.grid.t, space.grid.area
    tokens = torch.randn(2, T * P, 24)
    time_first = tokens.unflatten(1, (T, P)).transpose(1, 2).flatten(1, 2)
    wanted = space.encode(time_first).unflatten(1, (P, T)).transpose(1, 2).flatten(1, 2)
    torch.testing.assert_close(time.encode(tokens), wanted)
    # With tokens left out: those that stay, in the order of time first, and back in the order of the mask.
    kept = torch.stack([torch.randperm(T * P)[:7].sort().values for _ in range(2)])
    for row in range(2):
        order = sorted(range(7), key=lambda j: (kept[row, j] % P, kept[row, j] // P))
        alone = space.encode(tokens[row, kept[row]][None, order])[0]
        torch.testing.assert_close(time.encode(tokens, kept)[row][order], alone)


def test_scanning_along_time_takes_clips_of_other_sizes():
    """With few of the tokens left: the order is that of the clip, not of the clip that the model was made for."""
    torch.manual_seed(0)
    model = VideoMamba(**{**SMALL, "pos_embed": "none"}, scan_order="temporal").eval()
    made = VideoMamba(**{**SMALL, "pos_embed": "none", "num_frames": 8, "img_size": (32, 48)}, scan_order="temporal")
    made.load_state_dict(model.state_dict())
    clip = torch.randn(2, 3, 8, 32, 48)
    mask = torch.stack([torch.randperm(made.grid.size)[:5].sort().values for _ in range(2)])
    assert made.grid != model.grid
    torch.testing.assert_close(model(clip), made.eval()(clip))
    torch.testing.assert_close(model(clip, mask), made(clip, mask))
    torch.testing.assert_close(MultiMaskWrapper(model)(clip, [mask])[0], made(clip, mask))
    torch.testing.assert_close(model.forward_features(clip), made(clip))


def test_an_unknown_scan_order_is_refused():
    with pytest.raises(UserError, match="scan_order 'raster' is not known"):
        VideoMamba(**SMALL, scan_order="raster")


def test_step_sizes_start_between_a_thousandth_and_a_tenth():
    mixer = MambaMixer(192)
    for proj in (mixer.dt_proj, mixer.dt_proj_b):
        steps = F.softplus(proj.bias)
        assert 9e-4 < steps.min() < 2e-3
        assert 0.05 < steps.max() < 0.11
    assert torch.equal(mixer.A_log.exp().round(), torch.arange(1.0, 17).expand(384, 16))


def test_masked_tokens_are_dropped_before_the_scan():
    torch.manual_seed(0)
    model = VideoMamba(**SMALL).eval()
    clip = torch.randn(2, 3, 4, 32, 32)
    kept = torch.stack([torch.randperm(32)[:7].sort().values for _ in range(2)])
    tokens = model.embed(clip)
    wanted = torch.stack([model.run_trunk(t[k][None])[0] for t, k in zip(tokens, kept)])
    torch.testing.assert_close(model(clip, kept), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pos_embed", ["sincos", "learned", "none"])
@pytest.mark.parametrize("cls_token", [True, False])
def test_other_sizes_through_interpolated_positions(pos_embed, cls_token):
    model = VideoMamba(**SMALL, pos_embed=pos_embed, cls_token=cls_token, num_classes=5).eval()
    for frames, size in ((4, (32, 32)), (8, (32, 32)), (4, (48, 40)), (2, (16, 24))):
        clip = torch.randn(1, 3, frames, *size)
        assert model(clip).shape == (1, frames // 2 * (size[0] // 8) * (size[1] // 8), 24)
        assert model.logits(clip).shape == (1, 5)
    with pytest.raises(UserError, match="30x32 pixels"):
        model(torch.randn(1, 3, 4, 30, 32))
    with pytest.raises(UserError, match="3 frames"):
        model(torch.randn(1, 3, 3, 32, 32))


def test_learned_positions_are_trained_and_sincos_ones_are_not():
    assert not VideoMamba(**SMALL).pos_embed.requires_grad
    learned = VideoMamba(**SMALL, pos_embed="learned")
    assert learned.pos_embed.requires_grad
    assert learned.temporal_pos_embedding.requires_grad


def test_unknown_positions():
    with pytest.raises(UserError, match=r"rotary.*sincos, learned or none"):
        VideoMamba(**SMALL, pos_embed="rotary")


def test_residual_stays_in_float32_under_autocast():
    model = VideoMamba(**SMALL).eval()
    clip = torch.randn(1, 3, 4, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(clip)
    assert half.dtype == torch.float32
    assert F.cosine_similarity(half.flatten(), model(clip).flatten(), dim=0) > 0.99


def test_stochastic_depth_only_while_training():
    torch.manual_seed(0)
    model = VideoMamba(**SMALL, drop_path_rate=0.9)
    clip = torch.randn(1, 3, 4, 32, 32)
    assert torch.equal(model.eval()(clip), model(clip))
    model.train()
    assert len({model(clip).sum().item() for _ in range(8)}) > 1
