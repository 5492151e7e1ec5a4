"""Scripted experts: state machines and planners that solve a task, in one of several ways where there are several."""

from poise.envs.experts.expert import Expert
from poise.envs.experts.navigate import NavigateExpert, Route, demonstrate, routes

__all__ = ["Expert", "NavigateExpert", "Route", "demonstrate", "routes"]
