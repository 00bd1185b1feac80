"""RMSNorm against its definition in float64."""

import pytest
import torch
import torch.nn.functional as F

from src.ops import compiled
from src.ops.rms_norm import rms_norm

needs_kernels = pytest.mark.skipif(compiled.find_library() is None, reason=compiled.MISSING)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", [(2, 500, 192), (1, 7, 5), (3, 1, 33), (0, 4, 16), (4, 16)])
@pytest.mark.parametrize("contiguous", [True, False])
def test_matches_definition(shape, threads, contiguous):
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, generator=generator)
    x = x if contiguous else torch.stack([x, x], dim=-1)[..., 1]
    weight, grad = torch.randn(shape[-1], generator=generator), torch.randn(*shape, generator=generator)
    results = []
    for dtype in (torch.float64, torch.float32):
        a, w = x.to(dtype).detach().requires_grad_(), weight.to(dtype).requires_grad_()
        if dtype == torch.float64:
            y = a * (a.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * w
        else:
            y = rms_norm(a, w, 1e-5)
        results.append([y, *torch.autograd.grad(y, (a, w), grad.to(dtype))])
    for want, got in zip(*results):
        assert got.shape == want.shape
        if want.numel():
            assert (got - want).abs().max() <= 1e-5 * want.abs().max()


@needs_kernels
def test_operator_keeps_the_rules_of_pytorch():
    args = (torch.randn(2, 3, 20, requires_grad=True), torch.randn(20, requires_grad=True), 1e-5)
    torch.library.opcheck(torch.ops.vjepa_mamba.norm_forward.default, args)


@needs_kernels
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_spoils_its_row_only(bad):
    x = torch.randn(3, 40)
    x[1, 7] = bad
    y = rms_norm(x, torch.ones(40), 1e-5)
    assert not y[1, 7].isfinite()
    assert y[[0, 2]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_go_to_pytorch(dtype):
    x, weight = torch.randn(3, 8, dtype=dtype), torch.ones(8, dtype=dtype)
    assert torch.equal(rms_norm(x, weight, 1e-5), F.rms_norm(x, (8,), weight, 1e-5))
