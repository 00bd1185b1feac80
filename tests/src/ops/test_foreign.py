"""mamba-ssm's and causal-conv1d's backends, with stand-ins for the packages where they and a GPU are missing."""

import importlib
import sys
from types import ModuleType

import pytest
import torch

import src.ops
from src.ops import causal_conv1d as conv
from src.ops import foreign
from src.ops import selective_scan as scan
from src.ops.selective_scan.check import NAMES, Case, make_inputs
from src.ops.selective_scan.inputs import ScanInputs
from src.ops.selective_scan.reference import selective_scan_reference


def broken(*args, **kwargs):
    raise TypeError("'NoneType' object is not callable")


def of_another_gpu(*args, **kwargs):
    raise RuntimeError("CUDA error: no kernel image is available\nfor execution on the device")


def works(u, delta, A, B, C, *rest):
    assert u.requires_grad and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    return selective_scan_reference(ScanInputs.of([u, delta, A, B, C, None, None, None], False, False))


@pytest.fixture
def packages(monkeypatch):
    """install(scan's function, convolution's function, their kernels) -> as if both packages were there, on a CPU."""
    here = (
        "src.ops.selective_scan.cuda",
        "src.ops.cuda_conv1d",
        "src.ops.selective_scan.triton",
        "src.ops.triton_conv1d",
    )

    def forget():
        for cache in (scan._loads, conv._loads, conv._cuda, conv._triton):
            cache.cache_clear()
        scan._loaded.pop("cuda", None)
        scan._loaded.pop("triton", None)
        for name in here:
            sys.modules.pop(name, None)
        for name in ("cuda_conv1d", "triton_conv1d"):
            vars(src.ops).pop(name, None)

    def install(scan_fn=works, conv_fn=broken, kernels=("selective_scan_cuda", "causal_conv1d_cuda")):
        for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.selective_scan_interface", "causal_conv1d", *kernels):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        sys.modules["mamba_ssm.ops.selective_scan_interface"].selective_scan_fn = scan_fn
        sys.modules["causal_conv1d"].causal_conv1d_fn = conv_fn
        monkeypatch.setitem(sys.modules, "triton", None)
        monkeypatch.setattr(foreign, "DEVICE", torch.device("cpu"))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        forget()

    before = {name: sys.modules.get(name) for name in here}
    loaded = dict(scan._loaded)
    yield install
    monkeypatch.undo()
    forget()
    scan._loaded.update(loaded)
    sys.modules.update({name: module for name, module in before.items() if module is not None})


def on_cuda(x):
    """What the choice sees of a CUDA tensor."""
    return type("Sketch", (), {"dtype": x.dtype, "device": torch.device("cuda")})()


def test_auto_takes_a_kernel_that_runs(packages):
    packages(works, lambda x, weight, bias, activation: x * weight[:, 0, None])
    with torch.inference_mode():
        assert scan.choose_backend("cuda", torch.float32, 16) == "cuda"
        assert conv._choose(on_cuda(torch.zeros(1)), 4) == "cuda"
    assert conv._choose(on_cuda(torch.zeros(1)), 5) == "torch"
    assert "cuda" in scan.available_backends("cuda")


@pytest.mark.parametrize("call", [broken, of_another_gpu])
def test_auto_passes_over_a_kernel_that_does_not_run(packages, caplog, call):
    packages(call, call)
    for _ in range(2):  # asked once
        assert scan.choose_backend("cuda", torch.float32, 16) == "chunked"
        assert conv._choose(on_cuda(torch.zeros(1)), 4) == "torch"
    assert [m.split(",")[0] for m in caplog.messages] == ["mamba-ssm is installed", "causal-conv1d is installed"]
    assert not [m for m in caplog.messages if "\n" in m]
    assert "cuda" not in scan.available_backends("cuda")


def test_a_package_without_its_kernel_counts_as_missing(packages):
    packages(works, kernels=())
    assert scan.choose_backend("cuda", torch.float32, 16) == "chunked"
    assert conv._choose(on_cuda(torch.zeros(1)), 4) == "torch"
    inputs = make_inputs(Case())
    with pytest.raises(ImportError, match=r"selective_scan_cuda.*install mamba-ssm .* with their kernels: MAMBA_KEEP"):
        scan.selective_scan(**{name: inputs[name] for name in NAMES}, backend="cuda")
    with pytest.raises(
        ImportError, match=r"causal_conv1d_cuda.*install mamba-ssm and causal-conv1d with their kernels"
    ):
        conv.causal_conv1d(torch.zeros(1, 2, 3), torch.zeros(2, 4), backend="cuda")


