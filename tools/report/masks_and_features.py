"""Frames, masks and features as pixels: PNG where nothing moves, WebP where it does.

Legend: B clips, C channels, T frames, H W pixels, N tokens (t, h, w their grid), D width.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from src.utils.plotting import data_uri
from src.utils.token_grid import Grid
from src.utils.visualization import principal_colors
from tools.report.page_parts import Part, Picture
from tools.report.sample_predictions import SampleClips, SamplePredictions

CLIPS, COLUMNS = 6, 8  # most that are shown: clips side by side, moments of one clip
CELL, SMALL_CELL, GAP = 150, 112, 6  # pixels of a frame, and between two
PAPER, HIDDEN, ORANGE = (255, 255, 255), (226, 229, 233), np.array([209, 102, 27])
FRAME_MS, PAUSE_MS = 220, 700  # of the animation; the pause is at its end


def mask_pictures(drawn: SampleClips, masks: Sequence[dict], clips: int = 2) -> list[Part]:
    """For each mask set what the encoder sees and what is to be predicted, on `clips` clips of the data."""
    grid, times = drawn.grid, _times(drawn.grid)
    frames = drawn.clips[:clips].permute(0, 2, 3, 4, 1).numpy()
    frames = frames[:, [t * frames.shape[1] // grid.t for t in times]]  # the first of each tubelet
    clips = len(frames)
    parts: list[Part] = []
    for number, settings in enumerate(masks):
        context, targets = drawn.context(number), drawn.targets(number)
        seen, hidden = (_to_pixels(flags[:clips], grid, frames.shape[2:4])[:, times] for flags in (context, targets))
        tinted = 0.45 * frames + 0.55 * ORANGE
        rows = [frames, np.where(seen, frames, HIDDEN), np.where(hidden, tinted, HIDDEN)]
        sheets = [_sheet([list(map(_image, row[clip])) for row in rows], SMALL_CELL) for clip in range(clips)]
        side_by_side = 2 * sheets[0].width < CLIPS * (CELL + GAP)
        picture = _join(sheets, side_by_side)
        described = ", ".join(f"{key} {value}" for key, value in settings.items() if value is not None)
        caption = (
            f"Mask set {number + 1} ({described}), on two clips; of each, left to right, the first frame of its "
            f"tubelets. The encoder sees the context, {context.mean():.0%} of the tokens here; the predictor has to "
            f"say what the target encoder makes of the targets, {targets.mean():.0%}, given nothing but their places. "
            "What is in neither was dropped, so that all clips have masks of one length."
        )
        labels = ["frames", "context", "targets"] * (1 if side_by_side else clips)
        alt = f"Context and targets of mask set {number + 1}"
        parts.append(Picture(_still(picture), alt, caption, labels, width=picture.width))
    return parts


def _times(grid: Grid) -> list[int]:
    """The tubelets that are shown: all, or COLUMNS of them."""
    return sorted({round(t) for t in np.linspace(0, grid.t - 1, min(COLUMNS, grid.t))})


def _to_pixels(flags_BN: np.ndarray, grid: Grid, size: tuple[int, int]) -> np.ndarray:
    """Token flags (B, N) -> pixel flags (B, t, H, W, 1)."""
    flags = flags_BN.reshape(-1, grid.t, grid.h, grid.w, 1)
    return flags.repeat(size[0] // grid.h, axis=2).repeat(size[1] // grid.w, axis=3)


def feature_picture(drawn: SampleClips, seen: SamplePredictions) -> Picture:
    """A few clips over the target encoder's features, coloured by their principal components, as they move."""
    clips = drawn.clips[:CLIPS].permute(0, 2, 3, 4, 1).numpy()
    rows, shares = [], []
    for features in (seen.features, seen.features - seen.features.mean(0), seen.initial - seen.initial.mean(0)):
        colors, share = principal_colors(features)
        rows.append(colors[:CLIPS].reshape(-1, drawn.grid.t, drawn.grid.h, drawn.grid.w, 3))
        shares.append(share)
    T, sheets = clips.shape[1], []
    for t in range(T):
        moment = [clips[:, t], *(row[:, t * drawn.grid.t // T] for row in rows)]
        sheets.append(_sheet([list(map(_image, row)) for row in moment], CELL))
    caption = (
        f"{len(clips)} clips of the run's data over what the target encoder ({seen.source}) makes of them, moving in "
        "step. Each square is a token, coloured by where its features lie on the three main directions (principal "
        f"components) of the features of {len(seen.features)} clips: within a row alike colours are alike features; "
        "colours of different rows cannot be compared. Features: as they are, three directions holding "
        f"{shares[0]:.0%} of their variance; {place_share(seen.features):.0%} of it says no more than where a token "
        "is. Less place: after subtracting the clips' mean at each place and time, so that what is left depends on "
        f"the clip ({shares[1]:.0%} shown). Where a thing that moves is a colour that moves, the features follow it. "
        "Untrained: the same of this encoder before its first step "
        f"({shares[2]:.0%} shown; place: {place_share(seen.initial):.0%})."
    )
    labels = ["frames", "features", "less place", "untrained, less place"]
    alt = "Frames and colour-coded token features, animated"
    return Picture(_moving(sheets), alt, caption, labels, still=_still(sheets[T // 2]), width=sheets[0].width)


def place_share(x_BND: Tensor) -> float:
    """Share of the variance of features (B, N, D) that lies between places, over the clips' mean there; 0 to 1."""
    variance = (x_BND - x_BND.mean((0, 1))).square().mean()
    return float((x_BND.mean(0) - x_BND.mean((0, 1))).square().mean() / variance.clamp_min(1e-12))


def _sheet(rows: Sequence[Sequence[Image.Image]], cell: int) -> Image.Image:
    """Images in rows and columns, each scaled to `cell` pixels wide; token maps stay square-edged."""
    first = rows[0][0]
    height = round(cell * first.height / first.width)
    width = len(rows[0]) * (cell + GAP) - GAP
    sheet = Image.new("RGB", (width, len(rows) * (height + GAP) - GAP), PAPER)
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            smooth = image.width == first.width
            resized = image.resize((cell, height), Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST)
            sheet.paste(resized, (c * (cell + GAP), r * (height + GAP)))
    return sheet


def _join(sheets: Sequence[Image.Image], side_by_side: bool) -> Image.Image:
    """Sheets of one size beside or below one another, their distance set off from that inside them if beside."""
    width, height = sheets[0].size
    step = (width + 4 * GAP, 0) if side_by_side else (0, height + GAP)
    last = len(sheets) - 1
    joined = Image.new("RGB", (width + last * step[0], height + last * step[1]), PAPER)
    for i, sheet in enumerate(sheets):
        joined.paste(sheet, (i * step[0], i * step[1]))
    return joined


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels.astype(np.uint8))


def _moving(sheets: Sequence[Image.Image]) -> str:
    """An animation without end. Of WebP, animated PNG and GIF, which every browser plays, WebP was the smallest."""
    content = io.BytesIO()
    durations = [*[FRAME_MS] * (len(sheets) - 1), FRAME_MS + PAUSE_MS]
    sheets[0].save(content, "WEBP", save_all=True, append_images=sheets[1:], duration=durations, loop=0, quality=85)
    return data_uri("webp", content.getvalue())


def _still(picture: Image.Image) -> str:
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    return data_uri("png", content.getvalue())
