"""Obstacle avoidance: a robot that crosses an arena among discs that move."""

from typing import Any

from numpy.typing import NDArray

from poise.applications.application import Application
from poise.envs.experts.avoid import AvoidExpert, PotentialField
from poise.evaluation import Task


def flat(observation: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The goal from where the robot is, and the discs as one vector, from the nearest to the farthest."""
    ahead = observation["goal"] - observation["position"]
    discs = observation["obstacles"]
    return {**observation, "goal": ahead, "obstacles": discs.reshape(len(discs), -1)}


avoid = Application(
    name="avoid",
    about="Cross an arena to a goal among six discs that move and bounce off the walls.",
    area="obstacle avoidance",
    task=Task("poise.envs:poise/Avoid-v0", observe=flat, slots=200),
    features={"position": (2,), "velocity": (2,), "goal": (2,), "obstacles": (30,)},
    action=2,
    rate=10.0,
    expert=AvoidExpert,
    rivals={"potential field": PotentialField},
    noise=0.1,
    shaken=(0, 1),
    episodes=2000,
    policy={"execute": 4},
)

APPLICATIONS = (avoid,)

__all__ = ["APPLICATIONS", "avoid", "flat"]
