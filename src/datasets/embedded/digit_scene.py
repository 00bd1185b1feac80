"""The embedded data's scenes: a handwritten digit in motion over a panning, cluttered, noisy background.

A clip's scene is a point on a torus of six circles, `COORDINATES`: the object's place (the image wraps around), its
angle, its size, the gap between its two copies, and its opacity. The class says which coordinate turns, and in which
sense. All six phases are uniform when a clip starts and so are uniform at EVERY frame, whichever of them turns: the
distribution of one frame is the same for all classes by construction, and only the order of frames tells them apart.
Every frame is rendered from its own phases alone, so a clip played backwards is a clip of the reversed class.

Units: pixels and frames unless a name says otherwise. Legend: T frames, H W pixels, P side of a glyph's window.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

COORDINATES: tuple[str, ...] = ("x", "y", "angle", "size", "gap", "opacity")

# Classes come in time-reversed pairs: class 2k and class 2k + 1 turn the same coordinates in opposite senses.
# y grows downwards, as image rows do; a growing angle is clockwise on the screen.
_DIAGONAL = float(np.sqrt(0.5))
_PAIRS: tuple[tuple[str, str, dict[str, float]], ...] = (
    ("right", "left", {"x": 1.0}),
    ("down", "up", {"y": 1.0}),
    ("down_right", "up_left", {"x": _DIAGONAL, "y": _DIAGONAL}),
    ("down_left", "up_right", {"x": -_DIAGONAL, "y": _DIAGONAL}),
    ("clockwise", "counterclockwise", {"angle": 1.0}),
    ("zoom_in", "zoom_out", {"size": 1.0}),
    ("part", "approach", {"gap": 1.0}),
    ("appear", "vanish", {"opacity": 1.0}),
)
CLASSES: tuple[str, ...] = tuple(name for forth, back, _ in _PAIRS for name in (forth, back))
REVERSED: tuple[int, ...] = tuple(label ^ 1 for label in range(len(CLASSES)))
DIRECTION = np.array([[sense * turn.get(c, 0.0) for c in COORDINATES] for _, _, turn in _PAIRS for sense in (1, -1)])

Range = tuple[float, float]


@dataclass(frozen=True)
class SceneConfig:
    """Everything that sets how hard the data is. Ranges are (low, high) of a uniform draw, one per clip."""

    frames: int = 16
    size: int = 64  # side of the square image
    fps: int = 8
    # The object: two copies of one glyph, `gap` glyph sizes apart along a random axis.
    glyph: Range = (26.0, 32.0)  # side of the digit's 8x8 box at zoom 1
    zoom: Range = (0.6, 1.25)  # the circle that `size` runs through, log-uniform
    gap: Range = (0.75, 1.4)  # the circle that `gap` runs through, in glyph sizes
    opacity: Range = (0.3, 1.0)  # the circle that `opacity` runs through
    # Speeds of the coordinate that turns.
    translate_speed: Range = (1.5, 3.0)  # pixels per frame
    rotate_speed: Range = (10.0, 18.0)  # degrees per frame
    zoom_speed: Range = (0.05, 0.08)  # rounds of the circle per frame, as for the next two
    gap_speed: Range = (0.05, 0.08)
    fade_speed: Range = (0.05, 0.08)
    wobble: float = 0.3  # amplitude of a sway of the object's place that means nothing, pixels
    # The camera, and what is fixed to the world it pans over.
    camera_speed: Range = (0.3, 1.0)  # pixels per frame, any direction
    relative_speed: float = 0.7  # the camera's velocity differs from the object's by at least this
    texture_scale: Range = (2.0, 8.0)  # correlation length of the background
    texture_contrast: Range = (0.02, 0.05)  # its standard deviation, white minus black being 1
    distractors: tuple[int, int] = (1, 3)  # blobs, bars and strokes, both ends included
    distractor_opacity: Range = (0.3, 0.7)
    # The sensor.
    noise: float = 0.02  # standard deviation, drawn anew for each frame
    brightness: float = 0.06  # largest shift and
    contrast: float = 0.15  # largest relative change of contrast, constant in a clip


@dataclass(frozen=True)
class MotionPath:
    """A clip's motion: phases (6,) in turns at the clip's middle, turns per frame (6,), the world's drift (2,).

    Time runs from -(T - 1) / 2 to (T - 1) / 2, so that reversing time only changes the velocities' signs.
    """

    label: int
    middle: np.ndarray
    velocity: np.ndarray
    sway: np.ndarray  # (2, 3): amplitude in turns, turns per frame and phase in turns, of x and of y
    world_middle: np.ndarray
    world_velocity: np.ndarray

    def phases(self, frames: int) -> np.ndarray:
        """(T, 6) phases in [0, 1)."""
        time = np.arange(frames)[:, None] - (frames - 1) / 2
        turns = self.middle + self.velocity * time
        amplitude, frequency, phase = self.sway.T
        turns[:, :2] += amplitude * np.sin(2 * np.pi * (frequency * time + phase))
        return turns % 1.0

    def world(self, frames: int) -> np.ndarray:
        """(T, 2) shift of the world in the image, x and y in pixels."""
        time = np.arange(frames)[:, None] - (frames - 1) / 2
        return self.world_middle + self.world_velocity * time

    def reversed(self) -> MotionPath:
        """The same motion with time running backwards: a path of class `REVERSED[label]`."""
        return replace(
            self,
            label=REVERSED[self.label],
            velocity=-self.velocity,
            sway=self.sway * (1, -1, 1),
            world_velocity=-self.world_velocity,
        )


def draw_path(rng: np.random.Generator, label: int, scene: SceneConfig) -> MotionPath:
    """A random path of class `label`; the draw of path c reversed has the distribution of a draw of `REVERSED[c]`."""
    per_frame = {
        "x": (scene.translate_speed, 1 / scene.size),
        "y": (scene.translate_speed, 1 / scene.size),
        "angle": (scene.rotate_speed, 1 / 360),
        "size": (scene.zoom_speed, 1.0),
        "gap": (scene.gap_speed, 1.0),
        "opacity": (scene.fade_speed, 1.0),
    }
    direction = DIRECTION[label]
    speed, unit = per_frame[COORDINATES[int(np.flatnonzero(direction)[0])]]
    velocity = direction * rng.uniform(*speed) * unit
    sway = np.stack(
        [rng.uniform(0, scene.wobble, 2) / scene.size, rng.uniform(0.03, 0.12, 2), rng.uniform(size=2)], axis=1
    )
    while True:
        heading = rng.uniform(0, 2 * np.pi)
        world = rng.uniform(*scene.camera_speed) * np.array([np.cos(heading), np.sin(heading)])
        if np.linalg.norm(world - velocity[:2] * scene.size) >= scene.relative_speed:
            break
    return MotionPath(label, rng.uniform(size=6), velocity, sway, rng.uniform(0, scene.size, 2), world)


def _smoothstep(x: np.ndarray, low: float, high: float) -> np.ndarray:
    x = np.clip((x - low) / (high - low), 0, 1)
    return x * x * (3 - 2 * x)


def glyph_mask(glyph: np.ndarray, cells: int = 64, margin: float = 0.125) -> np.ndarray:
    """A small square image in [0, 1] as a smooth (cells, cells) mask, with an empty `margin` (of a side) around it."""
    side = glyph.shape[0]
    centre = (np.arange(cells) + 0.5) / cells * (1 + 2 * margin) - margin
    distance = centre[:, None] * side - (np.arange(side) + 0.5)
    width = 0.5  # of the interpolating Gaussian, in pixels of the small image
    blend = np.exp(-0.5 * (distance / width) ** 2) / (width * np.sqrt(2 * np.pi))
    mask = _smoothstep(blend @ glyph @ blend.T, 0.2, 0.6)
    mask[[0, -1]] = 0
    mask[:, [0, -1]] = 0
    return mask.astype(np.float32)


def draw_object(phases: np.ndarray, mask: np.ndarray, glyph_size: float, axis: float, scene: SceneConfig) -> np.ndarray:
    """Opacity (T, H, W) in [0, 1] of the object at `phases` (T, 6); `axis`, radians, is where its second copy lies."""
    frames, size, cells = len(phases), scene.size, len(mask)
    x, y, angle, zoom, gap, opacity = phases.T
    angle = 2 * np.pi * angle
    zoom = glyph_size * scene.zoom[0] * (scene.zoom[1] / scene.zoom[0]) ** zoom
    gap = zoom * (scene.gap[0] + (scene.gap[1] - scene.gap[0]) * gap)
    opacity = scene.opacity[0] + (scene.opacity[1] - scene.opacity[0]) * opacity
    # Only a window around each copy is sampled; at most the whole image, so that no pixel is met twice.
    side = min(size, 2 * int(np.ceil(0.75 * zoom.max())) + 2)
    offset = np.arange(side) - side // 2 + 1
    canvas = np.zeros((frames, size, size), dtype=np.float32)
    cos = (np.cos(angle) / zoom)[:, None, None]
    sin = (np.sin(angle) / zoom)[:, None, None]
    for sense in (-0.5, 0.5):
        centre_x = x * size + sense * gap * np.cos(angle + axis)
        centre_y = y * size + sense * gap * np.sin(angle + axis)
        columns = np.floor(centre_x).astype(int)[:, None] + offset
        rows = np.floor(centre_y).astype(int)[:, None] + offset
        dx = (columns - centre_x[:, None])[:, None, :]
        dy = (rows - centre_y[:, None])[:, :, None]
        # Into the glyph's own frame, then to positions in the mask, whose border cells are empty.
        u = np.clip((cos * dx + sin * dy + 0.625) * (cells / 1.25) - 0.5, 0, cells - 1.001)
        v = np.clip((cos * dy - sin * dx + 0.625) * (cells / 1.25) - 0.5, 0, cells - 1.001)
        column, row = u.astype(np.int32), v.astype(np.int32)
        u, v = (u - column).astype(np.float32), (v - row).astype(np.float32)
        at = row * cells + column
        flat = mask.ravel()
        top = flat[at] * (1 - u) + flat[at + 1] * u
        bottom = flat[at + cells] * (1 - u) + flat[at + cells + 1] * u
        where = (np.arange(frames)[:, None, None], (rows % size)[:, :, None], (columns % size)[:, None, :])
        canvas[where] = np.maximum(canvas[where], top * (1 - v) + bottom * v)
    return canvas * opacity[:, None, None].astype(np.float32)


def _ink(rng: np.random.Generator, spread: float = 0.2) -> np.ndarray:
    """A random bright or dark colour (3,), away from the backgrounds' middle greys."""
    shade = rng.uniform(0, spread, 3)
    return shade if rng.random() < 0.5 else 1 - shade


