"""What a scene looks like: colours, textures, lights and the camera, drawn anew for every clip.

Three levels. `mild`: the scene's own textures, tinted, and a camera that moves by 12 degrees. `medium`: quiet random
textures on everything but the robot, and 35 degrees. `wild`: loud ones everywhere, from either side.

Splits share no hue band and no kind of texture, so that what was learnt of one look is not what is tested.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

LEVELS = ("mild", "medium", "wild")
SPLITS = ("train", "val", "test")

# Twelfths of the colour circle, spread over it.
HUES: dict[str, tuple[int, ...]] = {"train": (0, 1, 3, 4, 6, 7, 9, 10), "val": (2, 8), "test": (5, 11)}


class Camera(NamedTuple):
    """A free camera: it looks at a point (metres) from a distance, turned by two angles (degrees)."""

    lookat: tuple[float, float, float]
    distance: float
    azimuth: float
    elevation: float
    field: float  # of view, degrees from top to bottom

    def project(self, points: np.ndarray, size: int) -> np.ndarray:
        """Where points (n, 3), metres, lie in a square picture: x and y (n, 2), pixels from the upper left corner."""
        azimuth, elevation = np.radians(self.azimuth), np.radians(self.elevation)
        level = np.array([np.cos(azimuth), np.sin(azimuth), 0.0])
        forward = np.cos(elevation) * level + np.sin(elevation) * np.array([0, 0, 1.0])
        right = np.cross(level, [0, 0, 1.0])
        offset = points - (np.array(self.lookat) - self.distance * forward)
        half = offset @ forward * np.tan(np.radians(self.field / 2))  # metres from the middle to the edge
        seen = np.stack([offset @ right, -(offset @ np.cross(right, forward))], axis=-1)
        return (seen / half[..., None] + 1) * size / 2


def stripes(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A sine wave in a random direction."""
    return 0.5 + 0.5 * np.sin(2 * np.pi * rng.uniform(2, 14) * _along(rng, x, y) + rng.uniform(0, 6))


