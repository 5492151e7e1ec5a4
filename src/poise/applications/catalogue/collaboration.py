"""Collaboration: a robot that carries something together with a partner, who leads."""

from poise.applications.application import Application
from poise.envs.experts.carry import CarryExpert
from poise.evaluation import Task

carry = Application(
    name="carry",
    about="Carry one end of a bar and keep it level while a partner leads the other to a goal of its own.",
    area="collaboration",
    task=Task("poise.envs.carry:poise/Carry-v0", extra="manipulation", slots=10),
    features=dict.fromkeys(("hand", "lead", "partner", "partner_velocity", "object", "axis"), (3,)),
    action=3,
    rate=20.0,
    expert=CarryExpert,
    noise=0.1,
    shaken=(0, 1, 2),
    episodes=100,
    policy={"execute": 4},
)

APPLICATIONS = (carry,)

__all__ = ["APPLICATIONS", "carry"]
