"""Evaluation: closed-loop episodes, statistics with intervals, and reports."""

from poise.evaluation.film import film
from poise.evaluation.rollout import Episode, Latency, latency, rollout, summary
from poise.evaluation.statistics import Interval, bootstrap, entropy, jerk, paired_difference, seam_jump, wilson
from poise.evaluation.task import Adapter, Task, as_given, as_named

__all__ = [
    "Adapter",
    "Episode",
    "Interval",
    "Latency",
    "Task",
    "as_given",
    "as_named",
    "bootstrap",
    "entropy",
    "film",
    "jerk",
    "latency",
    "paired_difference",
    "rollout",
    "seam_jump",
    "summary",
    "wilson",
]
