"""Webdataset shards: local ones are random access, remote ones streams."""

from __future__ import annotations

import functools
import http.server
import io
import os
import shutil
import signal
import tarfile
import threading
from collections import Counter

import pytest
import torch

from src.datasets.data_manager import init_data
from src.datasets.transforms import TrainTransform
from src.datasets.webdataset.shards import expand, is_url, scan, shard_of
from src.utils.errors import UserError


def _add(archive, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


@pytest.fixture(scope="module")
def shards(tmp_path_factory, mp4_list):
    """Four shards of 3 videos; labels 0 .. 11 name the sample."""
    folder = tmp_path_factory.mktemp("shards")
    for s in range(4):
        with tarfile.open(folder / f"train-{s:03d}.tar", "w") as archive:
            for i in range(3 * s, 3 * s + 3):
                _add(archive, f"v{i}.mp4", (mp4_list.parent / f"video {i}.mp4").read_bytes())
                _add(archive, f"v{i}.cls", str(i).encode())
    return folder


@pytest.fixture(scope="module")
def server(shards):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=str(shards))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def _loader(datasets, **kwargs):
    settings = {
        "dataset_type": "WebVideoDataset",
        "datasets": [str(d) for d in datasets],
        "batch_size": 2,
        "num_frames": 4,
        "transform": TrainTransform(16),
        "total_steps": 6,
    }
    return init_data(**(settings | kwargs))


