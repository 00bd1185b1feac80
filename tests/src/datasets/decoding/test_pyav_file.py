"""The stream that players show, whatever the file is called."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from src.datasets.decoding.decode import open_stream, open_video, read_frames

SMALL, LARGE = 48, 96  # sides of the streams


def _write(path: Path, streams: list[tuple[int, int, str]]) -> Path:
    """A file with a video stream for each (side, frames, disposition)."""
    with av.open(str(path), "w") as container:
        added = []
        for side, _, disposition in streams:
            stream = container.add_stream("png" if disposition == "attached_pic" else "libx264", rate=25)
            stream.width = stream.height = side
            stream.pix_fmt = "rgb24" if disposition == "attached_pic" else "yuv420p"
            stream.disposition = getattr(av.stream.Disposition, disposition, 0)
            added.append(stream)
        for (side, frames, _), stream in zip(streams, added):
            for i in range(frames):
                picture = np.full((side, side, 3), 40 + 10 * i, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
    return path


MARKED = [
    ([(SMALL, 6, "none"), (LARGE, 6, "default")], LARGE),
    ([(LARGE, 6, "none"), (SMALL, 6, "default")], SMALL),
    ([(SMALL, 6, "default"), (LARGE, 6, "none")], SMALL),
    ([(SMALL, 6, "default"), (LARGE, 6, "default")], LARGE),
    ([(LARGE, 6, "default"), (SMALL, 6, "default")], LARGE),
    ([(LARGE, 1, "default"), (SMALL, 6, "none")], SMALL),  # a still is not the video, whatever it is marked as
]
UNMARKED = [([(SMALL, 6, "none"), (LARGE, 1, "none")], SMALL), ([(SMALL, 6, "none"), (LARGE, 6, "none")], LARGE)]


@pytest.mark.parametrize(
    ("container", "streams", "side"),
    [("mp4", *case) for case in MARKED] + [("mkv", *case) for case in MARKED + UNMARKED],  # mp4 marks at least one
)
def test_the_default_or_best_stream(container, streams, side, tmp_path):
    path = _write(tmp_path / f"a.{container}", streams)
    with av.open(str(path)) as file:  # what the container kept of it
        marked = [bool(s.disposition & av.stream.Disposition.default) for s in file.streams.video]
    assert marked == [d == "default" for *_, d in streams]
    for source in (path, path.read_bytes()):
        assert read_frames(source, range(6)).shape == (6, side, side, 3)
    stream = open_stream(path)
    assert [stream.rgb(frame).shape[0] for frame in stream] == [side] * 6
    stream.close()


def test_a_cover_is_not_the_video(tmp_path):
    path = _write(tmp_path / "a.mp4", [(LARGE, 1, "attached_pic"), (SMALL, 6, "none")])
    assert open_video(path).n_frames == 6 and read_frames(path, [5]).shape == (1, SMALL, SMALL, 3)


def test_a_picture_alone_is_a_video_of_one_frame():
    buffer = io.BytesIO()
    Image.new("RGB", (32, 16)).save(buffer, "PNG")
    assert read_frames(buffer.getvalue(), [0]).shape == (1, 16, 32, 3)


NAMES = [
    "talk: part 1.mp4",
    "a b.mp4",
    "100%.mp4",
    "it's #1.mp4",
    "día 日本.mp4",
    "line\u2028end.mp4",
    "caf\udce9.mp4",
    "clip 3",
    "http:x.mp4",
]


@pytest.mark.parametrize("decoder", ["auto", "decord"])
def test_any_name_relative_or_not(decoder, tmp_path, media, monkeypatch):
    data = media.write_video(tmp_path / "a.mp4", frames=3).read_bytes()
    monkeypatch.chdir(tmp_path)
    for name in NAMES if decoder == "auto" else NAMES[:6]:
        Path(name).write_bytes(data)
        for path in (name, tmp_path / name, f"./{name}"):
            assert read_frames(path, [2], decoder).shape == (1, 64, 64, 3)
        if decoder == "auto":
            open_stream(name).close()
