"""A file is truncated where its own header says so, and nowhere else."""

from __future__ import annotations

import io
import struct

import pytest

from src.datasets.decoding.container import missing_bytes
from src.datasets.decoding.decode import DecodeError, open_video, read_frames

TRAILERS = {
    "text": b"TAGclip from the archive, do not redistribute                        ",
    "zeros": bytes(4096),
    "id3": b"TAG" + bytes(125),
    "newline": b"\n",
    "ones": b"\xff" * 300,
    "a_box_cut_short": struct.pack(">I4s", 1000, b"free") + bytes(100),
    "an_unknown_box_cut_short": struct.pack(">I4s", 1000, b"XMP_") + bytes(100),
    "a_large_box_cut_short": struct.pack(">I4sQ", 1, b"uuid", 10**9) + bytes(100),
}


@pytest.mark.parametrize("name", TRAILERS)
@pytest.mark.parametrize("options", [{}, {"movflags": "faststart"}, {"movflags": "frag_keyframe+empty_moov"}])
def test_what_follows_an_mp4_does_not_make_it_truncated(name, options, tmp_path, media):
    path = media.write_video(tmp_path / "a.mp4", frames=12, container_options=options)
    whole = path.read_bytes()
    path.write_bytes(whole + TRAILERS[name])
    assert media.frame_numbers(read_frames(path, range(12))) == list(range(12))
    assert media.frame_numbers(read_frames(whole + TRAILERS[name], [11])) == [11]


@pytest.mark.parametrize("options", [{}, {"movflags": "faststart"}, {"movflags": "frag_keyframe+empty_moov"}])
def test_a_cut_inside_the_pictures_is_still_seen(options, tmp_path, media):
    path = media.write_video(tmp_path / "a.mp4", frames=48, options={"g": "12"}, container_options=options)
    whole = path.read_bytes()
    last = max(whole.rfind(b"mdat"), whole.rfind(b"moof"))
    for end in (len(whole) // 2, last + 100):
        with pytest.raises(DecodeError, match=r"truncated: ends [0-9]+ bytes before"):
            open_video(whole[:end])


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_an_avi_written_into_a_pipe_has_no_length(size, tmp_path, media):
    data = bytearray(media.write_video(tmp_path / "a.avi", codec="mpeg4").read_bytes())
    data[4:8] = struct.pack("<I", size)
    assert media.frame_numbers(read_frames(bytes(data), [0, 47])) == [0, 47]


def test_an_avi_of_several_parts_ends_with_the_last(tmp_path):
    def riff(kind: bytes, length: int) -> bytes:
        return b"RIFF" + struct.pack("<I", length + 4) + kind + bytes(length)

    whole = riff(b"AVI ", 1000) + riff(b"AVIX", 500)
    assert missing_bytes(io.BytesIO(whole), len(whole)) == 0
    assert missing_bytes(io.BytesIO(whole[:-200]), len(whole) - 200) == 200
    assert missing_bytes(io.BytesIO(whole + b"RIF"), len(whole) + 3) == 0
    odd = riff(b"AVI ", 1001)  # padded to an even length, or not: both are written
    assert missing_bytes(io.BytesIO(odd), len(odd)) == missing_bytes(io.BytesIO(odd + b"\0"), len(odd) + 1) == 0


@pytest.mark.parametrize("name", ["a.mkv", "a.webm"])
def test_a_live_recording_has_no_length(name, tmp_path, media):
    codec = "libvpx" if name.endswith("webm") else "libx264"
    path = media.write_video(tmp_path / name, frames=12, codec=codec, container_options={"live": "1"})
    assert media.frame_numbers(read_frames(path, [0, 11])) == [0, 11]
    path.write_bytes(path.read_bytes() + b"trailing bytes")
    assert media.frame_numbers(read_frames(path, [11])) == [11]
