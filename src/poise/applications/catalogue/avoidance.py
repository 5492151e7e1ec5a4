"""Obstacle avoidance: a robot that crosses an arena among discs that move."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from poise.applications.application import Application
from poise.applications.discs import approached, closest
from poise.data import Standard
from poise.envs.avoid import ARENA
from poise.envs.experts.avoid import SPEED, AvoidExpert, PotentialField
from poise.evaluation import Task
from poise.nn import MLP, DeepSets
from poise.training import TrainingSpec


def approaching(observation: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The goal from where the robot is; discs as rows of 19 numbers: offset, motion, radius, and `closest`."""
    discs = observation["obstacles"]
    offset, motion, radius = np.split(discs, [2, 4], axis=-1)
    found = closest(observation, offset, motion, radius, (SPEED, ARENA.robot_radius))
    return approached(observation, discs, found)


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
