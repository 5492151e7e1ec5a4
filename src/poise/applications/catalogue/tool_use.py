"""Tool use: a hammer that drives a nail into a wall."""

from dataclasses import replace

from poise.applications.tabletop import FEATURES, in_two_ways, tabletop
from poise.envs.experts.metaworld import hammer

one_way = replace(
    tabletop(
        "hammer",
        "Grasp a hammer and drive a nail into the wall with it (Meta-World hammer-v3).",
        "tool use",
        "hammer-v3",
        hammer,
    ),
    features=FEATURES | {"object_quaternion": (4,), "second": (3,)},  # the second is the nail
)

two_ways = in_two_ways(
    one_way,
    "hammer-two-ways",
    "Drive a nail into the wall with a hammer, held by the end of its handle or near its head.",
    hammer,
    "by the end",
    "near the head",
)

APPLICATIONS = (one_way, two_ways)

__all__ = ["APPLICATIONS", "one_way", "two_ways"]
