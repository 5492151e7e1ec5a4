"""Obstacle avoidance: a robot that crosses an arena among discs that move."""

from typing import Any

import numpy as np
from numpy.linalg import norm
from numpy.typing import NDArray

from poise.applications.application import Application
from poise.data import Standard
from poise.envs.avoid import ARENA
from poise.envs.experts.avoid import SPEED, AvoidExpert, PotentialField
from poise.evaluation import Task
from poise.nn import MLP, DeepSets
from poise.training import TrainingSpec

FORESEEN = 2.5  # s, T
NEAR = 0.08  # m, d_0
SOON = 1.0  # s, t_0


def approaching(observation: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    r"""The goal from where the robot is, and of every disc when and where it comes closest.

    For a robot that goes on at `v`, and for one that goes to the goal, with `r` the offset of a disc and `w` its
    velocity, both from the robot, in m and m/s,

    $$ t = \mathrm{clip}\Big({-\frac{r \cdot w}{w \cdot w}}, 0, T\Big), \qquad m = r + w t, \qquad
       d = |m| - \text{radii}, \qquad e^{-\max(d, 0) / d_0 - t / t_0}, $$

    the time in s, the offset there, the gap and how much of a threat it is. Discs become rows of 19 numbers.
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
        gap = norm(miss, axis=-1, keepdims=True) - radius - ARENA.robot_radius
        found += [relative, time, miss, gap, np.exp(-np.maximum(gap, 0.0) / NEAR - time / SOON)]
    return {**observation, "goal": ahead, "obstacles": np.concatenate(found, axis=-1)}


avoid = Application(
    name="avoid",
    about="Cross an arena to a goal among six discs that move and bounce off the walls.",
    area="obstacle avoidance",
    task=Task("poise.envs:poise/Avoid-v0", observe=approaching, slots=200),
    features={"position": (2,), "velocity": (2,), "goal": (2,), "obstacles": (6, 19)},
    action=2,
    rate=10.0,
    expert=AvoidExpert,
    rivals={"potential field": PotentialField},
    noise=0.2,
    shaken=(0, 1),
    episodes=4000,
    policy={
        "execute": 1,
        "history": 1,
        "horizon": 8,
        "temperature": 0.5,
        "encoder": DeepSets(("obstacles",)),
        "observation_scaling": Standard(),
        "network": MLP(width=192, depth=3, condition=128),
    },
    training=TrainingSpec(steps=60_000, batch=512, bfloat16=True),
)

APPLICATIONS = (avoid,)

__all__ = ["APPLICATIONS", "approaching", "avoid"]
