"""Small real videos whose frames carry their own number."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch.utils.data import _utils, dataloader

torch.set_num_threads(1)

SIDE, BITS = 64, 12


def numbered_frame(number: int, phases: np.ndarray, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """Smooth colour above, and below it the number as 12 black or white blocks, six to a row."""
    frame = np.empty((height, width, 3), np.uint8)
    ys, xs = np.mgrid[0:height, 0:width]
    for c, phase in enumerate(phases):
        frame[..., c] = 128 + 80 * np.sin(0.05 * (xs + ys * (c + 1)) + phase + number * 0.3)
    block = width // 6
    for bit in range(BITS):
        row, column = divmod(bit, 6)
        top = height - (2 - row) * block
        frame[top : top + block, column * block : (column + 1) * block] = 255 * (number >> bit & 1)
    return frame


def frame_numbers(frames: np.ndarray) -> list[int]:
    """The numbers in frames (T, H, W, 3)."""
    block = frames.shape[2] // 6
    numbers = []
    for frame in frames:
        number = 0
        for bit in range(BITS):
            row, column = divmod(bit, 6)
            top = frame.shape[0] - (2 - row) * block
            patch = frame[top + 2 : top + block - 2, column * block + 2 : (column + 1) * block - 2]
            number |= int(patch.mean() > 128) << bit
        numbers.append(number)
    return numbers


def write_video(
    path: Path,
    frames: int = 48,
    codec: str = "libx264",
    fps: int = 25,
    options: dict[str, str] | None = None,
    times: list[int] | None = None,
    side: int = SIDE,
    audio: bool = False,
    container_options: dict[str, str] | None = None,
) -> Path:
    """A video of numbered frames. `times`: when each is shown, in thousandths of a second (variable frame rate)."""
    phases = np.random.default_rng(len(path.name)).uniform(0, 6, 3)
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.options = side, side, "yuv420p", options or {}
        if times is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        sound = container.add_stream("aac", rate=16000) if audio else None
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered_frame(i, phases, side, side), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            mux_silence(container, sound)
    return path


def mux_silence(container: av.container.OutputContainer, stream: av.AudioStream) -> None:
    """A second of silence."""
    for i in range(16):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, i * 1024
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def write_audio(path: Path) -> Path:
    """A file with sound and no pictures."""
    with av.open(str(path), "w") as container:
        mux_silence(container, container.add_stream("aac", rate=16000))
    return path


def decode_in_order(path: Path) -> np.ndarray:
    """Every frame, one after another, without any seeking: the truth."""
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


class Media:
    """The helpers above, as a fixture: test modules cannot import each other."""

    write_video = staticmethod(write_video)
    write_audio = staticmethod(write_audio)
    frame_numbers = staticmethod(frame_numbers)
    decode_in_order = staticmethod(decode_in_order)


@pytest.fixture(scope="session", autouse=True)
def noticed_soon():
    """The end of a data worker is noticed within a fifth of a second, not five, and no longer waited for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
        patch.setattr(dataloader._MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))
        yield


@pytest.fixture(scope="session")
def media() -> type[Media]:
    return Media


@pytest.fixture(scope="session")
def mp4_list(tmp_path_factory, media):
    """A list of twelve 24-frame mp4 files with labels 0 to 3."""
    folder = tmp_path_factory.mktemp("videos")
    for i in range(12):
        media.write_video(folder / f"video {i}.mp4", frames=24, options={"preset": "ultrafast", "g": "12"})
    path = folder / "train.csv"
    path.write_text("".join(f"video {i}.mp4 {i % 4}\n" for i in range(12)))
    return path
