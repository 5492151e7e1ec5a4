"""What the applications on Meta-World's table have in common."""

from dataclasses import replace
from functools import partial

from poise.applications.application import Application
from poise.envs.experts.metaworld import Plan, WaypointExpert
from poise.evaluation import Task

FEATURES = {"hand": (3,), "gripper": (1,), "object": (3,), "goal": (3,), "to_object": (3,), "to_goal": (3,)}
"""What is seen of one object and its goal."""


def tabletop(name: str, about: str, area: str, task: str, plan: Plan) -> Application:
    """A task of Meta-World, as an expert does it in one way.

    Args:
        name: On the command line.
        about: What is to be done.
        area: What it is an example of.
        task: Metaworld's name of it.
        plan: Of the expert.
    """
    return Application(
        name=name,
        about=about,
        area=area,
        task=Task("poise.envs.metaworld:poise/MetaWorld-v0", {"task": task}, extra="manipulation", slots=10),
        features=FEATURES,
        action=4,
        rate=80.0,
        expert=partial(WaypointExpert, plan),
        noise=0.15,  # more, and parts are missed so often that demonstrations are mostly corrections
        shaken=(0, 1, 2),
        episodes=150,
    )


def in_two_ways(one: Application, name: str, about: str, plan: Plan, first: str, second: str) -> Application:
    """The same task, as an expert does it in the ways 0 and 1 of its plan, which it chooses at random.

    Args:
        one: The task.
        name: On the command line.
        about: What is to be done.
        plan: Of the expert.
        first: Name of way 0.
        second: Name of way 1.
    """
    expert, modes = partial(WaypointExpert, plan, (0, 1)), {0: first, 1: second}
    return replace(one, name=name, about=about, expert=expert, modes=modes, episodes=200)


__all__ = ["FEATURES", "in_two_ways", "tabletop"]
