"""Assembly: parts that fit with little play."""

from dataclasses import replace

from poise.applications.tabletop import FEATURES, tabletop
from poise.envs.experts.metaworld import assembly, peg_insert

_FEATURES = FEATURES | {"object_quaternion": (4,)}  # parts turn in the gripper

ring = replace(
    tabletop(
        "assembly",
        "Put a ring with a handle over a peg (Meta-World assembly-v3).",
        "assembly",
        "assembly-v3",
        assembly,
    ),
    features=_FEATURES,
)

peg = replace(
    tabletop(
        "peg-insert",
        "Push a peg sideways into a hole (Meta-World peg-insert-side-v3).",
        "assembly",
        "peg-insert-side-v3",
        peg_insert,
    ),
    features=_FEATURES,
    episodes=200,
)

APPLICATIONS = (ring, peg)

__all__ = ["APPLICATIONS", "peg", "ring"]
