"""Published annotation formats to lists."""

from __future__ import annotations

import json

import pytest

from src.datasets.convert import main
from src.datasets.lists import read_list
from src.utils.errors import UserError


@pytest.fixture
def videos(tmp_path):
    for name in ("12.webm", "7.webm", "abc_000010_000020.mp4", "jump rope/d-_f.mkv", "notes.txt"):
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / name).touch()
    return tmp_path / "videos"


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
