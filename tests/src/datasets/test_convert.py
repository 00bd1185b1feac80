"""Published annotation formats to lists."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from src.datasets.convert import main, ssv2, write_list
from src.datasets.lists import read_list
from src.utils.errors import UserError


@pytest.fixture
def videos(tmp_path):
    for name in ("12.webm", "7.webm", "abc_000010_000020.mp4", "jump rope/d-_f.mkv", "notes.txt"):
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / name).touch()
    return tmp_path / "videos"


def test_any_container_and_name_is_found_once(tmp_path):
    names = ["a b.WMV", "b.flv", os.fsdecode(b"caf\xe9.3gp"), "d.mkv", "d.gif", "d.jpg", "._e.mp4", "linked.mp4"]
    (tmp_path / "videos").mkdir()
    (tmp_path / "blob").touch()
    for name in names[:-1]:
        (tmp_path / "videos" / name).touch()
    (tmp_path / "videos/linked.mp4").symlink_to("../blob")  # its name, not that of its target, says what it is
    stems = ["a b", "b", os.fsdecode(b"caf\xe9"), "d", "linked", "._e", "e"]
    wanted = [((stem,), i) for i, stem in enumerate(stems)]
    count, missing = write_list(wanted, tmp_path / "videos", tmp_path / "new/out.csv")
    assert (count, missing) == (5, ["._e", "e"])
    found = [f"{tmp_path}/videos/{name}" for name in (*names[:4], "linked.mp4")]
    assert read_list(tmp_path / "new/out.csv") == (found, [0, 1, 2, 3, 4])


def test_what_a_folder_holds_beside_videos_is_said(tmp_path, videos):
    rows = [{"id": "12", "template": "Holding [something]"}]
    (tmp_path / "labels.json").write_text("\ufeff" + json.dumps({"Holding something": "3"}), encoding="utf-8")
    (tmp_path / "train.json").write_text(json.dumps(rows))
    (videos / "7.mp4").touch()
    names = {"annotations": "train.json", "labels": "labels.json", "videos": "videos", "out": "out.csv"}
    command = [sys.executable, "-m", "src.datasets.convert", "ssv2", *(f"--{k}=~/{v}" for k, v in names.items())]
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr
    assert "videos: 4 videos; left out: " in done.stderr and "1 .txt" in done.stderr and "1 of the same" in done.stderr
    assert read_list(tmp_path / "out.csv") == ([f"{videos}/12.webm"], [3])


def _ssv2(tmp_path, videos, rows):
    (tmp_path / "labels.json").write_text(json.dumps({"Holding something": "3", "Pushing something": "0"}))
    (tmp_path / "train.json").write_text(json.dumps(rows))
    names = {"annotations": tmp_path / "train.json", "labels": tmp_path / "labels.json", "videos": videos}
    main(["ssv2", *(f"--{k}={v}" for k, v in names.items()), f"--out={tmp_path}/out.csv"])
    return read_list(tmp_path / "out.csv")


def test_ssv2(tmp_path, videos, capsys):
    rows = [
        {"id": "12", "label": "holding potato", "template": "Holding [something]", "placeholders": ["potato"]},
        {"id": "7", "template": "Pushing [something]"},
        {"id": "99", "template": "Pushing [something]"},
    ]
    assert _ssv2(tmp_path, videos, rows) == ([f"{videos}/12.webm", f"{videos}/7.webm"], [3, 0])
    assert "1 videos of" in capsys.readouterr().err


def test_ssv2_mistakes(tmp_path, videos):
    with pytest.raises(UserError, match="without labels"):
        _ssv2(tmp_path, videos, [{"id": "12"}])
    with pytest.raises(UserError, match="entry 0: label 'Eating it'"):
        _ssv2(tmp_path, videos, [{"id": "12", "template": "Eating [it]"}])
    with pytest.raises(UserError, match="none of the 1 videos"):
        _ssv2(tmp_path, videos, [{"id": "5", "template": "Pushing [something]"}])
    (tmp_path / "train.json").write_text('[{"id": "12", "template": "Eating [it]"}]')
    (tmp_path / "labels.json").write_text('{"Eating it": "three"}')
    with pytest.raises(UserError, match=r"'Eating it' has 'three' for a number"):
        list(ssv2(tmp_path / "train.json", tmp_path / "labels.json"))
    with pytest.raises(UserError, match="JSON list"):
        _ssv2(tmp_path, videos, {})


def _kinetics(tmp_path, videos, text):
    (tmp_path / "split.csv").write_text(text)
    names = {"annotations": tmp_path / "split.csv", "classes": tmp_path / "classes.txt", "videos": videos}
    main(["kinetics", *(f"--{k}={v}" for k, v in names.items()), f"--out={tmp_path}/out.csv"])
    return read_list(tmp_path / "out.csv")


def test_kinetics_numbers_its_classes_once(tmp_path, videos):
    train = "label,youtube_id,time_start,time_end,split\njump rope,d-_f,3,13,train\nabseiling,abc,10,20,train\n"
    expected = ([f"{videos}/jump rope/d-_f.mkv", f"{videos}/abc_000010_000020.mp4"], [1, 0])
    assert _kinetics(tmp_path, videos, train) == expected
    assert (tmp_path / "classes.txt").read_text() == "abseiling\njump rope\n"
    val = "label,youtube_id,time_start,time_end,split\njump rope,d-_f,3,13,val\n"
    assert _kinetics(tmp_path, videos, val) == ([f"{videos}/jump rope/d-_f.mkv"], [1])
    with pytest.raises(UserError, match="line 2: label 'zumba' is not in"):
        _kinetics(tmp_path, videos, val.replace("jump rope", "zumba"))


def test_kinetics_mistakes(tmp_path, videos):
    with pytest.raises(UserError, match="line 2: needs the columns"):
        _kinetics(tmp_path, videos, "name,id\na,b\n")
    with pytest.raises(UserError, match="does not exist"):
        _kinetics(tmp_path, tmp_path / "absent", "label,youtube_id\na,b\n")