def draw_world(rng: np.random.Generator, scene: SceneConfig) -> np.ndarray:
    """A toroidal tile (3, H, W): smooth random texture with blobs, bars and strokes on it (none of them a digit)."""
    size = scene.size
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    scale = rng.uniform(*scene.texture_scale)
    spectrum = np.fft.rfft2(rng.standard_normal((2, size, size))) * np.exp(
        -0.5 * (2 * np.pi * frequency * scale / 2) ** 2
    )
    spectrum[:, 0, 0] = 0
    texture = np.fft.irfft2(spectrum, s=(size, size))
    texture /= texture.std(axis=(1, 2), keepdims=True)
    tint = rng.uniform(-1, 1, (3, 2)) * (0.3, 0.6) + (1, 0)  # mostly light and dark, with some colour
    tint /= np.sqrt((tint**2).sum(axis=1).mean())
    world = rng.uniform(0.4, 0.6, (3, 1, 1)) + rng.uniform(*scene.texture_contrast) * np.tensordot(tint, texture, 1)
    grid = np.arange(size)
    for _ in range(rng.integers(scene.distractors[0], scene.distractors[1] + 1)):
        # A chain of segments with round ends: short and thick is a blob, straight a bar, bent and thin a stroke.
        kind = rng.integers(3)
        length = (rng.uniform(0, 5), rng.uniform(8, 20), rng.uniform(5, 8))[kind] * size / 64
        radius = (rng.uniform(2.5, 5.5), rng.uniform(1.2, 3), rng.uniform(1, 1.8))[kind] * size / 64
        heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.uniform(-1.3, 1.3, (1, 1, 3)[kind]))
        corners = np.concatenate(
            [[[0, 0]], np.cumsum(length * np.stack([np.cos(heading), np.sin(heading)], 1), axis=0)]
        )
        place = rng.uniform(0, size, 2) - corners.mean(axis=0)
        centre = place + corners.mean(axis=0)
        x, y = ((grid - c + size / 2) % size + c - size / 2 for c in centre)
        x, y = x[None, :], y[:, None]
        distance = np.full((size, size), np.inf)
        for (x0, y0), (x1, y1) in zip(corners[:-1] + place, corners[1:] + place, strict=True):
            sx, sy = x1 - x0, y1 - y0
            along = np.clip(((x - x0) * sx + (y - y0) * sy) / (sx * sx + sy * sy + 1e-9), 0, 1)
            distance = np.minimum(distance, (x - x0 - along * sx) ** 2 + (y - y0 - along * sy) ** 2)
        cover = rng.uniform(*scene.distractor_opacity) * _smoothstep(radius - np.sqrt(distance), -0.7, 0.7)
        world += cover * (_ink(rng)[:, None, None] - world)
    return world


