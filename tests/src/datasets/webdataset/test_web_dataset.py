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
from src.datasets.webdataset.shards import expand, is_url, scan, split_name
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
        _add(archive, "unlabelled.mp4", b"x")
        _add(archive, "odd.mp4", b"x")
        _add(archive, "odd.cls", b"cat")
        _add(archive, "text.txt", b"x")
        _add(archive, "last.cls", b"1")
        _add(archive, "last.mp4", b"x" * 5000)
    path.write_bytes(path.read_bytes()[:-12000])
    entries, faults = scan(str(path))
    assert [(e.key, e.label) for e in entries] == [("ok", 3)]
    assert Counter(kind for _, kind, _ in faults) == {"no_label": 2, "no_video": 1, "truncated": 1}
    loader = _loader([path], training=False, folder=tmp_path)
    assert _labels(loader) == [[3]]
    assert (tmp_path / "skipped.csv").read_text().count("\n") == 4


def test_what_is_not_a_shard(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        _loader([tmp_path / "absent.tar"])
    (tmp_path / "text.tar").write_text("no tar" * 1000)
    with pytest.raises(UserError, match="not an uncompressed tar"):
        _loader([tmp_path / "text.tar"])
    tarfile.open(tmp_path / "empty.tar", "w").close()
    with pytest.raises(UserError, match="no video with a label"):
        _loader([tmp_path / "empty.tar"])


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

    def test_fewer_shards_than_readers(self, server):
        with pytest.raises(UserError, match="1 shards for 2 readers"):
            _loader([f"{server}/train-000.tar"], num_workers=2)

    def test_the_size_is_not_known(self, server):
        with pytest.raises(UserError, match=r"optimization\.ipe"):
            _ = _loader([f"{server}/train-000.tar"]).steps_per_pass


def test_names():
    assert split_name("a/b.c.mp4") == ("a/b", "c.mp4") and split_name("x.MP4") == ("x", "mp4")
    assert is_url("s3://bucket/a.tar") and not is_url("/a/b.tar") and not is_url("data/a.tar")
