"""Small files of every kind that users give, whole and damaged: what benchmarks/fuzz.py reads.

Legend: `other` is another whole file of the same kind.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from PIL import Image

from app.vjepa.config import PretrainConfig
from app.vjepa.train import main as train

SIDE, FRAMES = 64, 24
VIDEOS = {
    "a.mp4": ("libx264", {"bf": "2", "g": "8"}),
    "fragmented.mp4": ("libx264", {"g": "8"}),
    "refresh.mp4": ("libx264", {"x264-params": "intra-refresh=1:keyint=12:bframes=2"}),
    "turned.mp4": ("libx264", {"g": "8"}),
    "a.mkv": ("libx264", {"bf": "2", "g": "8"}),
    "a.webm": ("libvpx-vp9", {"g": "8", "deadline": "realtime", "cpu-used": "8"}),
    "vp8.webm": ("libvpx", {"g": "8", "deadline": "realtime", "cpu-used": "8"}),
    "a.avi": ("mpeg4", {"bf": "2", "g": "8"}),
    "a.mov": ("mjpeg", {}),
    "a.mpg": ("mpeg2video", {"bf": "2", "g": "8"}),
    "a.ts": ("libx264", {"bf": "2", "g": "8"}),
    "a.wmv": ("wmv2", {"g": "8"}),
    "a.flv": ("libx264", {"g": "8"}),
    "a.gif": ("gif", {}),
}

Damage = Callable[[bytes, bytes, np.random.Generator], bytes]


def flip(data: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    """Some bits are others."""
    array = np.frombuffer(data, np.uint8).copy()
    places = rng.integers(0, len(array), int(rng.integers(1, 40)))
    array[places] ^= (1 << rng.integers(0, 8, len(places))).astype(np.uint8)
    return array.tobytes()


def flip_head(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Some bits of the first half kilobyte are others: headers."""
    return flip(data[:512], other, rng) + data[512:]


def cut(data: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    """The end is missing."""
    return data[: int(rng.integers(0, len(data)))]


def cut_start(data: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    """The beginning is missing."""
    return data[int(rng.integers(1, len(data))) :]


def cut_middle(data: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    """A part is missing."""
    first, second = sorted(rng.integers(0, len(data), 2))
    return data[:first] + data[second:]


def join(data: bytes, other: bytes, _: np.random.Generator) -> bytes:
    """Another file follows."""
    return data + other


def splice(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Another file's end."""
    return data[: int(rng.integers(1, len(data)))] + other[int(rng.integers(0, len(other))) :]


def blank(data: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    """A stretch of zeros or ones, as a disk leaves it."""
    first, second = sorted(rng.integers(0, len(data), 2))
    return data[:first] + bytes([int(rng.choice([0, 255]))]) * int(second - first) + data[second:]


def insert(data: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    """Something is in between."""
    place = int(rng.integers(0, len(data)))
    return data[:place] + rng.bytes(int(rng.integers(1, 64))) + data[place:]


def shuffle_lines(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Lines in another order, some twice, some from another file, other line ends."""
    lines = (data + other).split(b"\n")
    ends = [b"\n", b"\r\n", b"\r", b"\n\n"][int(rng.integers(4))]
    return ends.join(lines[i] for i in rng.integers(0, len(lines), len(lines)))


BYTES: tuple[Damage, ...] = (flip, flip_head, cut, cut_start, cut_middle, join, splice, blank, insert)


def write_video(path: Path) -> Path:
    """24 frames of 64 pixels, in one of the formats of VIDEOS."""
    codec, options = VIDEOS[path.name]
    container_options = {"movflags": "frag_keyframe+empty_moov"} if path.name.startswith("fragmented") else {}
    with av.open(str(path), "w", options=container_options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width = stream.height = SIDE
        stream.pix_fmt = {"mjpeg": "yuvj420p", "gif": "rgb8"}.get(codec, "yuv420p")
        stream.options = options
        for i in range(FRAMES):
            picture = np.add.outer(np.arange(SIDE) * 2 + 5 * i, np.arange(SIDE) * 2).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.stack([picture] * 3, -1), format="rgb24")))
        container.mux(stream.encode())
    return path


def write_shard(path: Path, videos: list[Path]) -> Path:
    """Six videos with their labels."""
    with tarfile.open(path, "w") as archive:
        for i, video in enumerate(videos * 3):
            for name, data in ((f"{i:03}{video.suffix}", video.read_bytes()), (f"{i:03}.cls", str(i % 3).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def write_checkpoint(folder: Path, videos: Path, model: str) -> Path:
    """A run of one step."""
    data = {"datasets": [str(videos)], "batch_size": 2, "num_frames": 4, "sampling_rate": 1, "crop_size": 32}
    raw = {
        "data": data | {"num_workers": 0, "mask_type": "random_tube"},
        "logging": {"folder": str(folder)},
        "mask": [{"ratio": 0.5}],
        "model": {"model_name": model, "pred_depth": 1, "pred_embed_dim": 24, "use_mask_tokens": True},
        "optimization": {"epochs": 1, "ipe": 1, "lr": 1e-4},
    }
    train(PretrainConfig.model_validate(raw))
    return folder / "jepa-latest.pth.tar"


def write_originals(folder: Path) -> dict[str, list[Path]]:
    """Whole files of each kind."""
    videos = [write_video(folder / name) for name in VIDEOS]
    plain = [video for video in videos if video.name in ("a.mp4", "a.webm")]
    forms = {
        "spaces.csv": "".join(f"{v.name} {i % 3}\n" for i, v in enumerate(plain * 6)),
        "commas.csv": "path,label\n" + "".join(f"{v.name},{i % 3}\n" for i, v in enumerate(plain * 6)),
        "quoted.csv": "".join(f'"{v}" {i % 3}\n' for i, v in enumerate(plain * 6)),
    }
    for name, text in forms.items():
        (folder / name).write_text(text)
    images = []
    for name in ("a.png", "a.jpg", "a.webp", "a.gif", "a.tif", "a.bmp"):
        images.append(folder / "images" / name)
        images[-1].parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(images[-1])
    return {
        "video": videos,
        "image": images,
        "list": [folder / name for name in forms],
        "shard": [write_shard(folder / f"{v.suffix[1:]}.tar", [v]) for v in plain],
        "yaml": sorted([*Path("configs/pretrain").glob("*.yaml"), *Path("configs/evals").glob("*.yaml")]),
        "checkpoint": [write_checkpoint(folder / m, folder / "spaces.csv", m) for m in ("vit_nano", "videomamba_nano")],
    }
