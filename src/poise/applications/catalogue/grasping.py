"""Grasping: a puck that is brought to a goal in the air, seen as numbers or by two cameras."""

from dataclasses import replace

from poise.applications.tabletop import in_two_ways, tabletop
from poise.envs.experts.metaworld import pick_place
from poise.nn import CNN, Joint, SmallCNN, SpatialSoftmax

_CAMERAS = {"corner3": 96, "gripperPOV": 64}

from_above = tabletop(
    "pick-place",
    "Pick up a puck from above and bring it to a goal in the air (Meta-World pick-place-v3).",
    "grasping",
    "pick-place-v3",
    pick_place,
)

from_sides = in_two_ways(
    from_above,
    "pick-place-sides",
    "Pick up a puck, coming from its left or its right, and bring it to a goal in the air.",
    pick_place,
    "from the left",
    "from the right",
)

from_images = replace(
    from_above,
    name="pick-place-images",
    about="Pick up a puck that two cameras see, and bring it to a goal in the air, which is told.",
    task=replace(from_above.task, arguments={**from_above.task.arguments, "cameras": _CAMERAS}),
    features={"hand": (3,), "gripper": (1,), "goal": (3,)} | {name: (n, n, 3) for name, n in _CAMERAS.items()},
    policy={
        "encoder": Joint(images=CNN(backbone=SmallCNN((16, 32, 64)), pooling=SpatialSoftmax(32), shared=False)),
        "draws": 4,
    },
)

APPLICATIONS = (from_above, from_sides, from_images)

__all__ = ["APPLICATIONS", "from_above", "from_images", "from_sides"]
