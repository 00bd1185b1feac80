"""Which files of a folder are found, and that the others are counted."""

from __future__ import annotations

import os
from collections import Counter

import av
import pytest

from src.datasets.decoding.suffixes import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from src.datasets.folders import find_files, leads_up, log_left_out
from src.utils.errors import UserError


def _touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def _found(root):
    left_out: Counter[str] = Counter()
    return [str(path.relative_to(root)) for path in find_files(root, VIDEO_SUFFIXES, left_out)], dict(left_out)


def test_files_below_a_folder_and_what_is_left_out(tmp_path, caplog):
    _touch(tmp_path, "b.MP4", "a/c d.wmv", "a/._c d.wmv", ".cache/x.mp4", "n.txt", "m.txt", "README", "z.tar.part")
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "gone.mp4").symlink_to("nowhere.mp4")
    (tmp_path / os.fsdecode(b"caf\xe9.avi")).touch()
    files, left_out = _found(tmp_path)
    assert files == ["a/c d.wmv", "b.MP4", os.fsdecode(b"caf\xe9.avi")]
    expected = {
        "hidden": 2,
        ".txt": 2,
        "files without a suffix": 1,
        ".part": 1,
        "devices and pipes": 1,
        "broken links": 1,
    }
    assert left_out == expected
    with caplog.at_level("INFO"):
        log_left_out(tmp_path, 3, "videos", Counter(left_out | {".a": 1, ".b": 1}))
    assert "3 videos; left out: 2 hidden, 2 .txt, 1 " in caplog.text and caplog.text.endswith(", 2 others\n")


def test_links_are_followed_each_folder_once_and_never_round(tmp_path):
    _touch(tmp_path, "in/real/a.mp4", "out/b.flv", "out/deep/c.3gp", "d.ts")
    links = {"in/link": "../out", "in/again": "../out/deep", "in/file.mp4": "../d.ts", "out/back": "../in"}
    links |= {"in/up": "..", "in/root": "/", "in/real/self": ".", "in/one": "two", "in/two": "one", "in/alias": "real"}
    for link, target in links.items():
        (tmp_path / link).symlink_to(target)
    files, left_out = _found(tmp_path / "in")
    assert files == ["again/c.3gp", "file.mp4", "link/b.flv", "real/a.mp4"]
    # deep and alias were found before; back, the start itself, as well
    assert left_out == {"links to a folder above them": 3, "broken links": 2, "folders found before": 3}
    (tmp_path / "start").symlink_to("in")
    assert _found(tmp_path / "start") == (files, left_out), "a link to start from"
    assert leads_up(tmp_path / "in/up") and not leads_up(tmp_path / "in/link")


def test_no_folder(tmp_path):
    _touch(tmp_path, "file")
    with pytest.raises(UserError, match="does not exist"):
        _found(tmp_path / "absent")
    with pytest.raises(UserError, match="is not a folder"):
        _found(tmp_path / "file")


# What FFmpeg writes with pictures in it, by its own name for the format: its suffixes have to be known.
MUXERS = ["mp4", "mov", "3gp", "3g2", "matroska", "webm", "avi", "asf", "flv", "f4v", "mpeg", "vob", "mpegts", "ogv"]
MUXERS += ["nut", "mxf", "gxf", "ivf", "dv", "rm", "gif", "apng", "mjpeg", "h264", "hevc", "mpeg2video", "yuv4mpegpipe"]


@pytest.mark.parametrize("name", MUXERS)
def test_the_suffixes_of_what_ffmpeg_writes_are_known(name):
    extensions = av.format.ContainerFormat(name, "w").extensions
    assert extensions and extensions & set(VIDEO_SUFFIXES), extensions


def test_suffixes_are_written_once_in_lower_case():
    for suffixes in (VIDEO_SUFFIXES, IMAGE_SUFFIXES):
        assert len(set(suffixes)) == len(suffixes) and not any(s.startswith(".") or s != s.lower() for s in suffixes)
    assert VIDEO_SUFFIXES[0] == "mp4"
