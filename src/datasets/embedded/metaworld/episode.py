"""One scripted episode of a Meta-World task, as states: simulated first, rendered later, and only where wanted."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np

_ROBOT = 9  # the robot's joints come first in qpos: seven of the arm and two fingers
_AFTER, _LIMIT = 8, 300  # steps simulated after success; steps after which an episode has failed
_BEFORE_MOTION, _AFTER_SUCCESS = 6, 4  # steps of a clip before anything moves, and after it is done
_MOVED = 5e-3  # metres or radians: less is not motion


@dataclass(frozen=True)
class Episode:
    """States of an episode, and the part of it in which the task is done.

    Attributes:
        qpos: (N, nq) joint positions, one row a step (0.0125 s).
        hand: (N, 3) the gripper's place, metres.
        first, last: the clip's first and last step.
    """

    qpos: np.ndarray
    hand: np.ndarray
    first: int
    last: int

    def steps(self, frames: int) -> np.ndarray:
        """`frames` steps at equal distances from first to last."""
        return np.linspace(self.first, self.last, frames).round().astype(int)


def simulate(env: Any, policy: Any, seed: int) -> Episode | None:
    """Let the scripted policy do its task from a start and goal drawn by `seed`; None where it does not succeed."""
    env.set_task(_draw_task(env, seed))
    observation, _ = env.reset()
    qpos, hand, done = [env.data.qpos.copy()], [observation[:3].copy()], None
    for step in range(1, _LIMIT + 1):
        action = np.clip(policy.get_action(observation), -1, 1)
        observation, _, _, truncated, info = env.step(action)
        qpos.append(env.data.qpos.copy())
        hand.append(observation[:3].copy())
        if done is None and info["success"] > 0:
            done = step
        if truncated or (done is not None and step >= done + _AFTER):
            break
    if done is None:
        return None
    states, places = np.array(qpos), np.array(hand)
    moved = np.abs(states[: done + 1, _ROBOT:] - states[0, _ROBOT:]).max(axis=1, initial=0.0)
    if moved.max() < _MOVED:
        moved = np.linalg.norm(places[: done + 1] - places[0], axis=1)
    begins = int(np.argmax(moved > 0.08 * moved.max()))
    return Episode(states, places, max(begins - _BEFORE_MOTION, 0), min(done + _AFTER_SUCCESS, len(states) - 1))


def _draw_task(env: Any, seed: int) -> Any:
    """A start and a goal, drawn as Meta-World draws those of its benchmarks, but from a seed of its own."""
    from metaworld.types import Task

    env._set_task_called, env._freeze_rand_vec, env.seeded_rand_vec = True, False, True
    env.seed(seed)
    env.reset()
    task = {"rand_vec": env._last_rand_vec, "env_cls": type(env), "partially_observable": False}
    return Task(env_name=type(env).__name__, data=pickle.dumps(task))
