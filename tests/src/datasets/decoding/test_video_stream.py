"""A stream gives the frames that exact reading gives, with their times, and refuses what is no whole video."""

import numpy as np
import pytest

from src.datasets.decoding.decode import DecodeError, open_stream, read_frames

TIMES = np.cumsum(np.random.default_rng(1).integers(5, 120, 48)).tolist()
FORMATS = {
    "b_frames.mp4": {"options": {"bf": "3", "g": "12"}},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"bf": "2", "g": "12"}},
    "mpeg2.ts": {"codec": "mpeg2video", "options": {"bf": "2", "g": "12"}},
    "vfr.mkv": {"options": {"bf": "3", "g": "12"}, "times": TIMES},
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_frame_once_and_when_it_is_shown(name, tmp_path, media):
    path = media.write_video(tmp_path / name, **FORMATS[name])
    stream = open_stream(path)
    frames = list(stream)
    assert [frame.index for frame in frames] == list(range(48))
    assert np.array_equal([stream.rgb(frame) for frame in frames], read_frames(path, range(48)))
    shown = [(t - TIMES[0]) / 1000 for t in TIMES] if "times" in FORMATS[name] else np.arange(48) / 25
    np.testing.assert_allclose([frame.seconds for frame in frames], shown, atol=2e-3)
    if name.endswith("mp4"):
        assert stream.expected_frames == 48 and stream.fps == 25
    stream.close()


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [
        ("truncated", lambda data: data[: len(data) * 2 // 3]),
        ("unreadable", lambda data: b"not a video at all " * 50),
        ("empty", lambda data: b""),
        ("corrupt", lambda data: data[: len(data) // 2] + bytes(400) + data[len(data) // 2 + 400 :]),
    ],
)
def test_what_is_no_whole_video_is_an_error_of_its_kind(kind, spoil, tmp_path, media):
    path = media.write_video(tmp_path / "a.mp4", options={"bf": "3", "g": "12"})
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DecodeError) as error:
        list(open_stream(path))
    assert error.value.kind == kind and error.value.path == str(path)


def test_sound_alone_and_nothing(tmp_path, media):
    with pytest.raises(DecodeError, match="no_video"):
        open_stream(media.write_audio(tmp_path / "sound.mp4"))
    with pytest.raises(DecodeError, match="missing"):
        open_stream(tmp_path / "nowhere.mp4")
