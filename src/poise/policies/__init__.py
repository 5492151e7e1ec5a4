"""Policies: specs, stateless policies, run-time wrappers and checkpoints."""

from poise.policies.baselines import NearestNeighbour, Regression
from poise.policies.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from poise.policies.control import RecedingHorizon
from poise.policies.policy import DiffusionPolicy, Policy
from poise.policies.spec import PolicySpec

__all__ = [
    "Checkpoint",
    "DiffusionPolicy",
    "NearestNeighbour",
    "Policy",
    "PolicySpec",
    "RecedingHorizon",
    "Regression",
    "load_checkpoint",
    "save_checkpoint",
]
