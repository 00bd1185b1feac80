"""A clip by its number: which task, a start and a goal, what it looks like, and its frames.

Legend: T frames, H W pixels.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from src.datasets.embedded.metaworld.appearance import SPLITS, Camera, draw_camera, randomize_appearance
from src.datasets.embedded.metaworld.episode import Episode, simulate
from src.datasets.embedded.metaworld.tasks import CLASSES, TASKS
from src.utils.errors import UserError

ATTEMPTS = 20
_SUPERSAMPLE = 2  # rendered at twice the size and averaged: 2 x 2 samples a pixel


@dataclass(frozen=True)
class Settings:
    """What all clips of a set have in common.

    Attributes:
        size: side of the square frames, pixels.
        frames: of a clip; its steps are spread over the action, so actions of any duration fill a clip.
        level: mild, medium or wild (appearance.py).
        seed: another seed is another set.
        fps: what the file says, frames per second.
    """

    size: int = 112
    frames: int = 32
    level: str = "mild"
    seed: int = 0
    fps: int = 12

    def as_dict(self) -> dict[str, int | str]:
        """Plain values for a manifest."""
        return asdict(self)


class Clip(NamedTuple):
    """A rendered clip.

    Attributes:
        frames: uint8 (T, H, W, 3).
        label: 2 x scene + direction.
        truth: arrays beside it: `hand_world` (T, 3) metres, `hand_image` (T, 2) pixels, x and y from the upper left
            corner, `objects` (T, n) joint positions of everything but the robot.
        camera: where it was seen from.
    """

    frames: np.ndarray
    label: int
    truth: dict[str, np.ndarray]
    camera: Camera


@dataclass
class ClipRenderer:
    """Simulators and renderers of the tasks, each made when it is first wanted; a context manager that closes them."""

    settings: Settings
    _tasks: dict[str, tuple[Any, Any, Any]] = field(default_factory=dict)

    def __enter__(self) -> ClipRenderer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of all of them."""
        for env, _, renderer in self._tasks.values():
            renderer.close()
            env.close()
        self._tasks.clear()

    def _task(self, name: str) -> tuple[Any, Any, Any]:
        if name not in self._tasks:
            import metaworld
            import mujoco
            from metaworld.policies import ENV_POLICY_MAP

            env = metaworld.ALL_V3_ENVIRONMENTS[name]()
            quality, distance = env.model.vis.quality, env.model.vis.map
            quality.shadowsize, quality.offsamples = 1024, 0
            distance.fogstart, distance.fogend = 20, 40
            side = self.settings.size * _SUPERSAMPLE
            self._tasks[name] = (env, ENV_POLICY_MAP[name](), mujoco.Renderer(env.model, side, side))
        return self._tasks[name]

    def clip(self, split: str, index: int) -> Clip:
        """Clip `index` of a split: a function of the settings, the split and the index.

        Raises UserError where the task does not succeed in 20 draws of its start and goal.
        """
        label = index % len(TASKS)
        env, policy, renderer = self._task(TASKS[label])
        stream = np.random.SeedSequence([self.settings.seed, SPLITS.index(split), index])
        for attempt in stream.spawn(ATTEMPTS):
            rng = np.random.default_rng(attempt)
            episode = simulate(env, policy, int(rng.integers(2**31)))
            if episode is not None:
                return self._render(env, renderer, episode, split, label, rng)
        raise UserError(
            f"{CLASSES[label]}: clip {index} of {split} did not succeed in {ATTEMPTS} draws: use another seed"
        )

    def _render(self, env: Any, renderer: Any, episode: Episode, split: str, label: int, rng: Any) -> Clip:
        import mujoco

        model, data, size = env.model, env.data, self.settings.size
        renderer._gl_context.make_current()
        randomize_appearance(model, renderer._mjr_context, self.settings.level, split, rng)
        option = mujoco.MjvOption()
        option.sitegroup[:] = 0  # goals are drawn as sites, which would give the class away
        steps = episode.steps(self.settings.frames)
        hand = episode.hand[steps]
        chosen = draw_camera(self.settings.level, hand, float(model.vis.global_.fovy), rng)
        camera = mujoco.MjvCamera()
        camera.type, camera.lookat[:] = mujoco.mjtCamera.mjCAMERA_FREE, chosen.lookat
        camera.distance, camera.azimuth, camera.elevation = chosen.distance, chosen.azimuth, chosen.elevation
        frames = np.empty((len(steps), size, size, 3), np.uint8)
        for i, step in enumerate(steps):
            data.qpos[:] = episode.qpos[step]
            for update in (mujoco.mj_kinematics, mujoco.mj_comPos, mujoco.mj_camlight):
                update(model, data)
            renderer.update_scene(data, camera, option)
            large = renderer.render().reshape(size, _SUPERSAMPLE, size, _SUPERSAMPLE, 3)
            frames[i] = large.mean(axis=(1, 3)).round()
        truth = {
            "hand_world": hand.astype(np.float32),
            "hand_image": chosen.project(hand, size).astype(np.float32),
            "objects": episode.qpos[steps][:, 9:].astype(np.float32),
        }
        return Clip(frames, label, truth, chosen)
