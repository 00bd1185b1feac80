"""The command lines as a user meets them: real processes, exit codes, one line to stderr."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

VM_TINY = "configs/pretrain/vm_tiny.yaml"
SSV2 = "configs/pretrain/vm_tiny_ssv2.yaml"


# What takes long to import, and is not needed to answer a question.
SLOW = {"av", "matplotlib", "numpy", "PIL", "scipy", "sklearn", "submitit", "timm", "torch"}


def run(*words, module="app.main", options=()):
    line = [sys.executable, *options, "-m", module, *words]
    done = subprocess.run(line, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("module", ["app.main", "app.main_distributed"])
def test_help_is_quick(module):
    code, out, err = run("--help", module=module)
    assert code == 0
    assert err == ""
    assert "--fname" in out
    assert "key=value" in out
    _, _, imports = run("--help", module=module, options=["-X", "importtime"])
    names = {line.split("|")[-1].strip() for line in imports.splitlines()}
    assert module.split(".")[0] in names
    assert not names & SLOW


def test_mistakes_end_with_one_line_and_2():
    cases = {
        (): "command line: --fname is missing: name a config, as configs/pretrain/vm_tiny.yaml (see --help)",
        ("--fnmae", VM_TINY): "command line: there is no option --fnmae; did you mean --fname? (see --help)",
        ("--fname",): "command line: argument --fname: expected one argument (see --help)",
        ("--fname", "configs/pretrain/vm_tinny.yaml"): "configs/pretrain/vm_tinny.yaml: no such file; did you mean "
        "configs/pretrain/vm_tiny.yaml?",
        ("--fname", VM_TINY, "lr"): "command line: 'lr' is not of the form key=value, as in optimization.lr=3e-4",
        (
            "--fname",
            VM_TINY,
            "data.pach_size=8",
        ): "command line: unknown key data.pach_size; did you mean data.patch_size?",
        ("--fname", VM_TINY, "--devices=a=b"): "command line: unknown key a; known here: app, nodes, "
        "tasks_per_node, data, data_aug, logging, loss, mask, meta, model, optimization, probe, study",
        (
            "--fname",
            "configs/pretrain/vm_tiny_ssv2.yaml",
        ): "configs/pretrain/vm_tiny_ssv2.yaml: data.datasets is not set: "
        "point it at your list of training videos (or pass data.datasets=[/path/to/train.csv])",
    }
    with ThreadPoolExecutor(2) as pool:
        for words, done in zip(cases, pool.map(lambda words: run(*words), cases), strict=True):
            code, out, err = done
            assert (code, out, err) == (2, "", f"error: {cases[words]}\n"), words


def test_a_device_that_does_not_exist():
    # The overrides come after --devices: they are no devices.
    code, out, err = run("--fname", VM_TINY, "--devices", "cuda:98", "cuda:99", "optimization.epochs=1")
    assert (code, out) == (2, "")
    assert err.startswith("error: command line: --devices: there is no device 'cuda:98' here; there is: ")
    assert err.endswith("cpu\n")
    assert err.count("\n") == 1


def test_dry_run_on_a_cluster(tmp_path):
    words = ["--fname", VM_TINY, "--folder", str(tmp_path), "--partition", "low", "--dry-run", "nodes=2"]
    code, out, err = run(*words, module="app.main_distributed")
    assert (code, out, err) == (0, f"{VM_TINY}: vjepa, 2 x 1 processes -> runs/vm_tiny\n", "")
    assert list(tmp_path.iterdir()) == []


def test_keys():
    code, out, _ = run("--keys")
    assert code == 0
    assert "\n  optimization.ema = [0.998, 1.0]\n      momentum of the target encoder, first and last" in out
