"""Experts of four tasks of Meta-World: grasp something, bring it to its goal, in one of several ways.

What an expert does next is a function of what is seen now and of the way, which its seed chooses: nothing else is
remembered, so that a policy can learn it. Each task is a plan, which names a stage and a waypoint of the hand; the hand
goes there with a speed in proportion to the distance, 1 cm a step at most.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

GAIN: Final = 20.0  # of the hand, cm a step and m: nearer than 5 cm it slows down
GENTLE: Final = 10.0  # the same where it must not overshoot

Observation = Mapping[str, NDArray[Any]]

_ABOVE = 0.1  # m, height over an object at which the hand arrives
_LOW = 0.055  # m, of the hand over an object that the fingers can close around
_LEVEL = np.array([1.0, 1.0, 0.0])
_UP = np.array([0.0, 0.0, 1.0])


class Waypoint(NamedTuple):
    """What an expert is about.

    Attributes:
        stage: Its name.
        target: Of the hand, (3,) in m.
        grip: From open (-1) to closed (1).
    """

    stage: str
    target: NDArray[np.float64]
    grip: float
    gain: float = GAIN


Plan = Callable[[Observation, int], Waypoint]


@final
class WaypointExpert:
    """Follows a plan, in a way that it chooses at random; an `Expert`.

    Args:
        plan: What is seen, and the number of the way -> what to do.
        ways: Numbers to choose from, as the environment's `mode` names them.
    """

    stage: str = "reach"

    def __init__(self, plan: Plan, ways: Sequence[int] = (-1,)) -> None:
        self._plan, self._ways = plan, ways

    def reset(self, env: Any, seed: int) -> None:
        """Choose a way; see `Expert.reset`."""
        self.stage = "reach"
        self._way = int(np.random.default_rng([seed, 2]).choice(self._ways))

    def act(self, observation: Observation) -> NDArray[np.float32]:
        """Motion of the hand and of the gripper; see `Expert.act`."""
        self.stage, target, grip, gain = self._plan(observation, self._way)
        motion = np.clip(gain * (target - observation["hand"]), -1, 1)
        return np.append(motion, grip).astype(np.float32)


def pick_place(seen: Observation, way: int) -> Waypoint:
    """Lift the puck to the goal in the air; way 0 comes from the left (-x), 1 from the right, -1 from above."""
    side = _choose(way, 0.0, -0.1, 0.1)
    return _fetch(seen, seen["object"], 0.58, side) or Waypoint("carry", _held(seen, seen["object"], seen["goal"]), 1.0)


def assembly(seen: Observation, way: int) -> Waypoint:
    """Put the ring over the peg, whose top is the goal."""
    fetch = _fetch(seen, seen["object"] + (-0.02, 0.0, 0.0), 0.6)
    if fetch:
        return fetch
    ring, goal = seen["object"] + turned(_wxyz(seen), (0.0, 0.13, 0.0)), seen["goal"]
    aside, height = float(np.linalg.norm((goal - ring)[:2])), float(ring[2] - goal[2])
    if aside < (0.01 if height > 0 else 0.02):
        return Waypoint("insert", _held(seen, ring, goal - 0.1 * _UP), 1.0)
    if height < 0.02:
        return Waypoint("lift", seen["hand"] + 0.1 * _UP, 1.0)
    return Waypoint("carry", _held(seen, ring, goal + 0.04 * _UP), 1.0)


def peg_insert(seen: Observation, way: int) -> Waypoint:
    """Push the peg into the hole, along -x; the goal is inside of the hole."""
    fetch = _fetch(seen, seen["object"], 0.6)
    if fetch:
        return fetch
    head, goal = seen["object"] + turned(seen["object_quaternion"], (-0.13, 0.0, -0.01)), seen["goal"]
    aside, before = float(np.linalg.norm((goal - head)[1:])), float(head[0] - goal[0])
    if aside < (0.01 if before > 0.1 else 0.02):
        return Waypoint("insert", _held(seen, head, goal - (0.1, 0.0, 0.0)), 1.0)
    if before < 0.1:
        return Waypoint("retreat", seen["hand"] + (0.1, 0.0, 0.0), 1.0)
    return Waypoint("align", _held(seen, head, goal + (0.15, 0.0, 0.0)), 1.0)


def hammer(seen: Observation, way: int) -> Waypoint:
    """Drive the nail into the wall, along +y; way 0 holds the handle at its end, 1 near the head, -1 in between."""
    along = _choose(way, -0.04, -0.09, 0.05)
    fetch = _fetch(seen, seen["object"] + (along, 0.0, 0.0), 0.75)
    if fetch:
        return fetch
    face, nail = seen["object"] + turned(_wxyz(seen), (0.16, 0.07, 0.0)), seen["second"]
    aside, before = float(np.linalg.norm((nail - face)[[0, 2]])), float(nail[1] - face[1])
    if aside < (0.01 if before > 0.02 else 0.03):
        return Waypoint("strike", _held(seen, face, nail + (0.0, 0.15, 0.0)), 1.0)
    return Waypoint("swing", _held(seen, face, nail - (0.0, 0.07, 0.0)), 1.0)


def turned(quaternion: NDArray[Any], vector: ArrayLike) -> NDArray[np.float64]:
    """A vector (3,) turned by a quaternion (x, y, z, w)."""
    axis, vector = np.asarray(quaternion[:3], np.float64), np.asarray(vector, np.float64)
    return vector + 2.0 * np.cross(axis, np.cross(axis, vector) + float(quaternion[3]) * vector).astype(np.float64)


def _choose(way: int, plain: float, first: float, second: float) -> float:
    if way not in (-1, 0, 1):
        raise ValueError(f"got the way {way}, expected -1, 0 or 1")
    return {-1: plain, 0: first, 1: second}[way]


def _fetch(seen: Observation, at: NDArray[Any], closed: float, side: float = 0.0) -> Waypoint | None:
    """Grasp, `side` metres beside of what is grasped down to the table; None once the gripper is closed around it."""
    hand, over = seen["hand"], float(seen["hand"][2] - at[2])
    beside = at + (side, 0.0, 0.0)
    if over > _LOW:
        there = float(np.linalg.norm((hand - beside)[:2])) < 0.02
        height = 0.03 if there else _ABOVE
        return Waypoint("lower" if there else "reach", beside + height * _UP, -1.0)
    aside, free = float(np.linalg.norm((hand - at)[:2])), bool(seen["gripper"][0] > closed)
    if aside > (0.012 if free else 0.04):
        return Waypoint("approach", at + 0.03 * _UP, -1.0, GENTLE)
    if free:
        return Waypoint("grasp", at + 0.03 * _UP, 1.0, GENTLE)
    return None


def _held(seen: Observation, part: NDArray[Any], goal: NDArray[Any]) -> NDArray[np.float64]:
    """Where the hand brings a part of what it holds to the goal."""
    return seen["hand"] + (goal - part)


def _wxyz(seen: Observation) -> NDArray[Any]:
    """The quaternion of the object where metaworld puts the real part first."""
    return np.roll(seen["object_quaternion"], -1)


__all__ = ["GAIN", "Plan", "Waypoint", "WaypointExpert", "assembly", "hammer", "peg_insert", "pick_place", "turned"]
