import subprocess
import sys
from pathlib import Path

import pytest
import torch

from src.utils.environment import FILE, append_environment, describe_environment, read_environment
from src.utils.errors import UserError


def test_a_line_for_every_start(tmp_path):
    assert read_environment(tmp_path) == []
    append_environment(tmp_path, torch.device("cpu"), processes=2)
    append_environment(tmp_path, "cpu", processes=1)
    with (tmp_path / FILE).open("a") as file:
        file.write('{"started": "cut sho')
    starts = read_environment(tmp_path)
    assert [start["processes"] for start in starts] == [2, 1]
    assert starts[0]["packages"]["torch"] == torch.__version__ and starts[0]["device"] == "cpu"
    assert starts[0]["python"] == sys.version.split()[0] and starts[0]["cores"] >= 1


def test_code_is_the_commit_where_there_is_one():
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    assert describe_environment()["code"].startswith(commit or "unknown")


def test_a_folder_that_is_gone(tmp_path):
    with pytest.raises(UserError, match=rf"{FILE}: cannot be written"):
        append_environment(tmp_path / "gone", "cpu", 1)
