"""Both directions in one call against two float64 reference scans, their sum gated afterwards."""

import pytest
import torch
import torch.nn.functional as F

from src.ops.selective_scan import Direction, available_backends, selective_scan, selective_scan_bidirectional
from src.ops.selective_scan.check import Case, make_inputs

BACKENDS = [b for b in available_backends("cpu") if b not in ("reference", "triton")]
FIELDS = ("u", "delta", "A", "B", "C", "D", "delta_bias")


def sides(case):
    return [make_inputs(case, seed=seed) for seed in (0, 1)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("case", [Case(length=130), Case(batch=1, channels=40, states=5, D=False, bias=False)], ids=str)
def test_matches_two_scans(backend, gated, case):
    inputs = sides(case)
    z = inputs[0]["z"] if gated else None
    results = []
    for dtype in (torch.float64, torch.float32):
        leaves = [
            {n: s[n].detach().to(dtype).requires_grad_() if s[n] is not None else None for n in FIELDS} for s in inputs
        ]
        gate = z.detach().to(dtype).requires_grad_() if gated else None
        if dtype == torch.float64:
            out = selective_scan(**leaves[0], delta_softplus=True, backend="reference")
            out = out + selective_scan(**leaves[1], delta_softplus=True, reverse=True, backend="reference")
            out = out * F.silu(gate) if gated else out
        else:
            out = selective_scan_bidirectional(Direction(**leaves[0]), Direction(**leaves[1]), gate, True, backend)
        wanted = [x for side in leaves for x in side.values() if x is not None] + ([gate] if gated else [])
        results.append([out, *torch.autograd.grad(out, wanted, inputs[0]["grad"].to(dtype))])
    for want, got in zip(*results):
        assert (got - want).abs().max() < 1e-5 * want.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16(backend):
    inputs = [make_inputs(Case(), torch.bfloat16, seed) for seed in (0, 1)]
    out = selective_scan_bidirectional(
        *(Direction(**{n: s[n] for n in FIELDS}) for s in inputs), inputs[0]["z"], True, backend
    )
    wide = [{n: s[n].double() for n in FIELDS} for s in inputs]
    want = selective_scan(**wide[0], delta_softplus=True, backend="reference")
    want = want + selective_scan(**wide[1], delta_softplus=True, reverse=True, backend="reference")
    want = want * F.silu(inputs[0]["z"].double())
    assert out.dtype == torch.bfloat16
    assert (out.double() - want).abs().max() < 3e-2 * want.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", ["u", "z"])
def test_nan_stays_nan(backend, bad):
    ahead, back = sides(Case())
    ahead[bad] = ahead[bad].clone()
    ahead[bad][1, 2, 30] = float("nan")
    directions = [Direction(**{n: s[n] for n in FIELDS}) for s in (ahead, back)]
    out = selective_scan_bidirectional(*directions, ahead["z"], True, backend)
    expected = torch.zeros_like(out, dtype=torch.bool)
    expected[1, 2, slice(30, None) if bad == "u" else 30] = True
    assert torch.equal(out.isnan(), expected)


def test_shapes_that_do_not_fit_are_named():
    ahead, back = (Direction(**{n: s[n] for n in FIELDS}) for s in sides(Case()))
    with pytest.raises(ValueError, match="delta"):
        selective_scan_bidirectional(ahead, back._replace(delta=back.delta[:1]))