def test_each_kernel_is_a_matter_of_its_own(packages):
    packages(works, kernels=("selective_scan_cuda",))
    assert scan.choose_backend("cuda", torch.float32, 16) == "cuda"
    assert conv._choose(on_cuda(torch.zeros(1)), 4) == "torch"


def test_without_a_gpu_nothing_is_tried(packages, monkeypatch):
    def never(*args):
        raise AssertionError("CUDA was touched")

    packages(never)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", never)
    assert "cuda" not in scan.available_backends("cuda")
    assert scan.choose_backend("cuda", torch.float32, 16) == "chunked"


def strict(x, weight, bias=None, activation=None):
    """Refuses what causal-conv1d's kernel refuses."""
    batch_stride, channel_stride, time_stride = x.stride()
    assert 1 in (channel_stride, time_stride)
    if channel_stride == 1 and time_stride > 1:
        assert not (x.shape[1] % 8 or batch_stride % 8 or time_stride % 8)
    assert x.data_ptr() % 16 == 0
    return conv.causal_conv1d_torch(x, weight, bias, activation)


def channels_innermost(batch, channels, length, row=None, at=0):
    whole = torch.randn(batch, length, row or channels)
    return whole[:, :, at : at + channels].transpose(1, 2)


LAYOUTS = {
    "time innermost": (torch.randn(2, 12, 9), True),
    "channels innermost": (channels_innermost(2, 16, 9), True),
    "a half of a projection": (channels_innermost(2, 16, 9, row=32, at=16), True),
    "channels no multiple of 8": (channels_innermost(2, 12, 9), False),
    "rows no multiple of 8": (channels_innermost(2, 16, 9, row=20), False),
    "an odd distance between clips": (torch.randn(2 * 147).as_strided((2, 16, 9), (147, 1, 16)), False),
    "at an odd address": (channels_innermost(2, 16, 9, row=32, at=1), False),
    "one step, 12 channels": (channels_innermost(2, 12, 1), False),
    "neither innermost": (torch.randn(2, 16, 18)[:, :, ::2], False),
    "expanded": (torch.randn(1, 16, 1).expand(2, 16, 9), False),
    "a part of longer rows": (torch.randn(2, 16, 17)[:, :, :8], False),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_convolution_gets_what_it_can_read(packages, layout):
    packages(works, strict)
    to_kernel_layout = conv._cuda().to_kernel_layout
    x, as_it_is = LAYOUTS[layout]
    weight = torch.randn(x.shape[1], 4)
    found = to_kernel_layout(x)
    assert (found is x) == as_it_is and torch.equal(found, x)
    torch.testing.assert_close(strict(found, weight), conv.causal_conv1d_torch(x, weight))


def test_gradients_of_the_convolution_come_in_what_it_can_read(packages):
    seen = []

    class Watch(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            seen.append(grad.stride())
            return grad

    packages(works, lambda x, weight, bias, activation: Watch.apply(strict(x, weight)))
    x, weight = torch.randn(2, 16, 9, requires_grad=True), torch.randn(16, 4)
    grad = channels_innermost(2, 16, 9, row=20)
    conv._cuda().convolve(x, weight, None, None, False).backward(grad)
    assert seen == [(144, 9, 1)]
    (want,) = torch.autograd.grad(conv.causal_conv1d_torch(x, weight), x, grad)
    torch.testing.assert_close(x.grad, want)


def test_a_foreign_operator_is_refused_a_second_derivative(packages):
    """It would lose terms: its backward calls a kernel, of which autograd sees nothing."""

    class Kernel(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, *rest):
            ctx.save_for_backward(x)
            ctx.rest = len(rest)
            return x * x

        @staticmethod
        def backward(ctx, grad):
            return 2 * ctx.saved_tensors[0].detach() * grad.detach(), *[None] * ctx.rest

    packages(lambda *args: Kernel.apply(*args), lambda x, *args, **options: Kernel.apply(x))
    inputs = make_inputs(Case())
    u = inputs["u"].requires_grad_()
    given = ScanInputs.of([inputs[n] for n in ("u", "delta", "A", "B", "C", "D", "delta_bias", "z")], True, True)
    scan_of_theirs = importlib.import_module("src.ops.selective_scan.cuda").scan
    for name, run in (
        ("selective_scan", lambda: scan_of_theirs(given)),
        ("causal_conv1d", lambda: conv._cuda().convolve(u, torch.randn(u.shape[1], 4), None, "silu", True)),
    ):
        (first,) = torch.autograd.grad(run().sum(), u)
        torch.testing.assert_close(first, 2 * u.detach())
        (grad,) = torch.autograd.grad(run().sum(), u, create_graph=True)
        assert torch.equal(grad.detach(), first)
        with pytest.raises(RuntimeError, match=f"^{name}: no second derivative"):
            (grad.square().sum() + u.pow(3).sum()).backward()
