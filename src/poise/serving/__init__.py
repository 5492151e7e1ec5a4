"""Serving a policy to many robots, in openpi's protocol; `poise.client` is the other end."""

from poise.serving.limits import Limits, read_key
from poise.serving.planning import Filter, Observer, Planner, Served
from poise.serving.server import Server, run

__all__ = ["Filter", "Limits", "Observer", "Planner", "Served", "Server", "read_key", "run"]
