"""Serving a policy to many robots, in openpi's protocol; `poise.client` is the other end."""

from poise.serving.dashboard import Dashboard
from poise.serving.limits import Limits, read_key
from poise.serving.planning import Filter, Observer, Planner, Served
from poise.serving.recording import Recording
from poise.serving.replanning import Replanned, replan
from poise.serving.running import run
from poise.serving.server import Server

__all__ = [
    "Dashboard",
    "Filter",
    "Limits",
    "Observer",
    "Planner",
    "Recording",
    "Replanned",
    "Served",
    "Server",
    "read_key",
    "replan",
    "run",
]
