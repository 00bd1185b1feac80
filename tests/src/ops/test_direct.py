"""Calls that pass by PyTorch's dispatcher: what they have to keep of an operator's behaviour."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from src.ops import compiled, direct
from src.ops.causal_conv1d import causal_conv1d
from src.ops.selective_scan import selective_scan
from src.ops.selective_scan.check import NAMES, Case, make_inputs

pytestmark = pytest.mark.skipif(compiled.find_library() is None, reason=compiled.MISSING)


def scanned():
    tensors = {name: x.requires_grad_() for name, x in make_inputs(Case()).items() if name in NAMES}
    return tensors, selective_scan(**tensors, delta_softplus=True)


def convolved():
    tensors = {"x": torch.randn(2, 5, 9, requires_grad=True), "weight": torch.randn(5, 4, requires_grad=True)}
    return tensors, causal_conv1d(**tensors, activation="silu")


@pytest.mark.parametrize("call", [scanned, convolved])
def test_a_direct_call_is_not_an_operator(call):
    with torch.profiler.profile() as profile:
        call()
    assert not [e.key for e in profile.key_averages() if e.key.startswith("vjepa_mamba")]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("call", [scanned, convolved])
def test_modes_and_tracers_see_an_operator(call):
    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(str(func))
            return func(*args, **kwargs or {})

    names: list[str] = []
    with Seen():
        call()
    assert any(name.startswith("vjepa_mamba") for name in names)

    made = call()[0]
    x = made["u" if call is scanned else "x"].detach()
    rest = {name: t.detach() for name, t in made.items() if t is not x and name not in ("u", "x")}

    def run(x):
        if call is scanned:
            return selective_scan(u=x, **rest, delta_softplus=True)
        return causal_conv1d(x=x, **rest, activation="silu")

    traced = torch.jit.trace(run, x, check_trace=False)
    torch.testing.assert_close(traced(x.flip(0)), run(x.flip(0)))  # no constant of the tracing
    assert "vjepa_mamba" in str(traced.graph)


def test_a_checkpointed_call_has_the_same_gradients():
    tensors, out = scanned()
    again = checkpoint(lambda *args: selective_scan(*args, delta_softplus=True), *tensors.values(), use_reentrant=False)
    wanted, found = (torch.autograd.grad(y.square().sum(), list(tensors.values())) for y in (out, again))
    assert all(torch.equal(a, b) for a, b in zip(wanted, found))


def test_what_an_operator_returns_does_not_share_memory():
    whole = torch.arange(6.0)
    first, second = direct.apart(list(whole.split(3)))
    second.zero_()
    assert torch.equal(first, torch.arange(3.0))
    assert torch.equal(whole, torch.arange(6.0))
