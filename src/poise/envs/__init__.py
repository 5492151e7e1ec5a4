"""Environments of our own and their scripted experts.

Importing this package registers `poise/Navigate-v0` with Gymnasium. It is a vector environment only: make it with
`gymnasium.make_vec("poise/Navigate-v0", num_envs=8)`.
"""

import gymnasium

from poise.envs.drawing import draw_frame, draw_map
from poise.envs.experts import NavigateExpert, Route, demonstrate, routes
from poise.envs.maps import Map
from poise.envs.navigate import Navigate

__all__ = ["Map", "Navigate", "NavigateExpert", "Route", "demonstrate", "draw_frame", "draw_map", "routes"]

gymnasium.register(id="poise/Navigate-v0", vector_entry_point="poise.envs.navigate:Navigate")
