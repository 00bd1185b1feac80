"""Lists on disk, and what is said about those that cannot be read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from src.datasets.lists import PackedStrings, list_folders, read_list, resolve
from src.utils.errors import UserError


def test_paths_may_hold_spaces_and_blank_lines_do_not_count(tmp_path):
    (tmp_path / "a.csv").write_text("a b.mp4 3\n\n/abs/c.mp4\t-1\n")
    assert read_list(tmp_path / "a.csv") == (["a b.mp4", "/abs/c.mp4"], [3, -1])


@pytest.mark.parametrize(
    "line", ["only_a_path.mp4", "a.mp4 cat", "a.mp4 --5", "a.mp4 1.5", '"a.mp4 3', "a.mp4 9" + "0" * 19]
)
def test_a_bad_line_is_named(tmp_path, line):
    (tmp_path / "a.csv").write_text(f"ok.mp4 0\n{line}\n")
    with pytest.raises(UserError, match=r"a\.csv, line 2: expected `path label`"):
        read_list(tmp_path / "a.csv")


def test_pretraining_needs_no_labels(tmp_path):
    (tmp_path / "a.csv").write_text("a.mp4 3\nb.mp4 cat\nc c.mp4\n")
    assert read_list(tmp_path / "a.csv", labelled=False) == (["a.mp4", "b.mp4", "c c.mp4"], [3, -1, -1])
    (tmp_path / "a.csv").write_text("a.mp4 3\nb.mp4 --5\n")
    with pytest.raises(UserError, match=r"a\.csv, line 2: .*not a whole number"):
        read_list(tmp_path / "a.csv", labelled=False)


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffa.mp4 3\r\nb b.mp4 4\r\n",
        "path label\na.mp4 3\nb b.mp4 4\n",
        "\n\ufeff,Path,Label\n0,a.mp4,3\n1,b b.mp4,4\n"[1:],
        '"a.mp4" 3\n"b b.mp4" 4\n',
        "a.mp4 100 3\nb b.mp4 90 4\n",
        "a.mp4, 3\nb b.mp4, 4\n",
    ],
)
def test_lists_made_elsewhere(tmp_path, text):
    (tmp_path / "a.csv").write_text(text, encoding="utf-8", newline="")
    assert read_list(tmp_path / "a.csv") == (["a.mp4", "b b.mp4"], [3, 4])


def test_an_unknown_header_is_a_line_that_cannot_be_read(tmp_path):
    (tmp_path / "a.csv").write_text("youtube_id,label\nabc,3\n")
    with pytest.raises(UserError, match=r"line 1: .*'youtube_id,label'.*\(a header names its columns path and label\)"):
        read_list(tmp_path / "a.csv")
    (tmp_path / "video").touch()
    (tmp_path / "a.csv").write_text("video label\n")
    assert read_list(tmp_path / "a.csv", labelled=False) == (["video"], [-1]), "a file of that name is no header"


def test_names_that_are_not_utf8_come_back(tmp_path):
    name = os.fsencode(tmp_path) + b"/caf\xe9.mp4"
    Path(os.fsdecode(name)).write_bytes(b"there")
    (tmp_path / "a.csv").write_bytes(b"caf\xe9.mp4 3\n")
    np.save(tmp_path / "a.npy", np.array([[b"caf\xe9.mp4", b"3"]]))
    for kind in ("csv", "npy"):
        ((path,), labels) = read_list(tmp_path / f"a.{kind}")
        assert Path(resolve(path, list_folders(tmp_path / "a.csv"))).read_bytes() == b"there" and labels == [3]


def test_missing_empty_binary_or_a_folder(tmp_path):
    with pytest.raises(UserError, match=r"b\.csv does not exist.*data\.datasets"):
        read_list(tmp_path / "b.csv")
    (tmp_path / "e.csv").write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        read_list(tmp_path / "e.csv")
    (tmp_path / "f.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        read_list(tmp_path / "f.csv")
    (tmp_path / "g.csv").write_bytes(b"a.mp4 1\nb\x00.mp4 2\n")
    with pytest.raises(UserError, match=r"g\.csv, line 2: holds a zero byte"):
        read_list(tmp_path / "g.csv")
    with pytest.raises(UserError, match="cannot be read"):
        read_list(tmp_path)


def test_npy_lists(tmp_path):
    np.save(tmp_path / "a.npy", np.array(["x.mp4", "y.mp4"]))
    assert read_list(tmp_path / "a.npy", labelled=False) == (["x.mp4", "y.mp4"], [-1, -1])
    with pytest.raises(UserError, match="2 of 2 paths have no integer labels"):
        read_list(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", np.array([["x.mp4", "2"], ["y.mp4", "5"]]))
    assert read_list(tmp_path / "b.npy") == (["x.mp4", "y.mp4"], [2, 5])
    np.save(tmp_path / "c.npy", np.array([b"x.mp4"]))
    assert read_list(tmp_path / "c.npy", labelled=False) == (["x.mp4"], [-1])


@pytest.mark.parametrize("name", ["/x/v1\0x.mp4", "/x/\ud800.mp4"])
def test_what_is_no_name_in_an_npy_list(name, tmp_path):
    np.save(tmp_path / "n.npy", np.array([name, "/x/b.mp4"]))
    with pytest.raises(UserError, match=r"n\.npy: .* is no file name"):
        read_list(tmp_path / "n.npy", labelled=False)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("path label num_frames\nv1.mp4 3 50\nv2.mp4 4 50\n", [3, 4]),
        ("path num_frames label\nv1.mp4 50 3\nv2.mp4 50 4\n", [3, 4]),
        ("label path\n3 v1.mp4\n4 v2.mp4\n", [3, 4]),
        ("label,path\n3,v1.mp4\n4,v2.mp4\n", [3, 4]),
        ("path label\nv1.mp4 3\nv2.mp4 4\n", [3, 4]),
    ],
)
def test_a_header_says_which_column_is_which(text, labels, tmp_path):
    (tmp_path / "a.csv").write_text(text)
    assert read_list(tmp_path / "a.csv") == (["v1.mp4", "v2.mp4"], labels)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v1.mp4 1,2\n", "line 1: .*several labels: a video has one"),
        ("path,class,label\nv1.mp4,cat,3\n", r"2 columns of labels \(class, label\)"),
        ("path label\rv2.mp4 4\n", "line 1: "),
    ],
)
def test_what_could_mean_two_things_is_refused(text, message, tmp_path):
    (tmp_path / "a.csv").write_bytes(text.encode())
    with pytest.raises(UserError, match=message):
        read_list(tmp_path / "a.csv")


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
    np.save(tmp_path / "l.npy", np.array([["x.mp4", "9" * 20]]))
    with pytest.raises(UserError, match=r"integer labels: .*64 bits"):
        read_list(tmp_path / "l.npy")
    np.savez(tmp_path / "z.npz", a=np.zeros(1))
    (tmp_path / "z.npz").rename(tmp_path / "z.npy")
    (tmp_path / "e.npy").touch()
    for name, message in (("z", "an archive"), ("e", "not a plain array")):
        with pytest.raises(UserError, match=message):
            read_list(tmp_path / f"{name}.npy")


def test_relative_paths_prefer_the_lists_folder(tmp_path, monkeypatch):
    (tmp_path / "list").mkdir()
    (tmp_path / "cwd").mkdir()
    for folder in ("list", "cwd"):
        (tmp_path / folder / "both.mp4").touch()
    (tmp_path / "cwd" / "here.mp4").touch()
    monkeypatch.chdir(tmp_path / "cwd")
    folder = str(tmp_path / "list")
    folders = list_folders(tmp_path / "list/a.csv")
    assert folders == (folder, "")
    assert resolve("/abs.mp4", folders) == "/abs.mp4"
    assert resolve("both.mp4", folders) == f"{folder}/both.mp4"
    assert resolve("here.mp4", folders) == "here.mp4"
    assert resolve("nowhere.mp4", folders) == f"{folder}/nowhere.mp4"


def test_a_linked_list_starts_at_its_link_then_at_its_file(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").mkdir()
    (tmp_path / "link/a.csv").symlink_to("../real/a.csv")
    for name in ("real/a.csv", "real/both.mp4", "link/both.mp4", "real/r.mp4", "link/l.mp4"):
        (tmp_path / name).touch()
    for given in (tmp_path / "link/a.csv", Path("link/a.csv"), Path("a.csv")):
        monkeypatch.chdir(tmp_path / "link" if given == Path("a.csv") else tmp_path)
        folders = list_folders(given)
        names = ["both.mp4", "r.mp4", "l.mp4", "none.mp4"]
        assert [str(Path(resolve(name, folders)).relative_to(tmp_path)) for name in names] == [
            "link/both.mp4",
            "real/r.mp4",
            "link/l.mp4",
            "link/none.mp4",
        ]


def test_a_listed_path_may_start_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "~odd name.mp4").touch()
    folders = list_folders(tmp_path / "a.csv")
    assert resolve("~/a.mp4", folders) == f"{tmp_path}/home/a.mp4"
    assert resolve("~odd name.mp4", folders) == f"{tmp_path}/~odd name.mp4"


def test_packed_strings():
    strings = ["a", "", "été.mp4", "\udcff.mp4", "x" * 300]
    packed = PackedStrings(strings)
    assert list(packed) == strings and len(packed) == 5
    with pytest.raises(IndexError):
        packed[5]
