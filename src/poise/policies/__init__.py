"""Policies: specs, stateless policies, run-time wrappers and checkpoints."""

from poise.policies.actions import Absolute, ActionSpace, Delta, Relative, RelativePose
from poise.policies.baselines import NearestNeighbour, Regression
from poise.policies.checkpoint import Checkpoint, load, load_checkpoint
from poise.policies.control import Control, Controller, RecedingHorizon
from poise.policies.diffusion import DiffusionPolicy, Guide, emphasised
from poise.policies.ensemble import TemporalEnsemble
from poise.policies.iterative import MinimalIterative
from poise.policies.mixture import MixtureRegression
from poise.policies.novelty import Novelty, OutsideRange, PlanSurprise, TokenDistance
from poise.policies.policy import Policy
from poise.policies.recorded import Delayed, Recorded
from poise.policies.spec import PolicySpec
from poise.policies.warm import WarmStart

__all__ = [
    "Absolute",
    "ActionSpace",
    "Checkpoint",
    "Control",
    "Controller",
    "Delayed",
    "Delta",
    "DiffusionPolicy",
    "Guide",
    "MinimalIterative",
    "MixtureRegression",
    "NearestNeighbour",
    "Novelty",
    "OutsideRange",
    "PlanSurprise",
    "Policy",
    "PolicySpec",
    "RecedingHorizon",
    "Recorded",
    "Regression",
    "Relative",
    "RelativePose",
    "TemporalEnsemble",
    "TokenDistance",
    "WarmStart",
    "emphasised",
    "load",
    "load_checkpoint",
]
