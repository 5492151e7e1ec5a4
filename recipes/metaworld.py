"""A task of Meta-World (extra `manipulation`) from 100 demonstrations of its scripted expert, with all defaults.

    poise train recipes/metaworld.py
    poise evaluate out/metaworld --recipe recipes/metaworld.py

The task is pick-place-v3; the environment variable METAWORLD_TASK names another, for both commands:

    METAWORLD_TASK=assembly-v3 poise train recipes/metaworld.py --out out/assembly

Demonstrations are driven once, in about ten seconds, and kept in out/demonstrations.
"""

import os
from functools import partial
from pathlib import Path

from poise import Episodes, PolicySpec, Recipe, Task, TrainingSpec, read, write
from poise.envs.metaworld import collect

FEATURES = {"hand": (3,), "gripper": (1,), "object": (3,), "goal": (3,)}
DEMONSTRATIONS = 100
NOISE = 0.2  # of the executed motion, so that the data show how to recover; the labels have none


def demonstrations(path: Path | None, task: str) -> Episodes:
    """Demonstrations from a file, or from the expert, whose are kept for the next time."""
    path = path or Path("out/demonstrations") / f"{task}-{DEMONSTRATIONS}.npz"
    if not path.exists():
        data = collect(task, DEMONSTRATIONS, seed=0, noise=NOISE)
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, Episodes({name: data[name] for name in (*FEATURES, "action")}, data["episode_ends"]))
    return read(path)


def make(task: str) -> Recipe:
    """The recipe of a task such as pick-place-v3 or assembly-v3, which needs to see one object and a goal."""
    return Recipe(
        policy=PolicySpec(FEATURES, action=4),
        training=TrainingSpec(),
        task=Task("poise.envs.metaworld:poise/MetaWorld-v0", {"task": task}, extra="manipulation", slots=10),
        read=partial(demonstrations, task=task),
    )


recipe = make(os.environ.get("METAWORLD_TASK", "pick-place-v3"))
