"""The causal convolution against its definition, both backends, both directions."""

import pytest
import torch
import torch.nn.functional as F

from src.ops import compiled
from src.ops.causal_conv1d import causal_conv1d

BACKENDS = ["torch", *(["cpu"] if compiled.find_library() else [])]


def written_out(x, weight, bias, activation, reverse):
    if reverse:
        return written_out(x.flip(-1), weight, bias, activation, False).flip(-1)
    width, length = weight.shape[1], x.shape[2]
    y = torch.zeros_like(x)
    for t in range(length):
        for k in range(width):
            source = t - width + 1 + k
            if source >= 0:
                y[:, :, t] = y[:, :, t] + weight[:, k] * x[:, :, source]
    y = y + bias[:, None] if bias is not None else y
    return F.silu(y) if activation else y


def make(batch, channels, width, length, layout, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shape = (batch, channels, length) if layout == "time" else (batch, length, channels)
    x = torch.randn(*shape, generator=generator).to(dtype)
    x = x if layout == "time" else x.transpose(1, 2)
    weight, bias = torch.randn(channels, width, generator=generator), torch.randn(channels, generator=generator)
    return x, weight, bias, torch.randn(batch, channels, length, generator=generator)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize(
    ("batch", "channels", "width", "length", "layout"),
    [
        (2, 20, 4, 70, "channels"),
        (1, 130, 4, 65, "channels"),
        (2, 7, 3, 64, "time"),
        (3, 64, 4, 1, "channels"),
        (1, 64, 7, 3, "channels"),
        (2, 5, 1, 10, "time"),
        (0, 8, 4, 10, "channels"),
    ],
)
@pytest.mark.parametrize("with_bias", [True, False])
def test_matches_definition(backend, reverse, activation, batch, channels, width, length, layout, with_bias):
    x, weight, bias, grad = make(batch, channels, width, length, layout)
    tensors = (x, weight, bias) if with_bias else (x, weight)
    wide = [t.double().requires_grad_() for t in tensors]
    same = [t.clone(memory_format=torch.preserve_format).requires_grad_() for t in tensors]
    want = written_out(*wide, *([] if with_bias else [None]), activation, reverse)
    got = causal_conv1d(*same, activation=activation, reverse=reverse, backend=backend)
    results = zip((want, *torch.autograd.grad(want, wide, grad.double())), (got, *torch.autograd.grad(got, same, grad)))
    for expected, actual in results:
        assert actual.shape == expected.shape
        if expected.numel():
            assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16(backend):
    x, weight, bias, _ = make(2, 70, 4, 66, "channels", torch.bfloat16)
    got = causal_conv1d(x, weight, bias, "silu", backend=backend)
    want = written_out(x.double(), weight.double(), bias.double(), "silu", False)
    assert got.dtype == torch.bfloat16
    assert (got.double() - want).abs().max() < 2e-2 * want.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("reverse", [False, True])
def test_what_is_not_finite_stays_so(backend, bad, reverse):
    x, weight, bias, _ = make(1, 6, 4, 30, "channels")
    x[0, 2, 10] = bad
    got = causal_conv1d(x, weight, bias, "silu", reverse, backend)
    reached = torch.zeros(1, 6, 30, dtype=torch.bool)
    reached[0, 2, slice(7, 11) if reverse else slice(10, 14)] = True
    want = written_out(x, weight, bias, "silu", reverse)
    assert not got[~want.isfinite()].isfinite().any()
    assert got[~reached].isfinite().all()


@pytest.mark.skipif("cpu" not in BACKENDS, reason=compiled.MISSING)
def test_no_result_depends_on_what_memory_held_before_nor_on_the_run():
    torch.set_num_threads(3)
    x, weight, bias, grad = make(3, 150, 4, 100, "channels")
    runs = []
    torch.use_deterministic_algorithms(True)  # fills every torch.empty with NaN
    try:
        for _ in range(3):
            leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
            y = causal_conv1d(*leaves, activation="silu", backend="cpu")
            runs.append([y, *torch.autograd.grad(y, leaves, grad)])
    finally:
        torch.use_deterministic_algorithms(False)
    for run in runs:
        assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(run, runs[0]))


def test_wrong_arguments_are_named():
    x, weight = torch.randn(1, 4, 9), torch.randn(4, 4)
    with pytest.raises(ValueError, match="weight"):
        causal_conv1d(x, torch.randn(5, 4))
    with pytest.raises(ValueError, match="bias"):
        causal_conv1d(x, weight, torch.randn(5))
    with pytest.raises(ValueError, match="activation"):
        causal_conv1d(x, weight, activation="relu")
