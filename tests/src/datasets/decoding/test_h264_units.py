"""H.264 keyframes: IDR pictures and open groups begin cleanly, intra refresh does not."""

from __future__ import annotations

import av
import numpy as np
import pytest

from src.datasets.decoding.decode import read_frames
from src.datasets.decoding.h264_units import is_clean_start

WRITTEN = {
    "closed": ("keyint=12:min-keyint=12:scenecut=0:bframes=2", [0, 12, 24, 36]),
    "open": ("open-gop=1:keyint=12:min-keyint=12:scenecut=0:bframes=2", [0, 12, 24, 36]),
    "intra_refresh": ("intra-refresh=1:keyint=12:bframes=2", [0]),
    "intra_refresh_in_slices": ("intra-refresh=1:keyint=12:bframes=0:slices=2", [0]),
    "slices": ("keyint=12:min-keyint=12:scenecut=0:bframes=0:slices=2", [0, 12, 24, 36]),
    "interlaced": ("interlaced=1:keyint=12:min-keyint=12:scenecut=0:bframes=0", [0, 12, 24, 36]),
}


@pytest.mark.parametrize("container", ["mp4", "ts"])  # lengths before the units; start codes
@pytest.mark.parametrize("name", WRITTEN)
def test_clean_starts(name, container, tmp_path, media):
    params, expected = WRITTEN[name]
    path = media.write_video(tmp_path / f"a.{container}", options={"x264-params": params, "g": "12"})
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        packets = [p for p in file.demux(stream) if p.size]
        header = stream.codec_context.extradata
    shown = sorted(p.pts for p in packets)
    starts = [shown.index(p.pts) for p in packets if is_clean_start(bytes(p), header)]
    assert np.abs(np.subtract(starts, expected)).max() <= 2, starts  # the encoder shifts open groups by its B-frames
    assert len(starts) < sum(p.is_keyframe for p in packets) or "intra_refresh" not in name


def test_no_bytes_are_too_strange():
    rng = np.random.default_rng(0)
    for size in range(64):
        for header in (None, b"", b"\x01", b"\x01\x64\x00\x0a\xff", b"\x00\x00\x00\x01"):
            assert is_clean_start(rng.bytes(size), header) in (False, True)
    assert not is_clean_start(b"", None) and not is_clean_start(b"\0\0\1\x06\x06", None)


@pytest.mark.parametrize("container", ["ts", "mkv"])
def test_a_recording_that_begins_within_an_intra_refresh(container, tmp_path, media):
    """Decoders show nothing before they have recovered: what can be shown is what is counted and read."""
    params = "intra-refresh=1:keyint=12:bframes=2"
    source = media.write_video(tmp_path / f"whole.{container}", options={"x264-params": params, "g": "12"})
    path = _without_start(source, tmp_path / f"a.{container}")
    truth = media.decode_in_order(path)
    assert 12 < len(truth) < 48
    for indices in (range(len(truth)), [len(truth) - 1], [3, 9]):
        assert np.array_equal(read_frames(path, indices), truth[list(indices)])


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_a_recording_that_begins_within_an_open_group(codec, tmp_path, media):
    """The B-frames before its first keyframe lack a reference, and are not shown."""
    x264 = {"x264-params": "open-gop=1:keyint=12:min-keyint=12:scenecut=0:bframes=2"}
    how = {"codec": codec, "options": {"g": "12", "bf": "2"} | (x264 if codec == "libx264" else {})}
    path = _without_start(media.write_video(tmp_path / "whole.ts", **how), tmp_path / "a.ts")
    truth = media.decode_in_order(path)
    assert 24 < len(truth) < 48
    for indices in (range(len(truth)), [len(truth) - 1], [0], [3, 9]):
        assert np.array_equal(read_frames(path, indices), truth[list(indices)])


def _without_start(source, path):
    """A copy that begins with the second keyframe."""
    with av.open(str(source)) as file, av.open(str(path), "w") as target:
        stream = file.streams.video[0]
        packets = [p for p in file.demux(stream) if p.size]
        second = [i for i, p in enumerate(packets) if p.is_keyframe][1]
        copy = target.add_stream_from_template(stream)
        for packet in packets[second:]:
            packet.stream = copy
            target.mux(packet)
    return path
