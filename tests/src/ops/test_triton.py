"""The Triton kernels on the CPU, in Triton's interpreter: processes of their own, since the import chooses the mode."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
LIMITS = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 4e-3}  # bfloat16: the interpreter cuts off, does not round
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="pip install triton")


EVERY_TYPE = ("chunks", "length 1", "N 24")


def scan_cases() -> dict:
    """Small cases, cut into chunks of 16 steps, that reach every branch of the kernels."""
    from src.ops.selective_scan.check import Case

    return {
        "chunks": Case(batch=1, channels=17, length=50, states=3),
        "chunks that fit": Case(batch=1, channels=3, length=32),
        "two blocks": Case(batch=1, channels=33, length=18, states=2, reverse=True, layout="time"),
        "N 24": Case(batch=1, channels=2, length=19, states=24),
        "N 1": Case(batch=1, channels=2, length=21, states=1, reverse=True),
        "no options": Case(batch=1, channels=2, length=19, D=False, z=False, bias=False, softplus=False),
        "no gate": Case(batch=1, channels=2, length=19, z=False, reverse=True),
        "length 1": Case(length=1, reverse=True),
        "length 0": Case(length=0),
        "batch 0": Case(batch=0),
        "saturated": Case(batch=1, channels=3, length=18, shift=30.0),
        "underflowing": Case(batch=1, channels=3, length=18, shift=-30.0),
        "strided": Case(batch=1, channels=3, length=18, layout="strided", reverse=True),
    }


def scan_errors() -> dict[str, float]:
    import torch

    from src.ops.selective_scan import triton as backend
    from src.ops.selective_scan.check import errors

    backend.chunk_steps = lambda *_: 16
    backend.resident_programs = lambda _: 3
    worst = {}
    for name, case in scan_cases().items():
        for dtype in (torch.float32, torch.bfloat16, torch.float16)[: 3 if name in EVERY_TYPE else 1]:
            found = errors(case, "triton", dtype=dtype)
            worst[f"{name} {str(dtype)[6:]}"] = max(found.values(), default=0.0)
    return worst


def nan_errors() -> dict[str, float]:
    """1 where what is not a number does not reach what it should, or reaches more."""
    import torch

    from src.ops.selective_scan.check import NAMES, Case, make_inputs, run

    worst, case = {}, Case(batch=1, channels=3, length=20, states=2)
    for name in NAMES:
        inputs = make_inputs(case)
        inputs[name] = inputs[name].clone()
        inputs[name][(0, 1, 4) if inputs[name].dim() == 3 else (1,) * inputs[name].dim()] = float("nan")
        want, got = run(case, inputs, "reference")["out"], run(case, inputs, "triton")["out"]
        worst[f"nan in {name} float32"] = float(not torch.equal(want.isnan(), got.isnan()))
    return worst


def operator_errors() -> dict[str, float]:
    """The operators that torch.compile sees against direct calls, and a forward alone, cut into chunks or not."""
    import torch

    from src.ops.selective_scan import triton as backend
    from src.ops.selective_scan.check import Case, make_inputs
    from src.ops.selective_scan.inputs import Direction, ScanInputs

    backend.resident_programs = lambda _: 3
    inputs = make_inputs(Case(batch=1, channels=3, length=20, states=2))
    side = [inputs[name].requires_grad_() for name in Direction._fields]
    x = ScanInputs((Direction(*side),), inputs["z"].requires_grad_(), True)
    worst = {}
    for steps in (8, 32):
        backend.chunk_steps = lambda *_, steps=steps: steps
        out = backend.selective_scan_triton(x)
        wanted = [out, *torch.autograd.grad(out, x.tensors, inputs["grad"])]
        through = torch.ops.vjepa_mamba.triton_scan_forward(*x.tensors, True, False, True)[0]
        found = [through, *torch.autograd.grad(through, x.tensors, inputs["grad"])]
        worst[f"operator {steps} float32"] = max((a - b).abs().max().item() for a, b in zip(wanted, found))
        with torch.no_grad():
            worst[f"forward alone {steps} float32"] = (backend.selective_scan_triton(x) - out).abs().max().item()
        checks = ("test_schema", "test_faketensor")
        torch.library.opcheck(
            torch.ops.vjepa_mamba.triton_scan_forward.default, (*x.tensors, True, False, True), test_utils=checks
        )
        with torch.no_grad():
            kept = torch.ops.vjepa_mamba.triton_scan_forward(*x.tensors, True, False, True)[1:]
        given = (inputs["grad"], *(t.detach() for t in x.tensors), *kept, True, False)
        torch.library.opcheck(torch.ops.vjepa_mamba.triton_scan_backward.default, given, test_utils=checks)
    return worst


def both_errors() -> dict[str, float]:
    """Both directions in one call; the second with fewer states, no D, and in another layout."""
    import torch

    from src.ops.selective_scan import Direction, selective_scan_bidirectional
    from src.ops.selective_scan.check import Case, make_inputs

    worst = {}
    base = Case(batch=2, channels=5, length=37)
    others = {"alike": base, "unlike": Case(batch=2, channels=5, length=37, states=5, D=False, layout="time")}
    for kind, second in others.items():
        sides = [make_inputs(base, seed=0), make_inputs(second, seed=1)]
        for gated in (True, False):
            results = []
            for backend in ("reference", "triton"):
                leaves = [
                    {n: s[n].detach().requires_grad_() if s[n] is not None else None for n in Direction._fields}
                    for s in sides
                ]
                z = sides[0]["z"].detach().requires_grad_() if gated else None
                out = selective_scan_bidirectional(*(Direction(**side) for side in leaves), z, True, backend)
                wanted = [x for x in (z, *(x for side in leaves for x in side.values())) if x is not None]
                results.append([out, *torch.autograd.grad(out, wanted, sides[0]["grad"])])
            gaps = [((a - b).abs().max() / a.abs().max()).item() for a, b in zip(*results)]
            worst[f"both {kind} {gated} float32"] = max(gaps)
    return worst


def carry_errors() -> dict[str, float]:
    """A first state in, the last state out, and the states between, in either order of the chunks."""
    import torch

    from src.ops.selective_scan.triton_common import carry_kernel

    worst, (batch, chunks, states, channels) = {}, (2, 5, 3, 7)
    end, total = torch.randn(2, batch, chunks, states, channels), torch.rand(2, batch, chunks, channels)
    A, first, last = -torch.rand(2, channels, states), torch.randn(2, batch, states, channels), torch.empty(0)
    last = torch.empty_like(first)
    for backwards in (False, True):
        got = end.clone()
        carry_kernel[(2 * batch, states)](
            got, total, A[0], A[1], first, last, channels, states, batch, chunks, states, 1,
            REVERSE=backwards, HAS_INIT=True, HAS_LAST=True, BE=32,
        )  # fmt: skip
        h, gap = first.clone(), 0.0
        for chunk in reversed(range(chunks)) if backwards else range(chunks):
            gap = max(gap, (got[:, :, chunk] - h).abs().max().item())
            decay = torch.exp(A.transpose(1, 2)[:, None] * total[:, :, chunk, None])
            h = decay * h + end[:, :, chunk]
        worst[f"carry {backwards} float32"] = max(gap, (last - h).abs().max().item())
    return worst


def conv_errors() -> dict[str, float]:
    import torch

    from src.ops.causal_conv1d import causal_conv1d

    worst = {}
    shapes = [(2, 20, 4, 70, "channels"), (1, 70, 4, 33, "channels"), (2, 7, 3, 64, "time"), (1, 9, 7, 3, "channels")]
    for batch, channels, width, length, layout in [*shapes, (2, 5, 1, 10, "time"), (0, 8, 4, 10, "channels")]:
        for reverse in (False, True):
            for activation, with_bias, dtype in (
                ("silu", True, "float32"),
                (None, False, "float32"),
                ("silu", True, "bfloat16"),
            ):
                shape = (batch, channels, length) if layout == "time" else (batch, length, channels)
                x = torch.randn(shape) if layout == "time" else torch.randn(shape).transpose(1, 2)
                w, b, grad = torch.randn(channels, width), torch.randn(channels), torch.randn(batch, channels, length)
                kind, results = getattr(torch, dtype), []
                for backend, work in (("torch", torch.float64), ("triton", kind)):
                    leaves = [t.to(kind).to(work).requires_grad_() for t in (x, w, b)][: 2 + with_bias]
                    y = causal_conv1d(*leaves, activation=activation, reverse=reverse, backend=backend)
                    results.append([y, *torch.autograd.grad(y, leaves, grad.to(kind).to(work))])
                gaps = [((p - q).abs().max() / p.abs().max()).item() for p, q in zip(*results) if p.any()]
                case = (batch, channels, width, length, layout, reverse, activation)
                worst[f"conv {case} {dtype}"] = max(gaps, default=0)
    return worst


def refusals() -> dict[str, float]:
    """1 where a second derivative, forward mode or torch.func is not refused."""
    import torch

    from src.ops.causal_conv1d import causal_conv1d
    from src.ops.selective_scan import selective_scan

    def scan(u):
        return selective_scan(u, u, -torch.ones(2, 1), u[:, :1], u[:, :1], backend="triton")

    def conv(x):
        return causal_conv1d(x, torch.ones(2, 4), activation="silu", backend="triton")

    def twice(run, x):
        x = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(run(x).sum(), x, create_graph=True)
        (grad.square().sum() + x.pow(3).sum()).backward()

    uses = {
        "create_graph": twice,
        "func.grad": lambda run, x: torch.func.grad(lambda x: run(x).sum())(x),
        "func.jvp": lambda run, x: torch.func.jvp(run, (x,), (x,)),
        "vmap": lambda run, x: torch.vmap(run)(x[None]),
    }
    worst = {}
    for name, run in (("scan", scan), ("conv", conv)):
        for use, call in uses.items():
            try:
                call(run, torch.randn(1, 2, 3))
                worst[f"{name} {use} float32"] = 1.0
            except RuntimeError as error:
                worst[f"{name} {use} float32"] = float("through a compiled operator" not in str(error))
    return worst


@needs_triton
@pytest.mark.parametrize(
    "part", ["scan_errors", "nan_errors", "operator_errors", "both_errors", "carry_errors", "conv_errors", "refusals"]
)
def test_triton_kernels_in_the_interpreter(part):
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, part]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    worst = json.loads(done.stdout)
    assert {name: error for name, error in worst.items() if not error < LIMITS[name.split()[-1]]} == {}


@needs_triton
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="running in Triton's interpreter")
def test_triton_refuses_cpu_tensors_outside_the_interpreter():
    import torch

    from src.ops.causal_conv1d import causal_conv1d
    from src.ops.selective_scan import selective_scan

    x = torch.randn(1, 2, 3)
    with pytest.raises(RuntimeError, match="CUDA"):
        selective_scan(x, x, -torch.ones(2, 1), x[:, :1], x[:, :1], backend="triton")
    with pytest.raises(RuntimeError, match="CUDA"):
        causal_conv1d(x, torch.ones(2, 4), backend="triton")


@needs_triton
def test_a_forward_alone_is_not_cut_where_the_gpu_is_full_without():
    from src.ops.selective_scan.triton import chunk_steps

    assert chunk_steps(128, 384, 1568, False) == 1568
    assert chunk_steps(128, 384, 1568, True) == chunk_steps(32, 384, 1568, False) == 64
    assert chunk_steps(32, 384, 392, True) == 32
    assert chunk_steps(128, 384, 0, False) > 0


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(json.dumps(globals()[sys.argv[1]]()))
