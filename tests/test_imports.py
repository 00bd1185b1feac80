"""The import contract of pyproject.toml holds, and is broken by any arrow that goes up or aside."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).parents[1]
CONTRACT = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]


def lint(folder):
    """lint-imports in a folder: its exit code and what it says, each line without its wrapping spaces."""
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program, "--no-cache"], cwd=folder, capture_output=True, text=True)
    return done.returncode, " ".join(done.stdout.split())


@pytest.fixture
def tree(tmp_path):
    """The Python files of the packages, and the contract."""
    for package in CONTRACT["root_packages"]:
        for path in (ROOT / package).rglob("*.py"):
            copy = tmp_path / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_contract_is_kept():
    code, said = lint(ROOT)
    assert code == 0, said
    assert "Contracts: 1 kept, 0 broken." in said


def test_every_package_of_src_is_on_a_floor():
    (contract,) = CONTRACT["contracts"]
    assert contract["type"] == "layers"
    floors = {name for floor in contract["layers"] for name in floor.split(" | ")}
    folders = {f"src.{path.parent.name}" for path in (ROOT / "src").glob("*/__init__.py")}
    assert floors == folders | set(CONTRACT["root_packages"]) - {"src"}


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("app.scaffold", "evals.scaffold"),
        ("evals.scaffold", "app.main"),
        ("evals.scaffold", "tools.keys"),
        ("app.main", "benchmarks.backbones"),
        ("src.utils.errors", "app.main"),
        ("src.utils.errors", "src.ops.rms_norm"),
        ("src.ops.rms_norm", "src.utils.errors"),
        ("src.config.schema", "src.launch.devices"),
        ("src.launch.devices", "src.masks.utils"),
        ("src.masks.utils", "src.datasets.lists"),
        ("src.datasets.lists", "src.models.registry"),
        ("src.models.registry", "src.jepa.objective"),
        ("src.jepa.objective", "src.probes.linear_knn"),
        ("src.probes.linear_knn", "src.jepa.objective"),
        ("src.jepa.build", "app.vjepa.config"),
    ],
    ids=lambda name: name,
)
def test_an_added_arrow_breaks_it(tree, importer, imported):
    path = tree / f"{importer.replace('.', '/')}.py"
    assert (tree / f"{imported.replace('.', '/')}.py").exists()
    path.write_text(f"{path.read_text()}\n\nimport {imported}\n")
    code, said = lint(tree)
    assert code == 1, said
    assert "0 kept, 1 broken" in said
    assert f"{importer} -> {imported}" in said
