"""Push-T from 206 human demonstrations (Chi et al. 2023, arXiv 2303.04137), learned from the state of the scene.

    poise train recipes/pusht.py --data pusht_cchi_v7_replay.zarr
    poise evaluate out/pusht --recipe recipes/pusht.py --episodes 500 --seed 100000

The state is (agent x, agent y, block x, block y, block angle) in pixels and radians; an action is the target position
of the agent in pixels, ten times a second.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poise import MLP, Episodes, PolicySpec, Recipe, Relative, Standard, Task, TrainingSpec, read

GOAL = np.array([256.0, 256.0, np.pi / 4])  # px and rad: where the block belongs, in the middle of the table of 512 px
SETTLING = 2.3  # control steps of its last motion that the block goes on where the last action is held, in the median
CENTRE_OF_MASS = 45.0  # px, of the block, along its stem from the point that is its position


def features(state: NDArray) -> dict[str, NDArray]:
    """What the policy sees: positions, the block's angle as sine and cosine, and the agent in the block's frame."""
    agent, block, angle = state[..., :2], state[..., 2:4], state[..., 4]
    sine, cosine = np.sin(angle), np.cos(angle)
    x, y = np.moveaxis(agent - block, -1, 0)
    return {
        "agent": agent,
        "block": block,
        "heading": np.stack([sine, cosine], axis=-1),
        "agent_from_block": np.stack([cosine * x + sine * y, cosine * y - sine * x], axis=-1),
    }


def observe(observation: Any) -> dict[str, NDArray]:
    """The environment's observation `(B, 5)` as features."""
    return features(np.asarray(observation))


def mirrored(state: NDArray, action: NDArray) -> tuple[NDArray, NDArray]:
    """The same episode in a mirror along the diagonal x + y = 512, which leaves table, goal and block as they are."""
    agent, block, angle = state[:, :2], state[:, 2:4], state[:, 4:]
    return np.hstack([512 - agent[:, ::-1], 512 - block[:, ::-1], np.pi / 2 - angle]), 512 - action[:, ::-1]


def demonstrations(path: Path | None) -> Episodes:
    """The demonstrations."""
    if path is None:
        raise ValueError("the Push-T recipe got no data, expected --data pusht_cchi_v7_replay.zarr")
    raw = read(path, ("state", "action"))
    return episodes(raw.features["state"].astype(np.float64), raw.features["action"].astype(np.float64), raw.ends)


def episodes(state: NDArray, action: NDArray, ends: NDArray) -> Episodes:
    """Episodes of features, and of the state that they come from."""
    return Episodes({**features(state), "state": state, "action": action}, ends)


def settled(state: NDArray, action: NDArray) -> tuple[NDArray, NDArray]:
    """The same episode on a table shifted and turned so that the block comes to rest exactly on the goal.

    People stopped some 5 px and 2 degrees away from it, and who copies them does. Walls aside, the physics is the same
    anywhere: what they reached is taken for what they wanted (hindsight: Andrychowicz et al. 2017, arXiv 1707.01495).
    """
    block, before = state[-1, 2:], state[-2, 2:]
    x, y, angle = block + SETTLING * (block - before)
    turn = GOAL[2] - angle
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])

    def moved(points: NDArray) -> NDArray:
        return (points - [x, y]) @ rotation.T + GOAL[:2]

    return np.hstack([moved(state[:, :2]), moved(state[:, 2:4]), state[:, 4:] + turn]), moved(action)


def enlarged(original: Episodes) -> Episodes:
    """Episodes that end on the goal, and their mirror images."""
    rows, spans = original.features, zip(original.starts, original.ends, strict=True)
    ended = [settled(rows["state"][begin:end], rows["action"][begin:end]) for begin, end in spans]
    state, action = (np.concatenate(parts) for parts in zip(*ended, strict=True))
    return episodes(state, action, original.ends) + episodes(*mirrored(state, action), original.ends)


def restart(row: Mapping[str, NDArray]) -> dict[str, Any]:
    """Options of a reset to where an episode began.

    The environment places the block upright first and then turns it about its centre of mass, which moves the point
    that is its position; it is asked for the place that this ends in the right one from.
    """
    x, y, angle = row["state"][2:].tolist()
    moved = [x - CENTRE_OF_MASS * np.sin(angle), y - CENTRE_OF_MASS * (1 - np.cos(angle))]
    return {"reset_to_state": [*row["state"][:2].tolist(), *moved, angle]}


recipe = Recipe(
    policy=PolicySpec(
        observations={"agent": (2,), "block": (2,), "heading": (2,), "agent_from_block": (2,)},
        action=2,
        history=1,
        space=Relative("agent"),
        network=MLP(width=384, depth=3, condition=128),
        action_scaling=Standard(),
        bound=None,
        temperature=0.5,
    ),
    training=TrainingSpec(steps=9000, batch=512, bfloat16=True),
    task=Task(
        "gym_pusht:gym_pusht/PushT-v0", {"obs_type": "state"}, observe, extra="pusht", slots=500, restart=restart
    ),
    read=demonstrations,
    enlarge=enlarged,
    padded=8,
)
