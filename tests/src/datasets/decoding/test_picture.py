"""Pictures as players show them: upright, with square pixels, in the right colours."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest

from src.datasets.decoding.decode import DecodeError, open_stream, open_video, read_frames
from src.datasets.decoding.picture import squared

# The display matrix (a, b, c, d): (x, y) is shown at (a x + c y, b x + d y).
MATRICES = {
    "upright": (1, 0, 0, 1),
    "quarter": (0, 1, -1, 0),
    "half": (-1, 0, 0, -1),
    "three_quarters": (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1),
    "upside_down_mirrored": (1, 0, 0, -1),
    "quarter_mirrored": (0, 1, 1, 0),
    "three_quarters_mirrored": (0, -1, -1, 0),
}


def _shown(stored: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """A picture (H, W, 3) turned pixel by pixel, as ISO/IEC 14496-12 defines the matrix."""
    a, b, c, d = matrix
    ys, xs = np.mgrid[: stored.shape[0], : stored.shape[1]]
    x, y = a * xs + c * ys, b * xs + d * ys
    x, y = x - x.min(), y - y.min()
    shown = np.zeros((y.max() + 1, x.max() + 1, 3), np.uint8)
    shown[y, x] = stored
    return shown


@pytest.fixture(scope="module")
def oblong(tmp_path_factory, media):
    """A video whose pixels are twice as wide as high, so that stored and shown sizes differ."""
    return media.write_video(tmp_path_factory.mktemp("oblong") / "a.mp4", frames=8, options={"g": "4"})


@pytest.mark.parametrize("name", MATRICES)
def test_the_display_matrix_is_honoured(name, oblong, tmp_path, media):
    path = tmp_path / "turned.mp4"
    path.write_bytes(oblong.read_bytes())
    media.set_display_matrix(path, MATRICES[name])
    truth = np.stack([_shown(frame, MATRICES[name]) for frame in media.decode_in_order(oblong)])
    assert np.array_equal(read_frames(path, range(8)), truth)
    assert np.array_equal(read_frames(path.read_bytes(), [6, 2]), truth[[6, 2]])
    stream = open_stream(path)
    assert np.array_equal([stream.rgb(frame) for frame in stream], truth)
    stream.close()


@pytest.mark.parametrize("name", ["quarter", "half", "three_quarters"])
def test_decord_turns_the_same_way(name, oblong, tmp_path, media):
    path = tmp_path / "turned.mp4"
    path.write_bytes(oblong.read_bytes())
    media.set_display_matrix(path, MATRICES[name])
    ours, theirs = read_frames(path, [3]), read_frames(path, [3], "decord")
    assert ours.shape == theirs.shape and np.abs(ours.astype(int) - theirs).max() <= 1


def test_a_message_that_turns_the_first_frame_turns_all(oblong, tmp_path, media):
    """ITU-T H.264 D.2.27; encoders put it at the first frame, or at every keyframe."""
    # kind 47, 5 bytes: not cancelled, no mirrors, a quarter turn, repeated for ever; then the end bit
    bits = "0" + "0" + "0" + format(0x4000, "016b") + "010" + "0"
    message = bytes([6, 47, 3]) + int((bits + "1").ljust(24, "0"), 2).to_bytes(3, "big") + b"\x80"
    path = tmp_path / "turned.ts"
    with av.open(str(oblong)) as file, av.open(str(path), "w") as target:
        stream = file.streams.video[0]
        copy = target.add_stream_from_template(stream)
        for number, packet in enumerate([p for p in file.demux(stream) if p.size]):
            data = bytes(packet)
            if number == 0:
                data = len(message).to_bytes(4, "big") + message + data
            made = av.Packet(data)
            made.pts, made.dts, made.time_base, made.is_keyframe = (
                packet.pts,
                packet.dts,
                packet.time_base,
                packet.is_keyframe,
            )
            made.stream = copy
            target.mux(made)
    truth = np.stack([_shown(frame, MATRICES["three_quarters"]) for frame in media.decode_in_order(oblong)])
    stream = open_stream(path)
    shown = np.stack([stream.rgb(frame) for frame in stream])
    stream.close()
    assert np.array_equal(shown, truth) or np.array_equal(shown, truth[:, ::-1, ::-1])  # by which way it turns
    for indices in ([0, 4], [1, 5], [6]):
        assert np.array_equal(read_frames(path, indices), shown[indices]), indices


def test_a_scaled_matrix_turns_and_a_meaningless_one_does_nothing(oblong, tmp_path, media):
    path = tmp_path / "turned.mp4"
    path.write_bytes(oblong.read_bytes())
    stored = media.decode_in_order(oblong)
    media.set_display_matrix(path, (0, 0.5, -0.5, 0))
    assert np.array_equal(read_frames(path, [1])[0], _shown(stored[1], MATRICES["quarter"]))
    media.set_display_matrix(path, (0, 0, 0, 0))
    assert np.array_equal(read_frames(path, [1])[0], stored[1])


def test_an_odd_angle_is_refused_by_name(oblong, tmp_path, media):
    path = tmp_path / "turned.mp4"
    path.write_bytes(oblong.read_bytes())
    media.set_display_matrix(path, (0.707, 0.707, -0.707, 0.707))
    with pytest.raises(DecodeError, match=r"unreadable: is to be shown turned by 45 degrees; quarter turns"):
        read_frames(path, [0])


@pytest.mark.parametrize(
    ("pixel", "size"),
    [
        (Fraction(2), (128, 64)),
        (Fraction(1, 2), (64, 128)),
        (Fraction(16, 15), (68, 64)),
        (Fraction(1), (64, 64)),
        (Fraction(200, 201), (64, 64)),  # less than 1 % is not worth changing every pixel for
    ],
)
def test_pixels_become_square(pixel, size, tmp_path, media):
    path = media.write_video(tmp_path / "a.mp4", frames=3, pixel=pixel)
    assert squared(64, 64, pixel) == size
    assert read_frames(path, [0, 2]).shape == (2, size[1], size[0], 3)
    assert media.frame_numbers(read_frames(media.write_video(tmp_path / "b.mp4", frames=3), [2])) == [2]


def test_pixels_are_squared_before_the_picture_is_turned(tmp_path, media):
    path = media.set_display_matrix(media.write_video(tmp_path / "a.mp4", frames=2, pixel=Fraction(2)), (0, 1, -1, 0))
    assert read_frames(path, [1]).shape == (1, 128, 64, 3)


def test_an_impossible_pixel_is_refused(tmp_path, media):
    with pytest.raises(DecodeError, match="unreadable: has pixels of 12 x 1"):
        read_frames(media.write_video(tmp_path / "a.mp4", frames=2, pixel=Fraction(12)), [1])


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv444p", "yuv420p10le"])
@pytest.mark.parametrize("full_range", [False, True], ids=["video_range", "full_range"])
def test_colours_of_any_matrix_and_range(full_range, pixels, tmp_path, media):
    for matrix in media.matrices:
        path = media.write_chart(tmp_path / f"{matrix}.mp4", matrix, full_range, pixels)
        assert np.abs(media.chart_colours(read_frames(path, [1])[0]) - media.chart).max() <= 5, matrix


def test_grey_is_grey(tmp_path, media):
    path = media.write_chart(tmp_path / "a.mp4", "bt709", False, "gray")
    luma = media.chart @ [0.2126, 0.7152, 0.0722]
    assert np.abs(media.chart_colours(read_frames(path, [1])[0]) - luma[:, None]).max() <= 5


def test_a_matrix_that_is_not_read_is_refused_by_name(tmp_path, media, monkeypatch):
    monkeypatch.setitem(media.matrices, "ycgco", (0.299, 0.114, 8))
    video = open_video(media.write_chart(tmp_path / "a.mp4", "ycgco", False))
    with pytest.raises(DecodeError, match="unreadable: its colour matrix, YCgCo, is not read"):
        video.read([0])
    video.close()
