"""The compiled kernels as PyTorch operators: schema, meta function, torch.compile, autocast, inference mode."""

import pytest
import torch

from src.ops import compiled
from src.ops.causal_conv1d import causal_conv1d
from src.ops.selective_scan import Direction, selective_scan, selective_scan_bidirectional
from src.ops.selective_scan.check import NAMES, Case, make_inputs

OPERATOR = (*Direction._fields, "z")  # the operators' order
pytestmark = pytest.mark.skipif(compiled.find_library() is None, reason=compiled.MISSING)


def leaves(case: Case, dtype: torch.dtype = torch.float32):
    inputs = make_inputs(case, dtype)
    return [inputs[n].requires_grad_() if inputs[n] is not None else None for n in NAMES]


def in_order(tensors):
    return [dict(zip(NAMES, tensors))[name] for name in OPERATOR]


@pytest.mark.parametrize(
    "case", [Case(), Case(D=False, z=False, bias=False, layout="time", states=5), Case(batch=0)], ids=str
)
def test_scan_operator_keeps_the_rules_of_pytorch(case):
    args = (*in_order(leaves(case)), case.softplus, case.reverse, True)
    torch.library.opcheck(torch.ops.vjepa_mamba.scan_forward.default, args)


@pytest.mark.parametrize("gated", [True, False])
def test_operator_of_both_directions_keeps_the_rules_of_pytorch(gated):
    (*ahead, z, bias), (*back, _, back_bias) = leaves(Case()), leaves(Case(states=5, D=False))
    args = (*ahead, bias, *back, back_bias, z if gated else None, True, False, True)
    torch.library.opcheck(torch.ops.vjepa_mamba.bidirectional_forward.default, args)


def test_scan_backward_operator_keeps_the_rules_of_pytorch():
    inputs = make_inputs(Case())
    tensors = [inputs[n] for n in OPERATOR]
    _, checkpoints = torch.ops.vjepa_mamba.scan_forward(*tensors, True, False, True)
    args = (inputs["grad"], *tensors, checkpoints, True, False)
    torch.library.opcheck(
        torch.ops.vjepa_mamba.scan_backward.default, args, test_utils=("test_schema", "test_faketensor")
    )


@pytest.mark.parametrize("with_bias", [True, False])
def test_conv_operator_keeps_the_rules_of_pytorch(with_bias):
    x = torch.randn(2, 30, 9).transpose(1, 2).requires_grad_()
    args = (x, torch.randn(9, 4).requires_grad_(), torch.randn(9).requires_grad_() if with_bias else None, True, False)
    torch.library.opcheck(torch.ops.vjepa_mamba.conv_forward.default, args)


@pytest.mark.parametrize("reverse", [False, True])
def test_torch_compile_sees_one_graph(reverse):
    def both(u, delta, A, B, C, D, z, delta_bias, weight):
        x = causal_conv1d(u * 2, weight, activation="silu", reverse=reverse)
        return selective_scan(x, delta, A, B, C, D, z, delta_bias, True, reverse).mul(3)

    args = [*leaves(Case()), torch.randn(19, 4, requires_grad=True)]
    compiled_both = torch.compile(both, fullgraph=True, backend="aot_eager")
    want, got = both(*args), compiled_both(*args)
    torch.testing.assert_close(got, want)
    grads = [torch.autograd.grad(y.square().sum(), args) for y in (want, got)]
    for expected, actual in zip(*grads):
        torch.testing.assert_close(actual, expected)


def test_torch_compile_sees_both_directions_as_one_operator():
    tensors = leaves(Case())

    def both(u, delta, A, B, C, D, z, delta_bias):
        side = Direction(u, delta, A, B, C, D, delta_bias)
        return selective_scan_bidirectional(side, side, z, True)

    torch.testing.assert_close(torch.compile(both, fullgraph=True, backend="aot_eager")(*tensors), both(*tensors))


def test_autocast_leaves_the_scan_as_it_is():
    args = leaves(Case())
    want = selective_scan(*args, delta_softplus=True)
    with torch.autocast("cpu", torch.bfloat16):
        got = selective_scan(*args, delta_softplus=True)
    assert got.dtype == torch.float32
    assert torch.equal(got, want)


def test_inference_keeps_no_checkpoints():
    case = Case(length=300)
    tensors = [t.detach() for t in leaves(case)]
    assert torch.ops.vjepa_mamba.scan_forward(*in_order(tensors), True, False, False)[1].numel() == 0
    with torch.inference_mode():
        y = selective_scan(*tensors, delta_softplus=True)
    torch.testing.assert_close(y, selective_scan(*leaves(case), delta_softplus=True).detach())


def test_result_has_the_memory_layout_of_the_input():
    channels_last = selective_scan(*leaves(Case()), delta_softplus=True)
    assert channels_last.stride(1) == 1
    assert selective_scan(*leaves(Case(layout="time")), delta_softplus=True).stride(2) == 1


def test_only_some_gradients_wanted():
    inputs = make_inputs(Case())
    inputs["A"].requires_grad_()
    out = selective_scan(*(inputs[n] for n in NAMES), delta_softplus=True)
    out.sum().backward()
    assert inputs["A"].grad.abs().sum() > 0


def test_extra_memory_of_forward_and_backward_is_below_the_size_of_u():
    args = leaves(Case(batch=2, channels=128, length=512, z=False, D=False))
    with torch.profiler.profile(profile_memory=True) as profile:
        out = selective_scan(*args, delta_softplus=True)
        grads = torch.autograd.grad(out, [x for x in args if x is not None], torch.ones_like(out))
    results = sum(g.untyped_storage().nbytes() for g in (out, *grads)) + out.untyped_storage().nbytes()  # ones_like
    held = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    u = args[0]
    assert results <= peak <= results + u.numel() * u.element_size()
