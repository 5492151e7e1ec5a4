"""Policies: specs, stateless policies, run-time wrappers and checkpoints."""

from poise.policies.actions import Absolute, ActionSpace, Delta, Relative, RelativePose
from poise.policies.baselines import NearestNeighbour, Regression
from poise.policies.checkpoint import Checkpoint, load, load_checkpoint
from poise.policies.consistency import Consistency
from poise.policies.control import Control, Controller, RecedingHorizon
from poise.policies.couplings import Coupling, Immiscible, Independent, OptimalTransport
from poise.policies.diffusion import DiffusionPolicy, Guide, emphasised
from poise.policies.ensemble import TemporalEnsemble
from poise.policies.iterative import MinimalIterative
from poise.policies.mixture import MixtureRegression
from poise.policies.novelty import Novelty, OutsideRange, PlanSurprise, TokenDistance
from poise.policies.policy import Policy
from poise.policies.recorded import Delayed, Recorded
from poise.policies.spec import PolicySpec
from poise.policies.warm import WarmStart
from poise.policies.weightings import EDM, LogitNormalWeight, MinSNR, Unit, Weighting

__all__ = [
    "EDM",
    "Absolute",
    "ActionSpace",
    "Checkpoint",
    "Consistency",
    "Control",
    "Controller",
    "Coupling",
    "Delayed",
    "Delta",
    "DiffusionPolicy",
    "Guide",
    "Immiscible",
    "Independent",
    "LogitNormalWeight",
    "MinSNR",
    "MinimalIterative",
    "MixtureRegression",
    "NearestNeighbour",
    "Novelty",
    "OptimalTransport",
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
    "Unit",
    "WarmStart",
    "Weighting",
    "emphasised",
    "load",
    "load_checkpoint",
]
