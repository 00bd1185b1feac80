"""Every backend against the float64 reference: outputs and all gradients, over the whole matrix of cases."""

import dataclasses
import os

import pytest
import torch

from src.ops import compiled
from src.ops.selective_scan import available_backends, selective_scan
from src.ops.selective_scan import cpu as cpu_backend
from src.ops.selective_scan.check import NAMES, TOLERANCE, Case, cases, errors, make_inputs, reference, run

DEVICE = os.environ.get("SCAN_TEST_DEVICE", "cpu")  # benchmarks/gpu.sh sets cuda
# Triton's interpreter is too slow for the whole matrix; test_triton.py takes the small cases.
BACKENDS = [b for b in available_backends(DEVICE) if b != "reference" and not (b == "triton" and DEVICE == "cpu")]
needs_kernels = pytest.mark.skipif(compiled.find_library() is None, reason=compiled.MISSING)


def name_of(case: Case) -> str:
    base = Case()
    changed = {f.name: getattr(case, f.name) for f in dataclasses.fields(Case)}
    return "-".join(f"{k}={v}" for k, v in changed.items() if v != getattr(base, k)) or "base"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", cases(), ids=name_of)
def test_matches_reference(case, backend):
    for name, error in errors(case, backend, DEVICE).items():
        assert error < TOLERANCE[torch.float32], name


@needs_kernels
@pytest.mark.parametrize("lanes", [4, 8])
@pytest.mark.parametrize("case", [c for c in cases() if c.length <= 300 and c.shift > -100][::3], ids=name_of)
def test_narrower_instruction_sets_match_reference(case, lanes, monkeypatch):
    monkeypatch.setattr(cpu_backend, "_MAX_LANES", lanes)
    for name, error in errors(case, "cpu").items():
        assert error < TOLERANCE[torch.float32], name


@needs_kernels
@pytest.mark.parametrize("threads", [2, 3, 5])
@pytest.mark.parametrize("batch", [1, 3])
def test_sums_over_channels_are_right_however_threads_share_them(threads, batch):
    torch.set_num_threads(threads)
    case = Case(batch=batch, channels=130, length=160)
    for name, error in errors(case, "cpu").items():
        assert error < TOLERANCE[torch.float32], name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reverse", [False, True])
def test_half_precision_inputs(backend, dtype, reverse):
    case = Case(reverse=reverse)
    for name, error in errors(case, backend, DEVICE, dtype).items():
        assert error < TOLERANCE[dtype], name
    inputs = make_inputs(case, dtype)
    leaves = [inputs[n].to(DEVICE).requires_grad_() for n in NAMES]
    out = selective_scan(*leaves, delta_softplus=True, backend=backend)
    assert out.dtype == dtype
    for leaf, grad in zip(leaves, torch.autograd.grad(out.sum(), leaves)):
        assert grad.dtype == leaf.dtype


@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_step_beside_bfloat16_input(backend):
    case = Case()
    inputs = make_inputs(case, torch.bfloat16)
    inputs["delta"] = inputs["delta"].float() + 1e-3
    want = run(case, inputs, "reference", work=torch.float64)["out"]
    got = run(case, inputs, backend, DEVICE)["out"]
    assert (got - want).abs().max() / want.abs().max() < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("reverse", [False, True])
def test_gradcheck_of_the_reference(reverse):
    generator = torch.Generator().manual_seed(0)

    def new(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    u, delta, z, B, C, D, bias = new(2, 3, 5), new(2, 3, 5), new(2, 3, 5), new(2, 2, 5), new(2, 2, 5), new(3), new(3)
    A = (-torch.rand(3, 2, generator=generator, dtype=torch.float64) - 0.1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *x: selective_scan(*x, delta_softplus=True, reverse=reverse, backend="reference"),
        (u, delta, A, B, C, D, z, bias),
    )


def test_reference_is_the_recurrence_written_out():
    u, delta = torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[0.5, 1.0, 2.0]]])
    A, B, C = torch.tensor([[-1.0]]), torch.tensor([[[1.0, -1.0, 0.5]]]), torch.tensor([[[2.0, 1.0, 1.0]]])
    h1 = 0.5 * 1 * 1.0
    h2 = torch.exp(torch.tensor(-1.0)).item() * h1 + 1.0 * -1 * 2.0
    h3 = torch.exp(torch.tensor(-2.0)).item() * h2 + 2.0 * 0.5 * 3.0
    out = selective_scan(u, delta, A, B, C, backend="reference")
    torch.testing.assert_close(out, torch.tensor([[[2 * h1, h2, h3]]]))


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_reverse_is_flip_scan_flip(backend):
    inputs = make_inputs(Case(length=70))
    x = {n: inputs[n].to(DEVICE) for n in NAMES}
    flipped = {n: t.flip(-1) if t.dim() == 3 else t for n, t in x.items()}
    got = selective_scan(**x, delta_softplus=True, reverse=True, backend=backend)
    want = selective_scan(**flipped, delta_softplus=True, backend=backend).flip(-1)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_so_and_stays_where_it_belongs(backend, name, bad):
    case = Case(batch=2, channels=5, length=70, states=3)
    inputs = make_inputs(case)
    x = inputs[name] = inputs[name].clone()
    place = (1, 2, 40) if x.dim() == 3 else (1,) * x.dim()
    x[place] = bad
    want = run(case, inputs, "reference", work=torch.float64)["out"]
    got = run(case, inputs, backend, DEVICE)["out"]
    assert not got[~want.isfinite()].isfinite().any()
    healthy = want.isfinite()
    torch.testing.assert_close(got[healthy], want[healthy], rtol=1e-4, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_deterministic_at_a_fixed_thread_count(threads):
    torch.set_num_threads(threads)
    case = Case(batch=3, channels=70, length=200)
    inputs = make_inputs(case)
    first = run(case, inputs, "cpu")
    for _ in range(3):
        again = run(case, inputs, "cpu")
        assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", [Case(), Case(batch=1, channels=40, length=130, states=5, reverse=True)], ids=name_of)
def test_no_result_depends_on_what_memory_held_before(case, backend):
    if DEVICE == "cpu":
        torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)  # fills every torch.empty with NaN
    try:
        assert torch.empty(3).isnan().all()
        worst = errors(case, backend, DEVICE)
    finally:
        torch.use_deterministic_algorithms(False)
    assert max(worst.values()) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_empty_sequences(backend):
    case = Case(length=0)
    got = run(case, make_inputs(case), backend, DEVICE)
    assert got["out"].shape == (2, 19, 0)
    assert not got["dA"].any()


def test_reference_results_are_finite_for_every_case():
    for case in cases():
        if case.length <= 300:
            assert all(x.isfinite().all() for x in reference(case).values())
