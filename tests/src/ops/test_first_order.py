"""Derivatives beyond the first, forward mode and torch.func: right, or refused by name; first gradients stay."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from src.ops import compiled
from src.ops.causal_conv1d import causal_conv1d
from src.ops.rms_norm import rms_norm
from src.ops.selective_scan import Direction, selective_scan, selective_scan_bidirectional
from src.ops.selective_scan.check import NAMES, Case, make_inputs

REFUSED = "through a compiled operator or the chunked scan: choose PyTorch's own operations, with backend='reference'"
INPUTS = make_inputs(Case(batch=1, channels=3, length=9, states=2))


def like(x):
    return {name: value.to(x.dtype) for name, value in INPUTS.items() if name in NAMES and name != "u"}


def scan(backend, reverse=False):
    return lambda u: selective_scan(u=u, **like(u), delta_softplus=True, reverse=reverse, backend=backend)


def both_directions(backend):
    def run(u):
        given = like(u)
        z, bias = given.pop("z"), given.pop("delta_bias")
        back = Direction(u.flip(1), given["delta"], given["A"], given["C"], given["B"])
        return selective_scan_bidirectional(Direction(u, **given, delta_bias=bias), back, z, True, backend)

    return run


def conv(backend):
    taps = torch.linspace(-1, 2, 12).view(3, 4)
    return lambda x: causal_conv1d(x, taps.to(x.dtype), None, "silu", backend=backend)


def norm(backend):
    weight = torch.linspace(1, 2, 9)
    return lambda x: rms_norm(x, weight.to(x.dtype), 1e-5, backend)


PLAIN = {
    "scan": scan("reference"),
    "reversed scan": scan("reference", reverse=True),
    "both directions": both_directions("reference"),
    "conv": conv("torch"),
    "norm": norm("torch"),
}
COMPILED = {
    ("scan", "cpu"): scan("cpu"),
    ("scan", "chunked"): scan("chunked"),
    ("reversed scan", "cpu"): scan("cpu", reverse=True),
    ("both directions", "cpu"): both_directions("cpu"),
    ("both directions", "chunked"): both_directions("chunked"),
    ("conv", "cpu"): conv("cpu"),
    ("norm", "auto"): norm("auto"),
}
needs_kernels = pytest.mark.skipif(compiled.find_library() is None, reason=compiled.MISSING)


def x(dtype=torch.float32):
    return torch.randn(1, 3, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def twice(run, x, loss=lambda y: y.sum()):
    """Of a gradient penalty beside a term that has a second derivative of its own: a lost term is not noticed else."""
    x = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss(run(x)), x, create_graph=True)
    return torch.autograd.grad(grad.square().sum() + x.pow(3).sum(), x)[0]


def dual(run, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(run(forward_ad.make_dual(x, torch.ones_like(x)))).tangent


def dual_gradient(run, x):
    x = x.clone().requires_grad_()
    out = run(x)
    with forward_ad.dual_level():
        grad = forward_ad.make_dual(torch.ones_like(out), torch.ones_like(out))
        return forward_ad.unpack_dual(torch.autograd.grad(out, x, grad, create_graph=True)[0]).tangent


def batched_gradients(run, x):
    x = x.clone().requires_grad_()
    out = run(x)
    return torch.autograd.grad(out, x, torch.stack([torch.ones_like(out)] * 2), is_grads_batched=True)[0]


def squares(run):
    return lambda x: run(x).square().sum()


USES = {
    "create_graph, of a sum": twice,
    "create_graph, of squares": lambda run, x: twice(run, x, lambda y: y.square().sum()),
    "autograd.functional.hvp": lambda run, x: torch.autograd.functional.hvp(squares(run), x, torch.ones_like(x))[1],
    "autograd.functional.jvp": lambda run, x: torch.autograd.functional.jvp(run, x, torch.ones_like(x))[1],
    "func.grad of grad": lambda run, x: torch.func.grad(lambda w: torch.func.grad(squares(run))(w).sum())(x),
    "func.grad": lambda run, x: torch.func.grad(squares(run))(x),
    "func.vjp": lambda run, x: torch.func.vjp(run, x)[1](torch.ones_like(x))[0],
    "func.jvp": lambda run, x: torch.func.jvp(run, (x,), (torch.ones_like(x),))[1],
    "func.jacrev": lambda run, x: torch.func.jacrev(squares(run))(x),
    "func.hessian": lambda run, x: torch.func.hessian(squares(run))(x),
    "vmap": lambda run, x: torch.vmap(run)(torch.stack([x, 2 * x])),
    "forward mode": dual,
    "forward mode of a gradient": dual_gradient,
    "is_grads_batched": batched_gradients,
}


@needs_kernels
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("name", COMPILED, ids=" ".join)
def test_what_an_operator_cannot_do_is_refused(name, use):
    with pytest.raises(RuntimeError, match=f"^(causal_conv1d|rms_norm|selective_scan): no .* {REFUSED}") as caught:
        USES[use](COMPILED[name], x())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("name", PLAIN)
def test_the_plain_operations_can(name, use):
    """float32 against float64, and float64's second derivatives against differences of its first."""
    run = PLAIN[name]
    want = USES[use](run, x(torch.float64))
    assert want is not None and want.abs().sum() > 0
    torch.testing.assert_close(USES[use](run, x()).double(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", PLAIN)
def test_second_derivatives_are_those_of_finite_differences(name):
    run = PLAIN[name]
    assert torch.autograd.gradgradcheck(run, x(torch.float64).requires_grad_(), fast_mode=True)


@needs_kernels
@pytest.mark.parametrize("name", COMPILED, ids=" ".join)
def test_under_a_dispatch_mode_it_is_refused_too(name):
    class Nothing(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **kwargs or {})

    with Nothing(), pytest.raises(RuntimeError, match="no second derivative"):
        twice(COMPILED[name], x())


@needs_kernels
@pytest.mark.parametrize("name", COMPILED, ids=" ".join)
def test_first_gradients_stay_what_they_were(name):
    """Under create_graph and in a checkpoint as without: nothing is refused before it is asked for."""
    run, leaf = COMPILED[name], x().requires_grad_()

    def gradient(of, **options):
        return torch.autograd.grad(of(leaf).square().sum(), leaf, **options)[0]

    found = gradient(run)
    torch.testing.assert_close(found, gradient(PLAIN[name[0]]), rtol=1e-4, atol=1e-4)
    assert torch.equal(gradient(run, create_graph=True), found)
    assert torch.equal(gradient(lambda x: checkpoint(run, x, use_reentrant=False)), found)


@needs_kernels
@pytest.mark.parametrize("use", ["func.grad", "func.jvp", "vmap"])
@pytest.mark.parametrize("name", [("scan", "cpu"), ("conv", "cpu"), ("norm", "auto")], ids=" ".join)
def test_compiled_code_is_refused_too(name, use):
    torch.compiler.reset()
    with pytest.raises(RuntimeError, match=r"no torch\.func transform"):
        torch.compile(lambda x: USES[use](COMPILED[name], x), backend="eager")(x())
