"""`~` at the front of a path."""

from __future__ import annotations

import argparse
import pwd
from pathlib import Path

import pytest

from src.utils.errors import UserError
from src.utils.paths import expand_user, path_argument


@pytest.mark.parametrize(
    ("path", "expanded"),
    [
        ("~", "/home/me"),
        ("~/a b/", "/home/me/a b/"),
        ("a/~", "a/~"),
        ("./~/a", "./~/a"),
        ("/~", "/~"),
        ("", ""),
        ("https://x/~me/a.tar", "https://x/~me/a.tar"),
    ],
)
def test_the_home_folder(monkeypatch, path, expanded):
    monkeypatch.setenv("HOME", "/home/me")
    assert expand_user(path) == expanded and path_argument(path) == Path(expanded)


def test_the_home_folder_of_a_user():
    root = pwd.getpwuid(0)
    assert expand_user(f"~{root.pw_name}/a") == f"{root.pw_dir}/a"
    with pytest.raises(UserError, match=r"~nobody-here/a: there is no user 'nobody-here'; write \./~nobody-here/a"):
        expand_user("~nobody-here/a")
    with pytest.raises(argparse.ArgumentTypeError, match="no user 'nobody-here'"):
        path_argument("~nobody-here/a")
