"""Obstacle avoidance: a robot that crosses an arena among discs that move."""

from typing import Any

import numpy as np
from numpy.linalg import norm
from numpy.typing import NDArray

from poise.applications.application import Application
from poise.envs.avoid import ARENA
from poise.envs.experts.avoid import SPEED, AvoidExpert, PotentialField
from poise.evaluation import Task
from poise.nn import DeepSets

FORESEEN = 2.5  # s, T


def approaching(observation: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    r"""The goal from where the robot is, and of every disc when and where it comes closest.

    For a robot that goes on at `v`, and for one that goes to the goal, with `r` the offset of a disc and `w` its
    velocity, both from the robot, in m and m/s,

    $$ t = \mathrm{clip}\Big({-\frac{r \cdot w}{w \cdot w}}, 0, T\Big), \qquad m = r + w t, \qquad
       |m| - \text{radii}, $$

    the time in s, the offset there and the gap. Discs become rows of 17 numbers.
    """
    ahead = observation["goal"] - observation["position"]
    straight = SPEED * ahead / np.maximum(norm(ahead, axis=-1, keepdims=True), 0.1)
    offset, motion, radius = np.split(observation["obstacles"], [2, 4], axis=-1)
    found = [offset, motion, radius]
    for velocity in (observation["velocity"], straight):
        relative = motion - velocity[:, None]
        squared = np.maximum((relative * relative).sum(-1, keepdims=True), 1e-4)
        time = np.clip(-(offset * relative).sum(-1, keepdims=True) / squared, 0.0, FORESEEN)
        miss = offset + relative * time
        found += [relative, time, miss, norm(miss, axis=-1, keepdims=True) - radius - ARENA.robot_radius]
    return {**observation, "goal": ahead, "obstacles": np.concatenate(found, axis=-1)}


avoid = Application(
    name="avoid",
    about="Cross an arena to a goal among six discs that move and bounce off the walls.",
    area="obstacle avoidance",
    task=Task("poise.envs:poise/Avoid-v0", observe=approaching, slots=200),
    features={"position": (2,), "velocity": (2,), "goal": (2,), "obstacles": (6, 17)},
    action=2,
    rate=10.0,
    expert=AvoidExpert,
    rivals={"potential field": PotentialField},
    noise=0.15,
    shaken=(0, 1),
    episodes=4000,
    policy={"execute": 2, "history": 1, "encoder": DeepSets(("obstacles",))},
)

APPLICATIONS = (avoid,)

__all__ = ["APPLICATIONS", "approaching", "avoid"]
