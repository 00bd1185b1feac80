"""The one-time pass: what it writes, that it resumes, and that --check sees damage."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from src.datasets.data_manager import init_data
from src.datasets.decoding.decode import open_video, read_frames
from src.datasets.decoding.transcode import Recipe, fitted, transcode
from src.datasets.prepare import main, prepare
from src.datasets.webdataset.prepared_shards import check, read_rows
from src.datasets.webdataset.shards import scan
from src.utils.errors import UserError

RECIPE = Recipe(short_side=48, gop=8, preset="ultrafast")


def _prepare(list_path, out, **kwargs):
    settings = {"recipe": RECIPE, "shards": 3, "workers": 1}
    return prepare(list_path, out, **(settings | kwargs))


@pytest.fixture(scope="module")
def mixed_list(mp4_list, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "bad.mp4").write_bytes(b"bad" * 100)
    text = "".join(f"{mp4_list.parent}/video {i}.mp4 {i}\n" for i in range(5))
    (folder / "list.csv").write_text(f"{text}bad.mp4 7\nmissing.mp4 8\n")
    return folder / "list.csv"


@pytest.fixture(scope="module")
def prepared(mixed_list, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "set"
    return out, _prepare(mixed_list, out)


def test_shards_and_manifest(prepared):
    out, manifest = prepared
    assert (manifest["written"], manifest["unreadable"], manifest["frames"]) == (5, 2, 5 * 24)
    assert json.loads((out / "manifest.json").read_text()) == manifest
    bad = (out / "unreadable.csv").read_text()
    assert "bad.mp4,unreadable," in bad and "missing.mp4,missing," in bad and bad.count("\n") == 2
    rows = [row for path in sorted(out.glob("*.jsonl")) for row in read_rows(path)]
    assert sorted(int(row["key"]) for row in rows) == list(range(7))
    assert all(row["label"] == int(row["key"]) for row in rows if "frames" in row)
    assert check(out) == []


def test_names_and_labels_of_every_kind_are_prepared(mp4_list, tmp_path):
    name = os.fsdecode(b'caf\xe9, "1"\xe2\x80\xa8.mp4')
    (tmp_path / name).write_bytes((mp4_list.parent / "video 1.mp4").read_bytes())
    lines = [name.replace('"', '""').join('""'), "absent\udce9.mp4 word"]
    (tmp_path / "list.csv").write_text("\n".join(lines), encoding="utf-8", errors="surrogateescape")
    out = tmp_path / os.fsdecode(b"out\xe9")
    assert _prepare(tmp_path / "list.csv", out, shards=1)["written"] == 1
    rows = read_rows(out / "shard-000000.jsonl")
    assert {(Path(row["path"]).name, row["label"]) for row in rows} == {(name, -1), ("absent\udce9.mp4", -1)}
    assert (out / "unreadable.csv").read_bytes() == os.fsencode(tmp_path) + b"/absent\xe9.mp4,missing,no such file\n"
    assert check(out) == [] and len(scan(str(out / "shard-000000.tar"))[0]) == 1


def test_the_loader_reads_it_with_the_same_frames(prepared, media):
    out, _ = prepared
    loader = init_data(
        dataset_type="WebVideoDataset",
        datasets=[f"{out}/shard-*.tar"],
        batch_size=5,
        num_frames=12,
        sampling_rate=2,
        training=False,
        random_clip_sampling=False,
    )
    (batch,) = list(loader)
    assert sorted(batch.labels.tolist()) == [0, 1, 2, 3, 4]
    assert batch.clips[0].shape == (5, 3, 12, 48, 48)
    for clip in batch.clips[0]:
        assert media.frame_numbers(clip.permute(1, 2, 3, 0).numpy()) == list(range(0, 24, 2))


def test_transcoding_keeps_frames_rate_and_picture(tmp_path, media):
    import av

    how = {"frames": 40, "fps": 30, "codec": "mpeg4", "options": {"bf": "2", "q": "2"}, "side": 96}
    path = media.write_video(tmp_path / "a.avi", **how)
    out = transcode(str(path), Recipe(short_side=48, gop=8))
    assert (out.frames, out.width, out.height) == (40, 48, 48) and out.fps == pytest.approx(30)
    video = open_video(out.data)
    assert video.n_frames == 40 and video.fps == pytest.approx(30, rel=0.01)
    video.close()
    assert media.frame_numbers(read_frames(out.data, range(40))) == list(range(40))
    before, after = read_frames(path, [5])[0], read_frames(out.data, [5])[0]
    small = before.reshape(48, 2, 48, 2, 3).mean(axis=(1, 3))
    assert np.abs(small - after).mean() < 6
    with av.open(io.BytesIO(out.data)) as container:
        keys = [p.is_keyframe for p in container.demux(video=0) if p.size]
    places = [i for i, key in enumerate([*keys, True]) if key]
    assert places[0] == 0 and max(np.diff(places)) <= 8


@pytest.mark.parametrize(
    ("size", "expected"), [((640, 360), (456, 256)), ((360, 640), (256, 456)), ((101, 51), (100, 52)), ((3, 1), (4, 2))]
)
def test_sizes_are_even_and_never_larger(size, expected):
    assert fitted(*size, 256) == expected


def test_an_interrupted_pass_goes_on(mixed_list, tmp_path, prepared):
    out, manifest = tmp_path / "set", prepared[1]
    assert _prepare(mixed_list, out) == manifest
    kept = (out / "shard-000000.tar").stat().st_mtime_ns
    reference = (out / "shard-000001.tar").read_bytes()
    (out / "shard-000001.jsonl").unlink()
    (out / "shard-000002.tar").unlink()
    (out / "manifest.json").unlink()
    (out / "shard-000001.part").write_bytes(b"half")
    with pytest.raises(UserError, match="unfinished"):
        check(out)
    assert _prepare(mixed_list, out) == manifest
    assert (out / "shard-000000.tar").stat().st_mtime_ns == kept
    assert (out / "shard-000001.tar").read_bytes() == reference and check(out) == []


def test_other_settings_or_a_strange_folder_are_refused(mixed_list, tmp_path, prepared):
    with pytest.raises(UserError, match="begun with another gop, shards"):
        _prepare(mixed_list, prepared[0], shards=2, recipe=Recipe(48, 4, preset="ultrafast"))
    (tmp_path / "shard-000000.tar").touch()
    with pytest.raises(UserError, match="not written by this tool"):
        _prepare(mixed_list, tmp_path)


def test_check_sees_damage(mixed_list, tmp_path):
    out = tmp_path / "set"
    _prepare(mixed_list, out, shards=1)
    entries = scan(str(out / "shard-000000.tar")).entries
    data = bytearray((out / "shard-000000.tar").read_bytes())
    data[entries[1].offset + 100] ^= 1
    (out / "shard-000000.tar").write_bytes(data)
    assert [p.split(": ")[1] for p in check(out)] == ["other bytes than were written"]
    (out / "shard-000000.tar").write_bytes(data[: entries[3].offset])
    assert sum("missing" in p for p in check(out)) >= 2
    (out / "shard-000000.tar").unlink()
    assert check(out) == ["shard-000000.tar: missing"]


def test_command_line(mixed_list, tmp_path, capsys):
    out = str(tmp_path / "set")
    assert main(["--list", str(mixed_list), "--out", out, "--short-side", "32", "--workers", "2"]) == 0
    assert "5 videos" in capsys.readouterr().out
    assert main(["--check", out]) == 0
    with pytest.raises(UserError, match="--gop must be at least 1"):
        main(["--list", str(mixed_list), "--out", out, "--gop", "0"])
    with pytest.raises(UserError, match="needs --out"):
        main(["--list", str(mixed_list)])


def test_nothing_readable(tmp_path):
    (tmp_path / "list.csv").write_text("missing.mp4 0\n")
    with pytest.raises(UserError, match="none of 1 videos"):
        _prepare(tmp_path / "list.csv", tmp_path / "set")


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds child processes in /proc")
def test_a_killed_pass_leaves_nothing_half_done(mp4_list, tmp_path, wait_for):
    """The second run finishes what the first, killed one had begun."""
    (tmp_path / "list.csv").write_text("".join(f"{mp4_list.parent}/video {i % 12}.mp4 0\n" for i in range(200)))
    arguments = ["--list", str(tmp_path / "list.csv"), "--out", str(tmp_path / "set"), "--shards", "20"]
    command = [sys.executable, "-m", "src.datasets.prepare", *arguments, "--workers", "1"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    wait_for(lambda: list((tmp_path / "set").glob("*.jsonl")) or process.poll() is not None, "a finished shard")
    workers = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < len(list((tmp_path / "set").glob("*.jsonl"))) < 20
    wait_for(lambda: not any(map(_runs, workers)), "its workers must end with it")
    assert main([*arguments, "--workers", "1"]) == 0
    assert check(tmp_path / "set") == []
