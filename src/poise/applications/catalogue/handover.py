"""Handover: to take what a partner offers, when it is offered."""

from poise.applications.application import Application
from poise.envs.experts.aloha import HandoverExpert
from poise.evaluation import Task

_KNOWN = {
    **dict.fromkeys(("hand", "lead", "cube", "cube_velocity", "partner", "partner_velocity"), (3,)),
    **{"gripper": (1,), "touch": (2,), "partner_gripper": (1,)},
}

handover = Application(
    name="handover",
    about="Take a cube from a partner that offers it at a place and time of its own, and sometimes hesitates.",
    area="handover",
    task=Task("poise.envs.handover:poise/Handover-v0", extra="manipulation", slots=10),
    features=_KNOWN,
    action=4,
    rate=20.0,
    expert=HandoverExpert,
    noise=0.2,
    shaken=(0, 1, 2),
    episodes=150,
)

APPLICATIONS = (handover,)

__all__ = ["APPLICATIONS", "handover"]
