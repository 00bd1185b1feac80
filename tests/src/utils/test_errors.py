"""A command line ends with the right code, and a user's mistake is one line."""

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


def test_ctrl_c_is_130():
    assert code_of(raiser(KeyboardInterrupt())) == 130


def test_a_bug_keeps_its_traceback():
    with pytest.raises(KeyError, match="bug"):
        run_cli(raiser(KeyError("bug")))