def _killed(frames, rng):
    """Ends its own process, as the kernel does to one that takes too much memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def _labels(loader):
    return [b.labels.tolist() for b in loader]


def _flat(loader):
    return [label for batch in _labels(loader) for label in batch]


def test_local_shards_are_read_like_a_list(shards):
    pattern = f"{shards}/train-{{000..003}}.tar"
    reference = _labels(_loader([pattern]))
    assert sorted([label for batch in reference for label in batch]) == list(range(12))
    assert _labels(_loader([f"{shards}/train-*.tar"], num_workers=2)) == reference
    assert _labels(_loader([pattern], start_step=4)) == reference[4:]
    once = _labels(_loader([pattern], training=False, rank=1, world_size=2))
    assert [label for batch in once for label in batch] == list(range(1, 12, 2))


def test_broken_shards_cost_their_broken_samples(shards, tmp_path, mp4_list):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        _add(archive, "ok.mp4", (mp4_list.parent / "video 0.mp4").read_bytes())
        _add(archive, "ok.cls", b"3\n")
        _add(archive, "unlabelled.mp4", (mp4_list.parent / "video 1.mp4").read_bytes())
        _add(archive, "odd.mp4", b"x")
        _add(archive, "odd.cls", b"cat")
        _add(archive, "text.txt", b"x")
        _add(archive, "last.cls", b"1")
        _add(archive, "last.mp4", b"x" * 5000)
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"x" * 1000) + 2000])
    found = scan(str(path))
    assert [(e.key, e.label) for e in found.entries] == [("ok", 3), ("unlabelled", -1), ("odd", -1)]
    assert Counter(kind for _, kind, _ in found.errors) == {"no_video": 1, "truncated": 1}
    loader = _loader([path], training=False, folder=tmp_path, labelled=False)
    assert _labels(loader) == [[3, -1]]
    assert (tmp_path / "skipped.csv").read_text().count("\n") == 3
    with pytest.raises(UserError, match=r"2 of 3 videos have no label.*unlabelled\.mp4: has no \.cls file"):
        _loader([path], training=False)


def test_what_is_not_a_shard(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        _loader([tmp_path / "absent.tar"])
    (tmp_path / "text.tar").write_text("no tar" * 1000)
    with pytest.raises(UserError, match="not a tar file"):
        _loader([tmp_path / "text.tar"])
    tarfile.open(tmp_path / "empty.tar", "w").close()
    with pytest.raises(UserError, match=r"no video in .*empty\.tar.*no samples"):
        _loader([tmp_path / "empty.tar"])
    with pytest.raises(UserError, match=r"is a folder: name the shards in it"):
        _loader([tmp_path])
    with pytest.raises(UserError, match="a brace without its other half"):
        _loader([tmp_path / "a{0..1.tar"])


@pytest.mark.parametrize(
    "name", ["we [1].tar", "a {1}.tar", "a{0..1}.tar", "st*r?.tar", "in [0]/a.tar", "x:y.tar", "a b's,c.tar"]
)
def test_a_file_of_that_very_name(shards, tmp_path, monkeypatch, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    shutil.copy(shards / "train-000.tar", tmp_path / name)
    assert expand([tmp_path / name], allow_pipe=False) == [[str(tmp_path / name)]]
    monkeypatch.chdir(tmp_path)
    assert _flat(_loader([name], training=False)) == [0, 1, 2]


def test_wildcards(tmp_path):
    for name in ("in [0]/a-0.tar", "in [0]/a-1.tar", "in [0]/._a-1.tar", "b/a-2.tar", "b/c/a-3.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def names(pattern):
        return [name.removeprefix(f"{tmp_path}/") for name in expand([f"{tmp_path}/{pattern}"], allow_pipe=False)[0]]

    assert names("in [0]/*.tar") == ["in [0]/a-0.tar", "in [0]/a-1.tar"]
    assert names("*/a-[12].tar") == ["b/a-2.tar", "in [0]/a-1.tar"]
    assert names("{b,in [0]}/*.tar") == ["b/a-2.tar", "in [0]/a-0.tar", "in [0]/a-1.tar"]


def test_a_list_of_videos_in_shards(shards, tmp_path):
    lines = [(f"{shards}/train-{s:03d}.tar::v{i}.mp4", label) for s, i, label in ((2, 7, 1), (0, 2, 0), (2, 6, 1))]
    (tmp_path / "part.csv").write_text("".join(f"{name} {label}\n" for name, label in lines))
    (batch,) = _loader([tmp_path / "part.csv"], training=False, batch_size=4)
    assert batch.labels.tolist() == [1, 0, 1] and batch.paths == [name for name, _ in lines]
    assert shard_of(lines[0][0]) == (f"{shards}/train-002.tar", "v7.mp4") and shard_of("a::b") == ("a::b", "")
    (tmp_path / "part.csv").write_text(f"{shards}/train-000.tar::v9.mp4 1\n")
    with pytest.raises(UserError, match=r"part\.csv: there is no video .*v9\.mp4"):
        _loader([tmp_path / "part.csv"])


def test_pipes_run_only_when_allowed(shards, tmp_path):
    mark = tmp_path / "mark"
    command = f"pipe:touch {mark}; cat {shards}/train-000.tar"
    with pytest.raises(UserError, match="allow_pipe"):
        _loader([command])
    with pytest.raises(UserError, match="allow_pipe"):
        expand([" PIPE:ls"], allow_pipe=False)
    with pytest.raises(UserError, match="allow_pipe"):
        expand(["{pipe:ls,a.tar}"], allow_pipe=False)
    assert not mark.exists()
    assert _flat(_loader([command], training=False, allow_pipe=True)) == [0, 1, 2]
    assert mark.exists()


@pytest.mark.skipif(shutil.which("curl") is None, reason="webdataset reads http through curl")
class TestStreams:
    def test_evaluation_reads_every_sample_once(self, server):
        urls = f"{server}/train-{{000..003}}.tar"
        found = []
        for rank in range(2):
            loader = _loader([urls], training=False, rank=rank, world_size=2, num_workers=2)
            found += _flat(loader)
        assert sorted(found) == list(range(12))

    @pytest.mark.parametrize("workers", [0, 2])
    def test_training_loses_and_repeats_nothing_within_a_pass(self, server, workers):
        urls = f"{server}/train-{{000..003}}.tar"
        labels = _labels(_loader([urls], num_workers=workers, total_steps=12))
        assert all(count == 2 for count in Counter(label for batch in labels for label in batch).values())
        assert labels == _labels(_loader([urls], num_workers=workers, total_steps=12))
        assert labels != _labels(_loader([urls], num_workers=workers, total_steps=12, seed=1))

    def test_resuming(self, server):
        urls = f"{server}/train-{{000..003}}.tar"
        batches = list(_loader([urls], num_workers=2, total_steps=9))
        assert [b.step for b in batches] == list(range(9))
        resumed = list(_loader([urls], num_workers=2, total_steps=9, start_step=5))
        assert [b.step for b in resumed] == [5, 6, 7, 8]
        for first, second in zip(batches[5:], resumed):
            assert torch.equal(first.labels, second.labels) and torch.equal(first.clips[0], second.clips[0])

    def test_a_missing_shard_is_a_fault(self, server):
        loader = _loader([f"{server}/train-000.tar", f"{server}/train-009.tar"], training=False)
        assert _flat(loader) == [0, 1, 2]
        assert sum(loader.skips.kinds.values()) == 1

    def test_a_killed_worker_is_an_error_that_names_the_shard(self, server):
        with pytest.raises(UserError, match=r"worker was killed.*while reading http.*/train-000\.tar"):
            list(_loader([f"{server}/train-000.tar"], transform=_killed, num_workers=1, total_steps=4))

    def test_only_missing_shards_end_the_run(self, server):
        with pytest.raises(UserError, match="could be used"):
            list(_loader([f"{server}/train-009.tar"], total_steps=10**6))

    def test_shards_that_are_odd(self, server, shards, tmp_path, caplog):
        """gzip, and files of a Mac between those of samples, which are said once for every shard."""
        caplog.set_level("INFO")
        with tarfile.open(shards / "odd.tar.gz", "w:gz") as archive, tarfile.open(shards / "train-000.tar") as whole:
            for one in whole:
                _add(archive, f"./._{one.name}", b"x")
                _add(archive, f"./{one.name}", whole.extractfile(one).read())
        for workers in (0, 1):
            caplog.clear()
            labels = _flat(_loader([f"{server}/odd.tar.gz"], num_workers=workers, labelled=False))
            assert Counter(labels) == {0: 4, 1: 4, 2: 4}
            assert [r.message.partition(": ")[2] for r in caplog.records] == [
                "passed over 6 files that belong to no sample, as ._v0.mp4"
            ]

    def test_labels_that_lie_apart(self, server, shards):
        with tarfile.open(shards / "apart.tar", "w") as archive, tarfile.open(shards / "train-000.tar") as whole:
            for one in sorted(whole, key=lambda one: one.name[::-1]):
                _add(archive, one.name, whole.extractfile(one).read())
        assert len(_flat(_loader([f"{server}/apart.tar"], labelled=False))) == 12
        for workers in (0, 1):
            with pytest.raises(UserError, match=r"3 of 3 videos lie apart from their labels") as error:
                _flat(_loader([f"{server}/apart.tar"], training=False, num_workers=workers))
            assert "Traceback" not in str(error.value)

    def test_fewer_shards_than_readers(self, server):
        with pytest.raises(UserError, match="1 shards for 2 readers"):
            _loader([f"{server}/train-000.tar"], num_workers=2)

    def test_the_size_is_not_known(self, server):
        with pytest.raises(UserError, match=r"optimization\.ipe"):
            _ = _loader([f"{server}/train-000.tar"]).steps_per_pass


def test_names():
    assert is_url("s3://bucket/a.tar") and not is_url("/a/b.tar") and not is_url("data/a.tar")
