"""Policies: specs, stateless policies, run-time wrappers and checkpoints."""

from poise.policies.actions import Absolute, ActionSpace, Delta, Relative, RelativePose
from poise.policies.asynchronous import Asynchronous, Record, simulated
from poise.policies.baselines import NearestNeighbour, Regression
from poise.policies.carriers import Carrier, Late, Request, Way, Worker, afresh
from poise.policies.checkpoint import Checkpoint, load, load_checkpoint
from poise.policies.chunking import Chunking, ExponentialMask, LinearMask, OnesMask, SoftMask, ZerosMask, chunked
from poise.policies.compiling import compiled
from poise.policies.consistency import Consistency
from poise.policies.control import Control, Controller, RecedingHorizon
from poise.policies.couplings import Coupling, Immiscible, Independent, OptimalTransport
from poise.policies.deadline import Candidate, Deadline, Punctuality
from poise.policies.diffusion import DiffusionPolicy, Guide, emphasised
from poise.policies.ensemble import TemporalEnsemble
from poise.policies.iterative import MinimalIterative
from poise.policies.mixture import MixtureRegression
from poise.policies.novelty import Novelty, OutsideRange, PlanSurprise, TokenDistance
from poise.policies.policy import Policy
from poise.policies.recorded import Delayed, Recorded
from poise.policies.safety import Safe, Safety, limited
from poise.policies.spec import PolicySpec
from poise.policies.warm import WarmStart
from poise.policies.weightings import EDM, LogitNormalWeight, MinSNR, Unit, Weighting

__all__ = [
    "EDM",
    "Absolute",
    "ActionSpace",
    "Asynchronous",
    "Candidate",
    "Carrier",
    "Checkpoint",
    "Chunking",
    "Consistency",
    "Control",
    "Controller",
    "Coupling",
    "Deadline",
    "Delayed",
    "Delta",
    "DiffusionPolicy",
    "ExponentialMask",
    "Guide",
    "Immiscible",
    "Independent",
    "Late",
    "LinearMask",
    "LogitNormalWeight",
    "MinSNR",
    "MinimalIterative",
    "MixtureRegression",
    "NearestNeighbour",
    "Novelty",
    "OnesMask",
    "OptimalTransport",
    "OutsideRange",
    "PlanSurprise",
    "Policy",
    "PolicySpec",
    "Punctuality",
    "RecedingHorizon",
    "Record",
    "Recorded",
    "Regression",
    "Relative",
    "RelativePose",
    "Request",
    "Safe",
    "Safety",
    "SoftMask",
    "TemporalEnsemble",
    "TokenDistance",
    "Unit",
    "WarmStart",
    "Way",
    "Weighting",
    "Worker",
    "ZerosMask",
    "afresh",
    "chunked",
    "compiled",
    "emphasised",
    "limited",
    "load",
    "load_checkpoint",
    "simulated",
]
