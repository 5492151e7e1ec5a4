"""`poise/Navigate-v0`: past three discs by four equally good routes, from scripted demonstrations, with all defaults.

poise train recipes/navigate.py
poise evaluate out/navigate --recipe recipes/navigate.py
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from poise import Episodes, PolicySpec, Recipe, Task, TrainingSpec
from poise.envs import Map, demonstrate

FEATURES = {"position": (2,), "velocity": (2,), "goal": (2,)}
DEMONSTRATIONS = 1500


def read(path: Path | None) -> Episodes:
    """What the scripted expert drives; there is no file to read.

    Raises:
        ValueError: A path.
    """
    if path is not None:
        raise ValueError(f"the Navigate recipe got the data {path}, expected none: its expert drives when it is read")
    data = demonstrate(Map(), DEMONSTRATIONS, seed=0, noise=0.1)
    return Episodes({name: data[name] for name in (*FEATURES, "action")}, data["episode_ends"])


def restart(row: Mapping[str, NDArray]) -> dict[str, Any]:
    """Options of a reset to where an episode began, where robots rest."""
    return {"position": row["position"], "goal": row["goal"]}


recipe = Recipe(
    policy=PolicySpec(FEATURES, action=2),
    training=TrainingSpec(),
    task=Task("poise.envs:poise/Navigate-v0", slots=500, restart=restart),
    read=read,
)
