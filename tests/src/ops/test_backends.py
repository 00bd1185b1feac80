"""Which backend runs: the automatic choice, the word said about it, and what a missing one answers."""

import logging
import sys
from types import SimpleNamespace

import pytest
import torch

import src.ops
import src.ops.selective_scan as scan
from src.ops import causal_conv1d, compiled
from src.ops.selective_scan.check import NAMES, Case, make_inputs
from src.ops.selective_scan.operator import Backend, register
from src.ops.triton_version import require_triton

needs_kernels = pytest.mark.skipif(compiled.find_library() is None, reason=compiled.MISSING)
HAS_MAMBA = False
try:
    import mamba_ssm  # noqa: F401

    HAS_MAMBA = True
except ImportError:
    pass


def arguments(**changes):
    inputs = make_inputs(Case(**changes))
    return {name: inputs[name] for name in NAMES} | {"delta_softplus": True}


@pytest.fixture
def fresh(monkeypatch):
    """Forgets what was loaded and said, before and after."""

    loads = scan._loads

    def forget():
        compiled.library.cache_clear()
        loads.cache_clear()
        scan._said.clear()

    forget()
    yield monkeypatch
    monkeypatch.undo()
    forget()


@needs_kernels
def test_auto_takes_the_compiled_kernel_on_the_cpu(fresh, caplog):
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            scan.selective_scan(**arguments())
    assert [r.message for r in caplog.records if "backend" in r.message] == ["selective_scan on cpu: backend cpu"]


def test_auto_keeps_float64():
    assert scan.choose_backend("cpu", torch.float64, 16) == "chunked"


def test_auto_has_a_backend_for_any_state_size():
    assert scan.choose_backend("cpu", torch.float32, 65) == "chunked"
    scan.selective_scan(**arguments(states=65, length=10))


@pytest.mark.parametrize(
    ("loads", "expected"), [({"cuda", "triton"}, "triton"), ({"cuda"}, "cuda"), (set(), "chunked")]
)
def test_auto_on_cuda_prefers_triton_then_mamba_ssm(fresh, loads, expected):
    fresh.setattr(scan, "_loads", (loads | {"chunked"}).__contains__)
    assert scan.choose_backend("cuda", torch.bfloat16, 16) == expected


def test_without_a_compiler_everything_works_after_one_warning(fresh, caplog):
    with_kernels = scan.selective_scan(**arguments())
    compiled.library.cache_clear()
    fresh.setattr(compiled, "find_library", lambda: None)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            without = scan.selective_scan(**arguments())
            causal_conv1d.causal_conv1d(torch.randn(1, 4, 9), torch.randn(4, 4), activation="silu")
    torch.testing.assert_close(without, with_kernels, rtol=1e-5, atol=1e-5)
    warnings = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "C++ compiler" in warnings[0]
    assert scan.available_backends("cpu")[:2] == ["reference", "chunked"]
    assert "cpu" not in scan.available_backends("cpu")
    for call in (
        lambda: scan.selective_scan(**arguments(), backend="cpu"),
        lambda: causal_conv1d.causal_conv1d(torch.randn(1, 4, 9), torch.randn(4, 4), backend="cpu"),
    ):
        with pytest.raises(RuntimeError, match=r"C\+\+ compiler"):
            call()


def test_a_broken_or_foreign_library_is_refused_with_its_path(fresh, tmp_path, caplog):
    broken = tmp_path / "_kernels.so"
    broken.write_bytes(b"not a library")
    fresh.setattr(compiled, "find_library", lambda: broken)
    with caplog.at_level(logging.WARNING):
        assert compiled.library() is None
    assert str(broken) in caplog.text


@needs_kernels
def test_a_library_of_another_version_is_refused(fresh, caplog):
    fresh.setattr(compiled, "ABI", -1)
    with caplog.at_level(logging.WARNING):
        assert compiled.library() is None
    assert "another version" in caplog.text


@pytest.mark.skipif(HAS_MAMBA, reason="mamba-ssm is installed")
def test_missing_mamba_ssm_says_what_to_install():
    with pytest.raises(ImportError, match="mamba-ssm and causal-conv1d"):
        scan.selective_scan(**arguments(), backend="cuda")
    with pytest.raises(ImportError, match="mamba-ssm and causal-conv1d"):
        causal_conv1d.causal_conv1d(torch.randn(1, 4, 9), torch.randn(4, 4), backend="cuda")


def test_missing_triton_says_what_to_install(fresh):
    fresh.setitem(sys.modules, "triton", None)
    fresh.delitem(sys.modules, "src.ops.selective_scan.triton", raising=False)
    fresh.delitem(scan._loaded, "triton", raising=False)
    with pytest.raises(ImportError, match="pip install -U triton"):
        scan.selective_scan(**arguments(), backend="triton")


def test_an_old_triton_is_passed_over_and_refused_by_name(fresh):
    language = SimpleNamespace()
    fresh.setitem(sys.modules, "triton", SimpleNamespace(__version__="3.4.0", language=language))
    fresh.setitem(sys.modules, "triton.language", language)
    for module in [
        name for name in sys.modules if name.startswith(("src.ops.selective_scan.triton", "src.ops.triton_c"))
    ]:
        fresh.delitem(sys.modules, module)
    fresh.delattr(src.ops, "triton_conv1d", raising=False)
    fresh.delitem(scan._loaded, "triton", raising=False)
    scan._loads.cache_clear()
    assert scan.choose_backend("cuda", torch.float32, 16) != "triton"
    with pytest.raises(ImportError, match=r"triton 3\.4\.0 is too old: 3\.5 or newer is needed.*pip install -U triton"):
        scan.selective_scan(**arguments(), backend="triton")
    x, weight = torch.zeros(1, 2, 3), torch.zeros(2, 4)
    causal_conv1d._triton.cache_clear()
    with pytest.raises(ImportError, match=r"triton 3\.4\.0 is too old"):
        causal_conv1d.causal_conv1d(x, weight, backend="triton")
    for version in ("3.5.1", "3.6.0+git1", "4.0"):
        fresh.setitem(sys.modules, "triton", SimpleNamespace(__version__=version))
        require_triton()


def test_unknown_backend_names_the_known_ones():
    with pytest.raises(ValueError, match="known: auto, reference, chunked, cpu, cuda, triton"):
        scan.selective_scan(**arguments(), backend="gpu")
    with pytest.raises(ValueError, match="known: auto, torch, cpu, triton, cuda"):
        causal_conv1d.causal_conv1d(torch.randn(1, 4, 9), torch.randn(4, 4), backend="gpu")


@needs_kernels
def test_state_sizes_beyond_the_compiled_kernel():
    with pytest.raises(ValueError, match="up to 64"):
        scan.selective_scan(**arguments(states=65, length=10), backend="cpu")


@pytest.mark.parametrize("name", ["delta", "A", "B", "C", "D", "z", "delta_bias"])
def test_shapes_that_do_not_fit_are_named(name):
    args = arguments()
    args[name] = args[name][:-1]
    with pytest.raises(ValueError, match=name):
        scan.selective_scan(**args)


def test_u_must_have_three_axes():
    with pytest.raises(ValueError, match=r"u must be \(B, E, L\)"):
        scan.selective_scan(**(arguments() | {"u": torch.randn(3)}))


def test_a_backend_is_registered_once():
    with pytest.raises(RuntimeError):
        register("scan", ["cpu"], 1, Backend(print, print, print, kept=1))


def test_memory_can_be_kept_where_there_is_glibc():
    assert compiled.keep_freed_memory() in (True, False)
