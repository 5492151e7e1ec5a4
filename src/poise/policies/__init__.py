"""Policies: specs, stateless policies, run-time wrappers and checkpoints."""

from poise.policies.actions import Absolute, ActionSpace, Relative
from poise.policies.baselines import NearestNeighbour, Regression
from poise.policies.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from poise.policies.control import RecedingHorizon
from poise.policies.policy import DiffusionPolicy, Policy
from poise.policies.spec import PolicySpec

__all__ = [
    "Absolute",
    "ActionSpace",
    "Checkpoint",
    "DiffusionPolicy",
    "NearestNeighbour",
    "Policy",
    "PolicySpec",
    "RecedingHorizon",
    "Regression",
    "Relative",
    "load_checkpoint",
    "save_checkpoint",
]
