"""The wheel is one package that lives beside a project with a `src/` of its own."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from src.models.registry import create_encoder
from src.utils.checkpoint import save_atomic

pytestmark = pytest.mark.slow  # a minute: it installs everything into a new environment
ROOT = Path(__file__).parents[2]
SIZES = {"img_size": 32, "patch_size": 8, "num_frames": 4, "tubelet_size": 2}
USE = """
import sys
import torch
import src
import app
assert (src.MINE, app.MINE) == (7, 8)
from vjepa_mamba.models import load_encoder
from vjepa_mamba.ops.compiled import has_library
encoder, clip, want = load_encoder("exported"), torch.load("clip.pt"), torch.load("tokens.pt")
torch.testing.assert_close(encoder(clip), want, rtol=1e-4, atol=1e-5)
assert has_library() == (sys.argv[1] == "True"), "the compiled kernels"
assert not [name for name in sys.modules if name.split(".")[0] in ("evals", "tools")]
"""


def run(*command, cwd, env=None):
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of what git tracks, as CI and users have it."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    tracked = run("git", "ls-files", "-z", "-co", "--exclude-standard", cwd=ROOT).split("\0")
    for name in filter(None, tracked):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", out, tree, cwd=out)
    return next(out.glob("*.whl"))


def test_it_is_one_package(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"vjepa_mamba", f"{wheel.name.split('-cp')[0]}.dist-info"}
    text = "".join(zipfile.ZipFile(wheel).read(name).decode() for name in names if name.endswith(".py"))
    for line in text.splitlines():
        assert not line.lstrip().startswith(("from src", "import src", "from app", "from evals", "from tools")), line
    assert "vjepa_mamba/tools/report/page.html" in names


def test_it_works_beside_a_project_with_its_own_src(wheel, tmp_path):
    run(sys.executable, "-m", "venv", tmp_path / "env", cwd=tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel, cwd=tmp_path)
    for name, value in (("src", 7), ("app", 8)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"MINE = {value}\n")
    encoder = create_encoder("videomamba_nano", **SIZES).eval()
    state = {"target_encoder": encoder.state_dict(), "spec": {"name": "videomamba_nano", "options": SIZES}}
    save_atomic(state, tmp_path / "a.pth")
    clip = torch.randn(2, 3, 4, 32, 32)
    torch.save(clip, tmp_path / "clip.pt")
    with torch.no_grad():
        torch.save(encoder(clip), tmp_path / "tokens.pt")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    export = ("vjepa_mamba.models.export", "--checkpoint", "a.pth", "--out", "exported")
    run(python, "-m", *export, cwd=tmp_path, env=env)
    (tmp_path / "use.py").write_text(USE)
    compiled = any("_kernels" in name for name in zipfile.ZipFile(wheel).namelist())
    run(python, "use.py", compiled, cwd=tmp_path, env=env)
    for module in ("app.main", "app.main_distributed", "evals.main", "evals.extract", "tools.study", "tools.report"):
        shown = run(python, "-m", f"vjepa_mamba.{module}", "--help", cwd=tmp_path, env=env)
        assert f"python -m vjepa_mamba.{module}" in shown
    page = run(python, "-m", "vjepa_mamba.app.main", "--keys", cwd=tmp_path, env=env)
    assert "optimization.lr" in page
