"""Navigation: a robot that goes to its goal where several ways are equally good."""

from poise.applications.application import Application
from poise.envs.experts.navigate import RouteExpert
from poise.evaluation import Task

navigate = Application(
    name="navigate",
    about="Drive past three discs by one of four equally good routes.",
    area="navigation",
    task=Task("poise.envs:poise/Navigate-v0", slots=200),
    features={"position": (2,), "velocity": (2,), "goal": (2,)},
    action=2,
    rate=10.0,
    expert=RouteExpert,
    noise=0.1,
    shaken=(0, 1),
    modes={0: "below, around", 4: "below, between", 5: "above, between", 7: "above, around"},
    episodes=1000,
)

APPLICATIONS = (navigate,)

__all__ = ["APPLICATIONS", "navigate"]
