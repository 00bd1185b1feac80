"""A Meta-World set on disk: webdataset shards of clips with their ground truth, and a manifest.

A folder: `train-000000.tar`, `val-000000.tar`, `test-000000.tar` and so on, with an .mp4, a .cls, a .json and a .npz
for each clip; beside each a .jsonl with a row for each clip; `classes.txt`; last of all `manifest.json` with versions
and the sha256 of every file. Every shard holds the classes in turn.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
from collections.abc import Mapping
from functools import cache, partial
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import numpy as np

from src.datasets.embedded.generate import encode
from src.datasets.embedded.metaworld.appearance import SPLITS
from src.datasets.embedded.metaworld.clip import Clip, ClipRenderer, Settings
from src.datasets.embedded.metaworld.tasks import CLASSES, TASKS
from src.datasets.webdataset.prepared_shards import MANIFEST, write
from src.datasets.webdataset.shard_writer import Sample, claimed, write_shards
from src.utils.errors import UserError

FORMAT = 1  # raised when the same settings would give other clips than before
KIND = "metaworld"
CLIPS_PER_SHARD = 5 * len(TASKS)
_X264 = {"crf": "18", "preset": "veryfast", "g": "16", "bf": "0", "threads": "1"}
_VERSIONS = ("metaworld", "mujoco", "numpy", "av")


def write_set(out: Path, counts: Mapping[str, int], settings: Settings, workers: int) -> dict[str, Any]:
    """Write the shards that are not there yet, then the manifest, which is returned.

    Args:
        counts: split -> clips, for each of SPLITS.

    Raises UserError where `out` holds something else, or a clip cannot be made.
    """
    plan: dict[str, Any] = {"kind": KIND, "format": FORMAT, **settings.as_dict(), **counts}
    plan |= {name: importlib.metadata.version(name) for name in ("metaworld", "mujoco")}
    shards = {
        f"{split}-{first // CLIPS_PER_SHARD:06d}": [
            (split, i) for i in range(first, min(first + CLIPS_PER_SHARD, counts[split]))
        ]
        for split in SPLITS
        for first in range(0, counts[split], CLIPS_PER_SHARD)
    }
    if not shards:
        raise UserError("no clips asked for: --train, --val or --test must be above 0")
    with claimed(out, plan):
        rows = write_shards(out, shards, partial(make_sample, settings), workers, what="rendering", unit="clips")
        write(out / "classes.txt", "".join(f"{name}\n" for name in CLASSES))
        names = [f"{shard}.{suffix}" for shard in shards for suffix in ("tar", "jsonl")]
        manifest = {
            **plan,
            "versions": {name: importlib.metadata.version(name) for name in _VERSIONS},
            "clips": sum(map(len, rows.values())),
            "files": {name: _digest(out / name) for name in [*names, "classes.txt"]},
        }
        write(out / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return manifest


def make_sample(settings: Settings, item: tuple[str, int]) -> Sample:
    """A clip as the files of a shard, by its split and number."""
    split, index = item
    clip = _renderer(settings).clip(split, index)
    about = {
        "class": CLASSES[clip.label],
        "scene": clip.label // 2,
        "direction": clip.label % 2,
        "split": split,
        "index": index,
        "camera": clip.camera._asdict(),
    }
    files = {
        "mp4": _video(clip, settings.fps),
        "cls": str(clip.label).encode(),
        "json": json.dumps(about).encode(),
        "npz": _arrays(clip.truth),
    }
    row = {**about, "label": clip.label, "sha256": hashlib.sha256(files["mp4"]).hexdigest()}
    return Sample(f"{index:06d}", files, row)


@cache
def _renderer(settings: Settings) -> ClipRenderer:
    """This process's renderer, closed when it ends."""
    renderer = ClipRenderer(settings)
    Finalize(None, renderer.close, exitpriority=10)
    return renderer


def _video(clip: Clip, fps: int) -> bytes:
    buffer = io.BytesIO()
    encode(buffer, clip.frames, fps, _X264)
    return buffer.getvalue()


def _arrays(truth: Mapping[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **truth)  # type: ignore[arg-type]
    return buffer.getvalue()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
