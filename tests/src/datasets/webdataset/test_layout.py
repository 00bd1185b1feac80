"""What a sample is: the same for a shard on a disk and for one that is streamed."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile

import pytest

from src.datasets.clip_reader import ClipReader
from src.datasets.decoding.frame_sampling import ClipSampling
from src.datasets.webdataset.layout import is_stranger, run_key, tidy
from src.datasets.webdataset.shard_stream import ShardStream
from src.datasets.webdataset.shards import scan
from src.datasets.webdataset.web_dataset import WebVideoDataset
from src.utils.errors import UserError

N = range(3)
VIDEO = b"a video" * 50


def pairs(video, label=None, text=lambda i: str(i)):
    """Names with the number of the sample for %s."""
    return [
        m
        for i in N
        for m in ((video % i, VIDEO + bytes([i])), *([(label % i, text(i).encode())] if label is not None else []))
    ]


def write(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if isinstance(data, bytes):
                info.size = len(data)
            else:
                info.type, info.linkname = data
            archive.addfile(info, io.BytesIO(data) if isinstance(data, bytes) else None)
    return path


def local(path, label_key=None):
    found = scan(str(path), label_key)
    data = path.read_bytes()
    samples = [(e.name, data[e.offset : e.offset + e.size], e.label) for e in found.entries]
    return samples, [error[1] for error in found.errors], len(found.strangers)


def streamed(path, label_key=None, labelled=False):
    stream = ShardStream(f"pipe:cat '{path}'", labelled, label_key)
    samples = [(v.name.split("::")[1], v.data, v.label) for v in stream]
    return samples, [error[1] for error in stream.errors], len(stream.strangers)


LAYOUTS = {
    "plain": (pairs("%03d.mp4", "%03d.cls"), "%03d.mp4", [0, 1, 2]),
    "label first": (pairs("%03d.mp4", "%03d.cls")[::-1], "%03d.mp4", [0, 1, 2]),
    "negative and blank": (pairs("%d.mp4", "%d.cls", lambda i: f" -{i}\n"), "%d.mp4", [0, -1, -2]),
    "in folders": (pairs("train/a.b/%d.mp4", "train/a.b/%d.cls"), "train/a.b/%d.mp4", [0, 1, 2]),
    "from a folder": (pairs("./%d.mp4", "./%d.cls"), "%d.mp4", [0, 1, 2]),
    "from above": (pairs("../x//%d.mp4", "../x/%d.cls"), "x/%d.mp4", [0, 1, 2]),
    "upper case": (pairs("%d.MP4", "%d.CLS"), "%d.MP4", [0, 1, 2]),
    "another suffix": (pairs("%d.webm", "%d.cls"), "%d.webm", [0, 1, 2]),
    "windows media": (pairs("%d.wmv", "%d.cls"), "%d.wmv", [0, 1, 2]),
    "no labels": (pairs("%d.mp4"), "%d.mp4", [-1, -1, -1]),
    "no labels, dots": (pairs("clip.%d.mp4"), "clip.%d.mp4", [-1, -1, -1]),
    "labels in words": (pairs("%d.mp4", "%d.cls", lambda i: "apply_eye_makeup"), "%d.mp4", [-1, -1, -1]),
    "dots in keys": (pairs("v_Foo.g%02d.mp4", "v_Foo.g%02d.cls"), "v_Foo.g%02d.mp4", [0, 1, 2]),
    "many dots": (pairs("v_Foo.g1.c%d.x.mp4", "v_Foo.g1.c%d.x.cls"), "v_Foo.g1.c%d.x.mp4", [0, 1, 2]),
    "a field's name": (pairs("%d.video.mp4", "%d.cls"), "%d.video.mp4", [0, 1, 2]),
    "a label's name": (pairs("%d.mp4", "%d.label.cls"), "%d.mp4", [0, 1, 2]),
    "one label for all": ([("v.cls", b"7"), *pairs("v.%d.mp4")], "v.%d.mp4", [7, 7, 7]),
    "many of one name": (
        [m for i in range(200) for m in ((f"v.{i}.mp4", VIDEO), (f"v.{i}.cls", b"3"), (f"v.{i}.txt", b"x"))],
        "v.%d.mp4",
        [3] * 200,
    ),
    "text and pictures beside": (
        [m for i in N for m in ((f"{i}.json", b"{}"), (f"{i}.mp4", VIDEO), (f"{i}.txt", b"x"), (f"{i}.gif", b"x"))],
        "%d.mp4",
        [-1, -1, -1],
    ),
    "names with blanks": (pairs("a b/it's [%d].mp4", "a b/it's [%d].cls"), "a b/it's [%d].mp4", [0, 1, 2]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("read", [local, streamed])
def test_every_video_is_a_sample(tmp_path, layout, read):
    members, name, labels = LAYOUTS[layout]
    samples, errors, strangers = read(write(tmp_path / "a.tar", members))
    videos = {tidy(m): data for m, data in members}
    assert sorted((n, label) for n, _, label in samples) == sorted((name % i, label) for i, label in enumerate(labels))
    assert all(data == videos[n] for n, data, _ in samples)
    assert errors == [] and strangers == 0


@pytest.mark.parametrize("read", [local, streamed])
@pytest.mark.parametrize(
    ("extra", "count"),
    [
        (lambda n: [(f"./._{n}", b"\0\5\26\7")], 6),
        (lambda n: [(f"__MACOSX/._{n}", b"\0\5\26\7"), (f"__MACOSX/{n}", b"x")], 12),
        (lambda n: [(".DS_Store", b"Bud1")], 6),
        (lambda n: [(f"a/{x}", b"x") for x in ("Thumbs.db", "desktop.ini", ".gitkeep", "__key__")], 24),
        (lambda n: [("README.md", b"x"), ("LICENSE", b"x"), ("notes.csv", b"x"), ("sums.sha256", b"x")][:2], 12),
        (lambda n: [("folder", (tarfile.DIRTYPE, ""))], 0),
    ],
)
def test_what_lies_between_samples_is_passed_over_and_counted(tmp_path, read, extra, count):
    members = [m for name, data in pairs("%d.mp4", "%d.cls") for m in (*extra(name), (name, data))]
    samples, errors, strangers = read(write(tmp_path / "a.tar", members))
    assert [(name, label) for name, _, label in samples] == [(f"{i}.mp4", i) for i in N]
    assert errors == [] and strangers == count


def test_what_is_no_stranger():
    for name in ("readme.mp4", "index.mp4", "license.webm", "a/README.cls", ".cache/x/1.mp4", "000.csv", "x"):
        assert not is_stranger(name), name
    assert is_stranger("a/.AppleDouble/1.mp4") and is_stranger("@eaDir/1.mp4/thumb.jpg")
    assert run_key("a.b/c.d.mp4") == "a.b/c"


LOST = {
    "no video": ([("9.cls", b"1")], ["no_video"]),
    "another kind of data": ([("9.jpg", b"x"), ("9.json", b"{}")], ["no_video"]),
    "no suffix": ([("9", b"x")], ["no_video"]),
    "a hard link": ([("9.mp4", (tarfile.LNKTYPE, "0.mp4")), ("9.cls", b"1")], ["unreadable"]),
    "a symbolic link": ([("9.mp4", (tarfile.SYMTYPE, "/x.mp4"))], ["unreadable"]),
}


@pytest.mark.parametrize("read", [local, streamed])
@pytest.mark.parametrize("case", LOST)
def test_what_is_lost_is_counted(tmp_path, read, case):
    extra, kinds = LOST[case]
    samples, errors, strangers = read(write(tmp_path / "a.tar", pairs("%d.mp4", "%d.cls") + extra))
    assert len(samples) == 3 and errors == kinds and strangers == 0


@pytest.mark.parametrize("read", [local, streamed])
@pytest.mark.parametrize(
    ("keep", "count", "kind"),
    [
        (3 * 1536 + 600, 3, ["truncated"]),  # inside a video
        (3 * 1536 + 100, 3, ["truncated"]),  # inside a header
        (3 * 1536, 3, ["truncated"]),  # between two videos
        (4 * 1536 + 512, 4, []),
    ],
)
def test_a_shard_that_breaks_off(tmp_path, read, keep, count, kind):
    whole = write(tmp_path / "a.tar", [(f"{i}.mp4", b"x" * 1000) for i in range(4)])
    whole.write_bytes(whole.read_bytes()[:keep])
    samples, errors, _ = read(whole)
    assert len(samples) == count and errors == kind


@pytest.mark.parametrize("read", [local, streamed])
def test_a_damaged_header_is_not_the_end(tmp_path, read):
    path = write(tmp_path / "a.tar", [(f"{i}.mp4", b"x" * 1000) for i in range(4)])
    path.write_bytes(path.read_bytes()[: 2 * 1536] + b"?" * 512 + path.read_bytes()[2 * 1536 + 512 :])
    samples, errors, _ = read(path)
    assert len(samples) == 2 and errors == ["truncated"]


def test_what_is_no_archive_at_all(tmp_path):
    for text in (b"", b"no tar" * 500):
        (tmp_path / "a.tar").write_bytes(text)
        assert streamed(tmp_path / "a.tar") == ([], ["unreadable"], 0)
        with pytest.raises(UserError, match="not a tar file"):
            local(tmp_path / "a.tar")


@pytest.mark.parametrize("read", [local, streamed])
def test_an_empty_shard_is_said(tmp_path, read):
    assert read(write(tmp_path / "a.tar", [])) == ([], ["empty"], 0)


@pytest.mark.parametrize("read", [local, streamed])
@pytest.mark.parametrize("again", ["0.mp4", "./0.mp4", "1.CLS"])
def test_two_files_of_one_name_are_an_error_that_counts_them(tmp_path, read, again):
    with pytest.raises(UserError, match="1 file names more than once"):
        read(write(tmp_path / "a.tar", [*pairs("%d.mp4", "%d.cls"), (again, b"5")]))


@pytest.mark.parametrize("read", [local, streamed])
def test_two_videos_of_one_name_are_two_samples(tmp_path, read):
    samples, _, _ = read(write(tmp_path / "a.tar", [("0.mp4", b"x"), ("0.webm", b"y"), ("0.cls", b"4")]))
    assert samples == [("0.mp4", b"x", 4), ("0.webm", b"y", 4)]


@pytest.mark.parametrize("read", [local, streamed])
def test_archives_joined_by_cat_do_not_lose_the_second(tmp_path, read):
    path = write(tmp_path / "a.tar", pairs("%d.mp4"))
    path.write_bytes(path.read_bytes() + write(tmp_path / "b.tar", pairs("b%d.mp4")).read_bytes())
    with pytest.raises(UserError, match="goes on behind its end"):
        read(path)


@pytest.mark.parametrize(("mode", "name"), [("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz")])
def test_compressed_shards_are_streamed_only(tmp_path, mode, name):
    path = write(tmp_path / "a.tar.gz", pairs("%d.mp4", "%d.cls"), mode)
    with pytest.raises(UserError, match=rf"compressed \({name}\).*unpack it"):
        local(path)
    assert [(n, label) for n, _, label in streamed(path)[0]] == [(f"{i}.mp4", i) for i in N]


APART = [m for i in (0, 1) for m in pairs("%d.mp4", "%d.cls")[i::2]]


def test_files_of_a_sample_that_lie_apart(tmp_path):
    path = write(tmp_path / "a.tar", APART)
    assert [(n, label) for n, _, label in local(path)[0]] == [(f"{i}.mp4", i) for i in N]
    assert [n for n, _, _ in streamed(path)[0]] == [f"{i}.mp4" for i in N]  # pretraining needs no label
    with pytest.raises(UserError, match=r"3 of 3 videos lie apart from their labels \(the first: 0\.mp4"):
        streamed(path, labelled=True)


@pytest.mark.parametrize(
    ("text", "key", "label"),
    [
        (lambda i: json.dumps({"class": i, "caption": "x"}), "class", [0, 1, 2]),
        (lambda i: json.dumps({"class": str(i)}), "class", [0, 1, 2]),
        (lambda i: json.dumps({"class": True}), "class", r"3 of 3 .*has 'True' under 'class', not a number"),
        (lambda i: json.dumps({"class": "dog"}), "class", r"'dog' under 'class', not a number"),
        (lambda i: json.dumps({"other": 1}), "class", r"has no field 'class'"),
        (lambda i: json.dumps([1]), "class", r"has no field 'class'"),
        (lambda i: "{", "class", r"0\.json is not JSON"),
        (lambda i: "{}", None, r"has no \.cls file"),
    ],
)
def test_labels_in_json(tmp_path, text, key, label):
    path = write(tmp_path / "a.tar", pairs("%d.mp4", "%d.json", text))
    reader = ClipReader(ClipSampling(4, 1))
    if isinstance(label, list):
        assert WebVideoDataset([[str(path)]], reader, label_key=key).labels.tolist() == label
        assert [v for _, _, v in streamed(path, key, labelled=True)[0]] == label
        return
    for read in (lambda: WebVideoDataset([[str(path)]], reader, label_key=key), lambda: streamed(path, key, True)):
        with pytest.raises(UserError, match=label):
            read()
    assert WebVideoDataset([[str(path)]], reader, labelled=False, label_key=key).labels.tolist() == [-1, -1, -1]


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs tar")
def test_what_tar_itself_makes(tmp_path):
    for name, data in pairs("%d.mp4", "%d.cls"):
        (tmp_path / name).write_bytes(data)
    subprocess.run("tar cf a.tar *.mp4 *.cls && tar cf b.tar ./*.*s ./*.mp4", shell=True, cwd=tmp_path, check=True)
    for shard in ("a.tar", "b.tar"):
        assert [(n, label) for n, _, label in local(tmp_path / shard)[0]] == [(f"{i}.mp4", i) for i in N]
    with (tmp_path / "gap.mp4").open("wb") as file:
        file.seek(1 << 20)
        file.write(VIDEO)
    subprocess.run("tar cSf c.tar gap.mp4 0.mp4", shell=True, cwd=tmp_path, check=True)
    for read in (local, streamed):
        samples, errors, _ = read(tmp_path / "c.tar")
        assert [n for n, _, _ in samples] == ["0.mp4"] and errors == ["unreadable"]
