"""One switch for a whole model: backend='reference' is PyTorch's operations throughout, with every derivative."""

import pytest
import torch
from torch.func import functional_call, grad, jvp, vmap

from src.models import load_encoder
from src.models.loading import adapt_state_dict, open_weights
from src.models.registry import create_encoder, create_predictor
from src.ops import compiled
from src.utils.checkpoint import save_atomic
from src.utils.errors import UserError

CLIPS = {"img_size": 16, "patch_size": 8, "num_frames": 2}
SIZES = {"videomamba_tiny": {"d_state": 2}, "vit_tiny": {"num_heads": 3}}
ENCODERS = {
    "videomamba": ("videomamba_tiny", {}),
    "class token": ("videomamba_tiny", {"pos_embed": "learned", "cls_token": True, "scan_order": "temporal"}),
    "one direction": ("videomamba_tiny", {"bidirectional": False}),
    "vit": ("vit_tiny", {}),
}
REFUSED = r"^(selective_scan|causal_conv1d|rms_norm): no .* backend='reference' for a model"
needs_kernels = pytest.mark.skipif(compiled.find_library() is None, reason=compiled.MISSING)


def encoder(kind, **options):
    name, more = ENCODERS[kind]
    torch.manual_seed(0)
    return create_encoder(name, **CLIPS, **SIZES[name], depth=2, embed_dim=24, **more, **options)


def predictor(name, **options):
    torch.manual_seed(0)
    sizes = {"predictor_embed_dim": 24, "depth": 2, "zero_init_mask_tokens": False}
    return create_predictor(name, 24, **CLIPS, **sizes, **options)


def clip(dtype=torch.float64, batch=1):
    return torch.randn(batch, 3, 2, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def penalty(model, x):
    """Gradient of a gradient penalty in the model's weights."""
    weights = [p for p in model.parameters() if p.requires_grad]
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return torch.autograd.grad(slope.square().sum() * 1e3, weights, allow_unused=True)


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_whole_encoder_has_second_derivatives(kind):
    """Of the clip and of every weight, against finite differences in float64."""
    model, x = encoder(kind, backend="reference").double(), clip()
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    generator = torch.Generator().manual_seed(1)
    ways = {name: torch.randn(p.shape, generator=generator, dtype=p.dtype) for name, p in weights.items()}
    pull = torch.randn(model(x).shape, generator=generator, dtype=x.dtype)

    def slope(step):
        """The weights, moved by a step, and d loss / d clip with them."""
        moved = {name: (p + step * ways[name]).requires_grad_() for name, p in weights.items()}
        leaf = x.clone().requires_grad_()
        loss = (functional_call(model, moved, (leaf,)) * pull).sum()
        return moved, torch.autograd.grad(loss, leaf, create_graph=True)[0]

    moved, first = slope(0.0)
    along = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    found = torch.autograd.grad((first * along).sum(), list(moved.values()), allow_unused=True)
    second = sum((g * ways[name]).sum() for name, g in zip(moved, found) if g is not None)
    step = 1e-5
    ahead, behind = ((slope(s)[1] * along).sum() for s in (step, -step))
    torch.testing.assert_close(second, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-9)
    assert all(g is not None for name, g in zip(moved, found) if name.endswith(("A_log", "D", "conv1d.weight")))


def test_second_derivatives_of_the_clip():
    model = encoder("videomamba", backend="reference").double()
    assert torch.autograd.gradgradcheck(lambda x: model(x).square().sum(), clip().requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("trunk", ["videomamba_tiny", "hybrid_tiny", "vit_tiny"])
def test_a_whole_predictor_has_second_derivatives(trunk):
    model = predictor(trunk, backend="reference").double()
    tokens = torch.randn(1, 2, 24, dtype=torch.float64, requires_grad=True)
    seen, wanted = torch.tensor([[0, 3]]), torch.tensor([[1, 2]])
    assert torch.autograd.gradgradcheck(lambda z: model(z, None, seen, wanted).sum(), tokens, fast_mode=True)


@pytest.mark.parametrize("kind", ENCODERS)
def test_transforms_of_a_whole_encoder(kind):
    model, x = encoder(kind, backend="reference").double(), clip()

    def loss(x):
        return model(x).square().sum()

    way = torch.ones_like(x)
    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    (second,) = torch.autograd.grad((first * way).sum(), leaf)
    torch.testing.assert_close(jvp(grad(loss), (x,), (way,))[1], second)
    torch.testing.assert_close(vmap(model)(clip(batch=2)[:, None])[:, 0], model(clip(batch=2)))


@needs_kernels
@pytest.mark.parametrize("backend", ["auto", "cpu", "chunked"])
@pytest.mark.parametrize("kind", ["videomamba", "one direction"])
def test_other_backends_refuse_what_they_cannot_do(kind, backend):
    model, x = encoder(kind, backend=backend), clip(torch.float32)
    for use in (
        lambda: penalty(model, x),
        lambda: grad(lambda x: model(x).sum())(x),
        lambda: jvp(model, (x,), (x,)),
        lambda: vmap(model)(x[None]),
    ):
        with pytest.raises(RuntimeError, match=REFUSED):
            use()
    model(x).sum().backward()  # as ever


@pytest.mark.parametrize("kind", ENCODERS)
def test_numbers_do_not_depend_on_the_backend(kind):
    want, x = encoder(kind).double(), clip(batch=2)
    for backend in ("auto", "reference", "chunked"):
        found = encoder(kind, backend=backend)
        torch.testing.assert_close(found(x.float()).double(), want(x), rtol=1e-3, atol=1e-4)


@needs_kernels
@pytest.mark.parametrize(("backend", "ours"), [("auto", True), ("reference", False), ("chunked", False)])
def test_reference_runs_no_compiled_operator(backend, ours, monkeypatch):
    calls = []
    monkeypatch.setattr(compiled, "need_library", lambda: calls.append(1) or compiled.library())
    encoder("videomamba", backend=backend)(clip(torch.float32)).sum().backward()
    assert bool(calls) == ours


@pytest.mark.parametrize("kind", ["videomamba", "vit"])
def test_a_file_is_loaded_for_a_backend(kind, tmp_path, monkeypatch):
    from src.models.registry import BACKBONES, BackboneConfig

    name = ENCODERS[kind][0]
    row = {"videomamba_tiny": BackboneConfig("mamba", 24, 2), "vit_tiny": BackboneConfig("attention", 24, 2, 3)}[name]
    monkeypatch.setitem(BACKBONES, name, row)
    made = create_encoder(name, **{**CLIPS, "patch_size": 8})
    save_atomic({"target_encoder": made.state_dict()}, tmp_path / "x.pth")
    loaded = load_encoder(tmp_path / "x.pth", backend="reference")
    found = [g for g in penalty(loaded, clip(torch.float32)) if g is not None]
    assert sum(g.abs().sum() for g in found) > 0
    assert "backend" not in adapt_state_dict(open_weights(tmp_path / "x.pth")).spec.options
    with pytest.raises(UserError, match=r"^backend 'gpu' is not known: choose auto, reference, "):
        load_encoder(tmp_path / "x.pth", backend="gpu")


def test_an_unknown_backend_is_one_line():
    for make in (lambda: encoder("videomamba", backend="torch"), lambda: predictor("hybrid_tiny", backend="fast")):
        with pytest.raises(UserError, match="is not known: choose auto, reference, chunked, cpu, cuda, triton"):
            make()
