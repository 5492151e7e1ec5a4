"""Engines: one function on many items side by side, in processes of this machine or on a Ray cluster (extra `cluster`).

An engine decides where and in which order items run, never what comes of one. The function begins in the folder of the
command, with its environment variables; files are named by their paths, and `Pinned` finds out whether a worker sees
the same ones. All machines have the same poise and Python, and a file system in common, or copies at the same paths.
"""

from poise.cli.engines.cluster import Ray
from poise.cli.engines.engine import Engine, Outcome
from poise.cli.engines.local import Local
from poise.cli.engines.pinned import Pinned
from poise.cli.engines.workers import Workers

__all__ = ["Engine", "Local", "Outcome", "Pinned", "Ray", "Workers"]
