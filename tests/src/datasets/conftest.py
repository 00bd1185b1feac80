"""Small real videos whose frames carry their own number."""

from __future__ import annotations

import struct
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
    pixel: Fraction | None = None,
) -> Path:
    """A video of numbered frames. `times`: when each is shown, in thousandths of a second (variable frame rate).

    `pixel`: the width of a pixel by its height.
    """
    phases = np.random.default_rng(len(path.name)).uniform(0, 6, 3)
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.options = side, side, "yuv420p", options or {}
        if pixel is not None:
            stream.codec_context.sample_aspect_ratio = pixel
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


def decode_in_order(path: Path, stream: int = 0) -> np.ndarray:
    """Every frame as it is stored, one after another, without any seeking: the truth."""
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=stream)])


def set_display_matrix(path: Path, matrix: tuple[float, float, float, float]) -> Path:
    """Write (a, b, c, d) into the track header of an mp4 file: (x, y) is shown at (a x + c y, b x + d y)."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 4 + 20 + 8 + 8  # version 0: flags, times and track, reserved, layer and volume
    a, b, c, d = (round(v * 2**16) for v in matrix)
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 2**30)
    path.write_bytes(data)
    return path


# Colours in blocks of 32 x 32 pixels, and the matrices to store them by: (Kr, Kb, number in ITU-T H.273).
CHART = np.array(
    [(200, 30, 30), (30, 180, 30), (30, 30, 200), (224, 172, 140), (16, 16, 16), (0, 0, 0), (255, 255, 255)]
)
MATRICES = {
    "bt709": (0.2126, 0.0722, 1),
    "untagged": (0.299, 0.114, 2),
    "fcc": (0.30, 0.11, 4),
    "bt470bg": (0.299, 0.114, 5),
    "smpte170m": (0.299, 0.114, 6),
    "smpte240m": (0.212, 0.087, 7),
    "bt2020": (0.2627, 0.0593, 9),
}


def write_chart(path: Path, matrix: str, full_range: bool, pixels: str = "yuv420p") -> Path:
    """The chart in H.264, its numbers computed here from the matrix's definition (ITU-T H.273, 8.3)."""
    kr, kb, tag = MATRICES[matrix]
    r, g, b = CHART.T / 255
    y = kr * r + (1 - kr - kb) * g + kb * b
    signals = np.stack([y, (b - y) / (2 * (1 - kb)), (r - y) / (2 * (1 - kr))])
    bits = 10 if pixels.endswith("10le") else 8
    step, middle = 2 ** (bits - 8), np.array([[0], [2 ** (bits - 1)], [2 ** (bits - 1)]])
    scale, offset = (
        (2**bits - 1, 0) if full_range else (np.array([[219], [224], [224]]) * step, [[16 * step], [0], [0]])
    )
    numbers = np.clip(np.round(signals * scale + middle + offset), 0, 2**bits - 1)
    numbers = numbers.astype(np.uint16 if bits > 8 else np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32 * len(CHART), 32, pixels
        stream.options = {"crf": "1", "preset": "ultrafast"}
        stream.codec_context.colorspace, stream.codec_context.color_range = tag, 2 if full_range else 1
        for _ in range(3):
            frame = av.VideoFrame(stream.width, stream.height, pixels)
            frame.colorspace, frame.color_range = tag, 2 if full_range else 1
            for plane, row in zip(frame.planes, numbers):
                block = 16 if plane.width < stream.width else 32
                rows = np.zeros((plane.height, plane.line_size // row.itemsize), row.dtype)
                rows[:, : plane.width] = np.repeat(row, block)
                plane.update(rows.tobytes())
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def chart_colours(frame: np.ndarray) -> np.ndarray:
    """The colours in the middle of the chart's blocks, (7, 3)."""
    return frame[16, 16::32].astype(int)


class Media:
    """The helpers above, as a fixture: test modules cannot import each other."""

    write_video = staticmethod(write_video)
    write_audio = staticmethod(write_audio)
    frame_numbers = staticmethod(frame_numbers)
    decode_in_order = staticmethod(decode_in_order)
    set_display_matrix = staticmethod(set_display_matrix)
    write_chart = staticmethod(write_chart)
    chart_colours = staticmethod(chart_colours)
    chart, matrices = CHART, MATRICES


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
