"""Navigation: a robot that goes to its goal where several ways are equally good."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poise.applications.application import Application
from poise.applications.discs import approached, closest
from poise.data import Standard
from poise.envs.experts.maze import MazeExpert
from poise.envs.experts.navigate import SPEED, RouteExpert
from poise.envs.maps import Map
from poise.envs.random_maps import RandomMaps
from poise.evaluation import Task
from poise.nn import MLP, DeepSets
from poise.training import TrainingSpec

_MOTION = {"position": (2,), "velocity": (2,), "goal": (2,)}
_SIDES = "below", "above"


def around(observation: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The goal from where the robot is; discs as rows of 17 numbers: offset, radius, and `closest`."""
    centre, radius = np.split(observation["obstacles"], [2], axis=-1)
    offset = centre - observation["position"][:, None]
    found = closest(observation, offset, np.zeros_like(offset), radius, (SPEED, Map.robot_radius))
    return approached(observation, np.concatenate([offset, radius], axis=-1), found)


def again(row: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Options of a reset to where a recorded episode began, where robots rest."""
    return {"position": row["position"], "goal": row["goal"]}


navigate = Application(
    name="navigate",
    about="Drive past three discs by one of four equally good routes.",
    area="navigation",
    task=Task("poise.envs:poise/Navigate-v0", slots=200, restart=again),
    features=_MOTION,
    action=2,
    rate=10.0,
    expert=RouteExpert,
    noise=0.1,
    shaken=(0, 1),
    modes={0: "below, around", 4: "below, between", 5: "above, between", 7: "above, around"},
    episodes=1000,
)

navigate_maps = Application(
    name="navigate-maps",
    about="Drive past three discs that stand elsewhere in every episode, so that policies are tried on unseen maps.",
    area="navigation",
    task=Task("poise.envs:poise/Navigate-v0", {"map": RandomMaps()}, around, slots=200),
    features={**_MOTION, "obstacles": (3, 17)},
    action=2,
    rate=10.0,
    expert=RouteExpert,
    noise=0.1,
    shaken=(0, 1),
    modes={mode: ", ".join(_SIDES[mode >> disc & 1] for disc in range(3)) for mode in range(8)},
    episodes=6000,
    policy={
        "execute": 4,
        "history": 1,
        "encoder": DeepSets(("obstacles",)),
        "observation_scaling": Standard(),
        "network": MLP(width=256, depth=3, condition=128),
    },
    training=TrainingSpec(steps=60_000, batch=512, bfloat16=True),
)


def _maze(layout: str, episodes: int) -> Application:
    return Application(
        name=f"maze-{layout}",
        about=f"Roll a ball through PointMaze's {layout} maze by one of two ways.",
        area="navigation",
        task=Task("poise.envs.maze:poise/Maze-v0", {"layout": layout}, extra="maze", slots=50),
        features=_MOTION,
        action=2,
        rate=10.0,
        expert=MazeExpert,
        noise=0.3,
        shaken=(0, 1),
        modes={0: "left", 1: "right"},
        episodes=episodes,
    )


maze_medium, maze_large = _maze("medium", 1000), _maze("large", 2000)

APPLICATIONS = (navigate, navigate_maps, maze_medium, maze_large)

__all__ = ["APPLICATIONS", "again", "around", "maze_large", "maze_medium", "navigate", "navigate_maps"]
