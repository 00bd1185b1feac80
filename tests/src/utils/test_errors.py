"""A command line ends with the right code, and a user's mistake is one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from src.utils.errors import UserError, run_cli


def code_of(fn):
    with pytest.raises(SystemExit) as end:
        run_cli(fn)
    return end.value.code


def raiser(error):
    def fn():
        raise error

    return fn


def test_success_and_own_code():
    assert code_of(lambda: None) == 0
    assert code_of(lambda: 7) == 7


def test_user_error_is_one_line_and_2(capsys):
    assert code_of(raiser(UserError("the key\n  is wrong"))) == 2
    assert capsys.readouterr().err == "error: the key is wrong\n"


def test_a_name_that_no_terminal_can_show_is_no_crash():
    code = "from src.utils.errors import run_cli; run_cli(lambda: print('caf\\udce9.mp4'))"
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=environment, cwd=Path(__file__).parents[3]
    )
    assert (done.returncode, done.stdout) == (0, b"caf\\udce9.mp4\n")


def test_ctrl_c_is_130():
    assert code_of(raiser(KeyboardInterrupt())) == 130


def test_a_bug_keeps_its_traceback():
    with pytest.raises(KeyError, match="bug"):
        run_cli(raiser(KeyError("bug")))