def checks(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squares, two colours in turn."""
    count = rng.uniform(3, 12)
    return ((np.floor(x * count) + np.floor(y * count)) % 2).astype(float)


def clouds(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Smooth noise: a few random waves in every direction."""
    waves = [np.sin(2 * np.pi * rng.uniform(1, 8) * _along(rng, x, y) + rng.uniform(0, 6)) for _ in range(8)]
    return 0.5 + np.sum(waves, axis=0) / 8


def wood(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Stripes bent by clouds."""
    return 0.5 + 0.5 * np.sin(2 * np.pi * (rng.uniform(2, 8) * _along(rng, x, y) + 2 * clouds(rng, x, y)))


def dots(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Round spots in rows."""
    count, radius = rng.uniform(3, 10), rng.uniform(0.2, 0.4)
    return (np.hypot(x * count % 1 - 0.5, y * count % 1 - 0.5) < radius).astype(float)


def _along(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    angle = rng.uniform(0, np.pi)
    return x * np.cos(angle) + y * np.sin(angle)


Pattern = Callable[[np.random.Generator, np.ndarray, np.ndarray], np.ndarray]
PATTERNS: dict[str, tuple[Pattern, ...]] = {"train": (stripes, clouds, wood), "val": (checks,), "test": (dots,)}


def colour(rng: np.random.Generator, split: str, saturation: tuple[float, float]) -> np.ndarray:
    """A colour (3,) in [0, 1] whose hue lies in one of the split's twelfths."""
    hue = (rng.choice(HUES[split]) + rng.uniform()) / 12
    shade = rng.uniform(*saturation)
    rainbow = np.clip(np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return rng.uniform(0.55, 1.0) * (1 - shade + shade * rainbow)


def texture(rng: np.random.Generator, split: str, side: int, contrast: float) -> np.ndarray:
    """A picture (side, side, 3) uint8 of two colours in one of the split's patterns."""
    y, x = np.mgrid[:side, :side] / side
    pattern = PATTERNS[split][rng.integers(len(PATTERNS[split]))](rng, x, y)[..., None]
    first = colour(rng, split, (0.1, 0.7))
    second = first + contrast * (colour(rng, split, (0.1, 0.7)) - first)
    grain = rng.normal(0, 0.02, (side, side, 3))
    return (255 * np.clip(first + (second - first) * pattern + grain, 0, 1)).astype(np.uint8)


def randomize_appearance(model: Any, context: Any, level: str, split: str, rng: np.random.Generator) -> None:
    """Give a MuJoCo model new colours, textures (uploaded into `context`) and lights, in place."""
    import mujoco

    model.mat_reflectance[:] = 0
    robot = np.isin(model.body_rootid[model.geom_bodyid], model.body_rootid[model.body("hand").id])
    plain = model.geom_matid < 0
    if level != "wild":
        plain &= ~robot
    model.geom_rgba[plain, :3] = [colour(rng, split, (0.0, 0.8)) for _ in range(int(plain.sum()))]
    robot_materials = set(model.geom_matid[robot].tolist())
    for material in range(model.nmat):
        if level == "wild" or material not in robot_materials:
            model.mat_rgba[material, :3] = colour(rng, split, (0.0, 0.3) if level == "mild" else (0.0, 0.6))
    if level != "mild":
        robot_textures = {t for m in robot_materials if m >= 0 for t in np.ravel(model.mat_texid[m]).tolist()}
        for index in range(model.ntex):
            if level == "wild" or index not in robot_textures:
                _set_texture(mujoco, model, context, index, split, 1.0 if level == "wild" else 0.35, rng)
    _light(model, rng)


def _set_texture(mujoco: Any, model: Any, context: Any, index: int, split: str, contrast: float, rng: Any) -> None:
    width, height, channels = model.tex_width[index], model.tex_height[index], model.tex_nchannel[index]
    if channels != 3:
        return
    if model.tex_type[index] == mujoco.mjtTexture.mjTEXTURE_SKYBOX:
        face = np.broadcast_to((255 * colour(rng, split, (0.0, 0.4))).astype(np.uint8), (width, width, 3))
    else:
        face = texture(rng, split, width, contrast)
    faces = np.concatenate([face] * -(-height // width))[:height]  # a cube's six faces lie below each other
    start = model.tex_adr[index]
    model.tex_data[start : start + faces.size] = faces.ravel()
    mujoco.mjr_uploadTexture(model, context, index)


def _light(model: Any, rng: np.random.Generator) -> None:
    """One light with a shadow, from a random side; the others and the camera's own fill in."""
    model.light_castshadow[:] = 0
    model.light_castshadow[0] = 1
    model.light_pos[0] = (rng.uniform(-1, 1), rng.uniform(-0.6, 1.6), 1.6)
    towards = np.array([0, 0.6, 0]) - model.light_pos[0]
    model.light_dir[0] = towards / np.linalg.norm(towards)
    model.light_diffuse[:] = rng.uniform(0.15, 0.5, (model.nlight, 1)) * rng.uniform(0.8, 1, (model.nlight, 3))
    model.light_diffuse[0] *= 1.6
    model.vis.headlight.ambient[:] = rng.uniform(0.2, 0.45)
    model.vis.headlight.diffuse[:] = rng.uniform(0.1, 0.3)


def draw_camera(level: str, path: np.ndarray, field: float, rng: np.random.Generator) -> Camera:
    """A camera on the robot's side, from where the fronts of doors and drawers are seen.

    The hand's `path` (n, 3) is in view from the first to the last step, where one of 50 draws has it so.
    """
    x, y, z = path[len(path) // 2]
    focus = np.array([0.5 * x, 0.5 * y + 0.35, 0.4 * z + 0.05])
    for _ in range(50):
        camera = _any_camera(level, focus, field, rng)
        seen = camera.project(path, 1)
        if seen.min() > 0.05 and seen.max() < 0.95:
            break
    return camera


def _any_camera(level: str, focus: np.ndarray, field: float, rng: np.random.Generator) -> Camera:
    lookat = focus + rng.uniform(-0.06, 0.06, 3)
    if level == "wild":
        azimuth = 90 + rng.choice([-1, 1]) * rng.uniform(30, 95)
        elevation, distance = rng.uniform(-50, -20), rng.uniform(0.7, 1.15)
    else:
        spread = 12 if level == "mild" else 35
        azimuth = 152 + rng.uniform(-spread, spread)
        elevation, distance = rng.uniform(-30 - spread / 2, -30 + spread / 2), rng.uniform(0.75, 0.95)
    x, y, z = (float(v) for v in lookat)
    return Camera((x, y, z), float(distance), float(azimuth), float(elevation), field)