def pan(world: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """The tile (3, H, W) moved by each `shift` (T, 2), x and y in pixels, as (T, 3, H, W): exact between pixels too."""
    size = world.shape[-1]
    spectrum = np.fft.rfft2(world.astype(np.float32))
    across = np.exp(-2j * np.pi * shift[:, :1] * np.fft.rfftfreq(size)).astype(np.complex64)
    down = np.exp(-2j * np.pi * shift[:, 1:] * np.fft.fftfreq(size)).astype(np.complex64)
    return np.fft.irfft2(spectrum * (down[:, :, None] * across[:, None, :])[:, None], s=(size, size))


def render_path(rng: np.random.Generator, path: MotionPath, glyph: np.ndarray, scene: SceneConfig) -> np.ndarray:
    """The uint8 clip (T, H, W, 3) of a path: `rng` gives the appearance (colours, texture, clutter, noise) only."""
    frames = scene.frames
    world = draw_world(rng, scene)
    glyph_size, axis = rng.uniform(*scene.glyph), rng.uniform(0, 2 * np.pi)
    ink = _ink(rng).astype(np.float32)
    contrast = 1 + scene.contrast * rng.uniform(-1, 1)
    brightness = 0.5 + scene.brightness * rng.uniform(-1, 1)
    clip = pan(world, path.world(frames))
    cover = draw_object(path.phases(frames), glyph_mask(glyph), glyph_size, axis, scene)[:, None]
    clip += cover * (ink[:, None, None] - clip)
    clip = (clip - np.float32(0.5)) * np.float32(contrast) + np.float32(brightness)
    clip += scene.noise * rng.standard_normal(clip.shape, dtype=np.float32)
    return np.ascontiguousarray(np.clip(clip * 255 + 0.5, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1))


def render_clip(rng: np.random.Generator, label: int, glyph: np.ndarray, scene: SceneConfig) -> np.ndarray:
    """One uint8 clip (T, H, W, 3) of class `label` showing `glyph`, a small square image in [0, 1] (8x8 for digits)."""
    return render_path(rng, draw_path(rng, label, scene), glyph, scene)
