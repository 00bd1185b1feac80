"""Commands that have another name now answer with one line that gives it."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

MOVED = {
    "app.report": "tools.report",
    "app.study": "tools.study",
    "app.study_page": "tools.study.page",
    "app.sweep_status": "tools.sweep_status",
    "app.keys": "tools.keys",
    "src.utils.export": "src.models.export",
    "src.datasets.motion": "src.datasets.embedded.generate",
}


@pytest.mark.parametrize(("old", "new"), MOVED.items(), ids=MOVED)
@pytest.mark.parametrize("words", [[], ["runs/vm_tiny", "--help"]], ids=["bare", "with words"])
def test_a_moved_command_names_the_new_one(old, new, words):
    done = subprocess.run([sys.executable, "-m", old, *words], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: `python -m {old}` is now `python -m {new}`\n"
    assert find_spec(new)
