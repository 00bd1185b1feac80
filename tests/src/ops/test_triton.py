"""The Triton kernels on the CPU, in Triton's interpreter: a process of its own, since the mode is chosen at import."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TOO_BIG = 1e-5


def interpret() -> None:
    import torch

    from src.ops.selective_scan import Direction, selective_scan_bidirectional
    from src.ops.selective_scan.check import NAMES, Case, errors, make_inputs, run

    torch.set_num_threads(1)
    small = {
        "both tiles": Case(batch=1, channels=17, length=66, states=3),
        "reverse": Case(batch=2, channels=3, length=65, states=2, reverse=True, layout="time"),
        "no options": Case(batch=1, channels=2, length=9, D=False, z=False, bias=False, softplus=False),
        "length 1": Case(length=1, reverse=True),
        "batch 0": Case(batch=0),
        "saturated": Case(batch=1, length=5, shift=30.0),
        "underflowing": Case(batch=1, length=5, shift=-30.0),
        "strided": Case(batch=1, length=5, layout="strided"),
    }
    worst = {name: max(errors(case, "triton").values(), default=0.0) for name, case in small.items()}
    worst["bfloat16"] = max(errors(Case(batch=1, length=5), "triton", dtype=torch.bfloat16).values()) / 2e3
    case = Case(batch=1, channels=3, length=8, states=2)
    for name in NAMES:
        inputs = make_inputs(case)
        inputs[name] = inputs[name].clone()
        inputs[name][(0, 1, 4) if inputs[name].dim() == 3 else (1,) * inputs[name].dim()] = float("nan")
        want, got = run(case, inputs, "reference")["out"], run(case, inputs, "triton")["out"]
        worst[f"nan in {name}"] = float(not torch.equal(want.isnan(), got.isnan()))
    names = ("u", "delta", "A", "B", "C", "D", "delta_bias")
    sides = [make_inputs(case, seed=seed) for seed in (0, 1)]
    results = []
    for backend in ("reference", "triton"):
        leaves = [{n: side[n].detach().requires_grad_() for n in names} for side in sides]
        z = sides[0]["z"].detach().requires_grad_()
        out = selective_scan_bidirectional(*(Direction(**side) for side in leaves), z, True, backend)
        wanted = [z, *(x for side in leaves for x in side.values())]
        results.append([out, *torch.autograd.grad(out, wanted, sides[0]["grad"])])
    worst["both directions"] = max(((a - b).abs().max() / a.abs().max()).item() for a, b in zip(*results))
    print(json.dumps(worst))


def test_triton_kernels_in_the_interpreter():
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed (pip install triton)")
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, __file__], capture_output=True, text=True, env=environment, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    worst = json.loads(done.stdout)
    assert {name: error for name, error in worst.items() if not error < TOO_BIG} == {}


def test_triton_refuses_cpu_tensors_outside_the_interpreter():
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed (pip install triton)")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("running in Triton's interpreter")
    import torch

    from src.ops.selective_scan import selective_scan

    x = torch.randn(1, 2, 3)
    with pytest.raises(RuntimeError, match="CUDA"):
        selective_scan(x, x, -torch.ones(2, 1), x[:, :1], x[:, :1], backend="triton")


@pytest.mark.parametrize("pointer", ["*fp32", "*bf16"])
@pytest.mark.parametrize("options", [True, False])
def test_kernels_compile_for_a_gpu_that_is_not_here(pointer, options):
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed (pip install triton)")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from src.ops.selective_scan import triton as kernels

    along = {f"{name}_ptr" for name in ("u", "delta", "B", "C", "z", "add", "out", "g", "du", "dd", "dz", "dadd")}
    unit_strides = {f"{name}_e" for name in ("u", "d", "z", "a", "o", "g", "du", "dd", "dz", "da")} | {"B_n", "C_n"}
    constants = {"T": 64, "BE": 32, "BN": 16, "REVERSE": options, "SOFTPLUS": options, "KEEP": options}
    constants |= {f"HAS_{name}": options for name in ("D", "Z", "BIAS", "ADD")} | dict.fromkeys(unit_strides, 1)
    for kernel in (kernels._forward_kernel, kernels._backward_kernel):
        names = kernel.arg_names
        types = {n: (pointer if n in along else "*fp32") if n.endswith("_ptr") else "i32" for n in names}
        fixed = {n: constants[n] for n in names if n in constants}
        signature = types | dict.fromkeys(fixed, "constexpr")
        source = ASTSource(kernel, signature, {(names.index(n),): value for n, value in fixed.items()})
        built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1})
        assert built.asm["cubin"]
        assert built.metadata.shared < 48 * 1024


if __name__ == "__main__":
    interpret()
