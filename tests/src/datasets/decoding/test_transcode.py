"""What is prepared reads like its source: turned, shaped and coloured the same, at any rate."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
import pytest

from src.datasets.decoding.decode import open_video, read_frames
from src.datasets.decoding.transcode import Recipe, rational_rate, transcode

FINE = Recipe(crf=1, preset="ultrafast")


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv420p10le"])
@pytest.mark.parametrize("full_range", [False, True], ids=["video_range", "full_range"])
def test_colours_read_like_the_source(full_range, pixels, tmp_path, media):
    for matrix in media.matrices:
        path = media.write_chart(tmp_path / f"{matrix}.mp4", matrix, full_range, pixels)
        source, written = (media.chart_colours(read_frames(s, [1])[0]) for s in (path, transcode(str(path), FINE).data))
        assert np.abs(written - source).max() <= 5, matrix
        assert np.abs(written - media.chart).max() <= 6, matrix


def test_grey_reads_like_the_source(tmp_path, media):
    path = media.write_chart(tmp_path / "a.mp4", "bt709", True, "gray")
    source, written = (media.chart_colours(read_frames(s, [1])[0]) for s in (path, transcode(str(path), FINE).data))
    assert np.abs(written - source).max() <= 5


def test_what_is_written_says_how_it_is_coloured(tmp_path, media):
    path = media.write_chart(tmp_path / "a.mp4", "bt709", True)
    with av.open(io.BytesIO(transcode(str(path), FINE).data)) as container:
        frame = next(container.decode(video=0))
        assert (int(frame.colorspace), int(frame.color_range)) == (6, 1)  # BT.601, video range


def test_primaries_and_transfer_function_are_handed_on(tmp_path, media):
    path = tmp_path / "hdr.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p10le"
        context = stream.codec_context
        context.colorspace, context.color_range, context.color_primaries, context.color_trc = 9, 1, 9, 16
        for _ in range(2):
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), 128, np.uint8), format="rgb24"))
            )
        container.mux(stream.encode())
    with av.open(io.BytesIO(transcode(str(path), FINE).data)) as container:
        frame = next(container.decode(video=0))
        assert (int(frame.color_primaries), int(frame.color_trc)) == (9, 16)  # BT.2020, PQ


def test_turned_and_squared(tmp_path, media):
    path = media.write_video(tmp_path / "a.mp4", frames=6, pixel=Fraction(2))
    media.set_display_matrix(path, (0, 1, -1, 0))
    out = transcode(str(path), FINE)
    assert (out.width, out.height) == (64, 128)
    source, written = read_frames(path, [3]), read_frames(out.data, [3])
    assert source.shape == written.shape == (1, 128, 64, 3) and np.abs(source.astype(int) - written).mean() < 3
    small = transcode(str(path), Recipe(short_side=32, crf=1, preset="ultrafast"))
    assert (small.width, small.height) == (32, 64)
    mean = source.reshape(1, 64, 2, 32, 2, 3).mean(axis=(2, 4))
    assert np.abs(mean - read_frames(small.data, [3])).mean() < 4


@pytest.mark.parametrize("hours", [1, 24])
def test_a_frame_an_hour(hours, tmp_path, media):
    path = media.write_video(tmp_path / "a.mkv", frames=5, times=[i * hours * 3_600_000 for i in range(5)])
    out = transcode(str(path), FINE)
    video = open_video(out.data)
    assert (out.frames, video.n_frames) == (5, 5) and 1 / video.fps == pytest.approx(hours * 3600, rel=1e-3)
    assert media.frame_numbers(video.read(range(5))) == list(range(5))
    video.close()


@pytest.mark.parametrize("fps", [25, 30000 / 1001, 24000 / 1001, 0.5, 1 / 7, 1 / 3600, 240, 1000])
def test_rates_are_small_fractions(fps):
    assert float(rational_rate(fps)) == pytest.approx(fps, rel=1e-4)
