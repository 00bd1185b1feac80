"""Lists on disk, and what is said about those that cannot be read."""

from __future__ import annotations

import numpy as np
import pytest

from src.datasets.lists import PackedStrings, read_list, resolve
from src.utils.errors import UserError


def test_paths_may_hold_spaces_and_blank_lines_do_not_count(tmp_path):
    (tmp_path / "a.csv").write_text("a b.mp4 3\n\n/abs/c.mp4\t-1\n")
    assert read_list(tmp_path / "a.csv") == (["a b.mp4", "/abs/c.mp4"], [3, -1])


@pytest.mark.parametrize("line", ["only_a_path.mp4", "a.mp4 cat", "a.mp4,3", "a.mp4 1.5"])
def test_a_bad_line_is_named(tmp_path, line):
    (tmp_path / "a.csv").write_text(f"ok.mp4 0\n{line}\n")
    with pytest.raises(UserError, match=r"a\.csv, line 2: expected `path label`"):
        read_list(tmp_path / "a.csv")


def test_missing_empty_binary_or_a_folder(tmp_path):
    with pytest.raises(UserError, match=r"b\.csv does not exist.*data\.datasets"):
        read_list(tmp_path / "b.csv")
    (tmp_path / "e.csv").write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        read_list(tmp_path / "e.csv")
    (tmp_path / "f.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        read_list(tmp_path / "f.csv")
    with pytest.raises(UserError, match="cannot be read"):
        read_list(tmp_path)


def test_npy_lists(tmp_path):
    np.save(tmp_path / "a.npy", np.array(["x.mp4", "y.mp4"]))
    assert read_list(tmp_path / "a.npy") == (["x.mp4", "y.mp4"], [0, 0])
    np.save(tmp_path / "b.npy", np.array([["x.mp4", "2"], ["y.mp4", "5"]]))
    assert read_list(tmp_path / "b.npy") == (["x.mp4", "y.mp4"], [2, 5])
    np.save(tmp_path / "c.npy", np.array([b"x.mp4"]))
    assert read_list(tmp_path / "c.npy") == (["x.mp4"], [0])


def test_npy_lists_with_pickles_or_numbers_are_refused(tmp_path):
    np.save(tmp_path / "p.npy", np.array(["x.mp4", {"y": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="pickle"):
        read_list(tmp_path / "p.npy")
    np.save(tmp_path / "n.npy", np.arange(4))
    with pytest.raises(UserError, match="expected an array"):
        read_list(tmp_path / "n.npy")
    np.save(tmp_path / "l.npy", np.array([["x.mp4", "cat"]]))
    with pytest.raises(UserError, match="integer labels"):
        read_list(tmp_path / "l.npy")


def test_relative_paths_prefer_the_lists_folder(tmp_path, monkeypatch):
    (tmp_path / "list").mkdir()
    (tmp_path / "cwd").mkdir()
    for folder in ("list", "cwd"):
        (tmp_path / folder / "both.mp4").touch()
    (tmp_path / "cwd" / "here.mp4").touch()
    monkeypatch.chdir(tmp_path / "cwd")
    folder = str(tmp_path / "list")
    assert resolve("/abs.mp4", folder) == "/abs.mp4"
    assert resolve("both.mp4", folder) == f"{folder}/both.mp4"
    assert resolve("here.mp4", folder) == "here.mp4"
    assert resolve("nowhere.mp4", folder) == f"{folder}/nowhere.mp4"


def test_packed_strings():
    strings = ["a", "", "été.mp4", "\udcff.mp4", "x" * 300]
    packed = PackedStrings(strings)
    assert list(packed) == strings and len(packed) == 5
    with pytest.raises(IndexError):
        packed[5]
