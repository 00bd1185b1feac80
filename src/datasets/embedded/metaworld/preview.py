"""A sheet to look at: a row for every class, frames from left to right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from src.datasets.embedded.metaworld.appearance import SPLITS
from src.datasets.embedded.metaworld.clip import ClipRenderer
from src.datasets.embedded.metaworld.tasks import CLASSES
from src.utils.errors import UserError

_FRAMES, _GAP, _TITLE = 8, 2, 12


def write_sheet(renderer: ClipRenderer, path: Path, columns: int = 2) -> None:
    """One clip of each class of the training split, `columns` classes side by side. Raises UserError if unwritable."""
    strips = []
    for label, name in enumerate(CLASSES):
        frames = renderer.clip(SPLITS[0], label).frames
        chosen = frames[np.linspace(0, len(frames) - 1, _FRAMES).round().astype(int)]
        row = np.concatenate([np.pad(frame, ((0, _GAP), (0, _GAP), (0, 0))) for frame in chosen], axis=1)
        strip = Image.new("RGB", (row.shape[1], row.shape[0] + _TITLE))
        strip.paste(Image.fromarray(row), (0, _TITLE))
        ImageDraw.Draw(strip).text((2, 0), name, fill="white")
        strips.append(np.asarray(strip))
    rows = -(-len(strips) // columns)
    sheet = np.concatenate([np.concatenate(strips[i * rows : (i + 1) * rows]) for i in range(columns)], axis=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sheet).save(path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {path}: {error}") from None
