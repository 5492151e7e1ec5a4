"""Handover: to take what a partner offers, when it is offered; seen as numbers or by two cameras."""

from dataclasses import replace

from poise.applications.application import Application
from poise.envs.experts.aloha import HandoverExpert
from poise.evaluation import Task
from poise.nn import CNN, Joint, SmallCNN, SpatialSoftmax

_KNOWN = {
    **dict.fromkeys(("hand", "lead", "cube", "cube_velocity", "partner", "partner_velocity"), (3,)),
    **{"gripper": (1,), "touch": (2,), "partner_gripper": (1,)},
}

_CAMERAS = {"angle": 128, "left_wrist": 64}
_FELT = ("hand", "lead", "gripper", "touch")  # what the arm knows of itself

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
    episodes=600,
    policy={"temperature": 0.5},
)

from_images = replace(
    handover,
    name="handover-images",
    about="Take a cube from a partner that two cameras see, one of them at the wrist.",
    task=replace(handover.task, arguments={"cameras": _CAMERAS}),
    episodes=150,
    features={name: _KNOWN[name] for name in _FELT} | {name: (size, size, 3) for name, size in _CAMERAS.items()},
    policy={"encoder": Joint(images=CNN(backbone=SmallCNN((16, 32, 64)), pooling=SpatialSoftmax(32), shared=False))},
)

APPLICATIONS = (handover, from_images)

__all__ = ["APPLICATIONS", "from_images", "handover"]
