"""Environments of our own and their scripted experts.

Importing this package registers `poise/Navigate-v0` and `poise/Avoid-v0` with Gymnasium. They are vector environments
only: make them with `gymnasium.make_vec("poise/Navigate-v0", num_envs=8)`.
"""

import gymnasium

from poise.envs.avoid import Avoid
from poise.envs.drawing import draw_frame, draw_map
from poise.envs.experts import NavigateExpert, Route, demonstrate, routes
from poise.envs.maps import Map
from poise.envs.navigate import Navigate
from poise.envs.random_maps import RandomMaps

__all__ = [
    "Avoid",
    "Map",
    "Navigate",
    "NavigateExpert",
    "RandomMaps",
    "Route",
    "demonstrate",
    "draw_frame",
    "draw_map",
    "routes",
]

gymnasium.register(id="poise/Navigate-v0", vector_entry_point="poise.envs.navigate:Navigate")
gymnasium.register(id="poise/Avoid-v0", vector_entry_point="poise.envs.avoid:Avoid")
