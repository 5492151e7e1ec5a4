"""poise: from noise to poise. Diffusion models and diffusion policies for robots.

    import poise
    policy = poise.load_checkpoint("out/pusht").policy
    plan = policy.plan(observation)

The layers, each of which imports only those above it in this list: schedules, predictions, denoisers and guidance;
`poise.sampling`; `poise.nn`, `poise.data` and `poise.envs`; `poise.policies`; `poise.training` and `poise.evaluation`;
recipes and the command line.
"""

from poise.data import Batch, Episodes, Limits, Normaliser, Scaling, Standard, Windows, read_npz, write_npz
from poise.denoisers import Diffusion, Gaussian, Mixture
from poise.dynamics import probability_flow
from poise.evaluation import Task, rollout, summary
from poise.guidance import clipped
from poise.nn import MLP, UNet1D, Vector
from poise.objectives import LogitNormal, Uniform
from poise.policies import (
    Absolute,
    DiffusionPolicy,
    NearestNeighbour,
    Policy,
    PolicySpec,
    RecedingHorizon,
    Regression,
    Relative,
    load_checkpoint,
    save_checkpoint,
)
from poise.predictions import Clean, Epsilon, Flow, Score, Velocity
from poise.recipe import Recipe, load_recipe
from poise.sampling import (
    DDIM,
    DPMSolverPP,
    Euler,
    Heun,
    State,
    Trailing,
    UniformLogSNR,
    UniformTime,
    gaussian,
    per_sample,
    sample,
    start,
    tempered,
    trace,
)
from poise.schedules import Rectified, Schedule, Tabulated, VPCosine, VPLinear
from poise.training import EMA, TrainingSpec, train

__all__ = [
    "DDIM",
    "EMA",
    "MLP",
    "Absolute",
    "Batch",
    "Clean",
    "DPMSolverPP",
    "Diffusion",
    "DiffusionPolicy",
    "Episodes",
    "Epsilon",
    "Euler",
    "Flow",
    "Gaussian",
    "Heun",
    "Limits",
    "LogitNormal",
    "Mixture",
    "NearestNeighbour",
    "Normaliser",
    "Policy",
    "PolicySpec",
    "RecedingHorizon",
    "Recipe",
    "Rectified",
    "Regression",
    "Relative",
    "Scaling",
    "Schedule",
    "Score",
    "Standard",
    "State",
    "Tabulated",
    "Task",
    "Trailing",
    "TrainingSpec",
    "UNet1D",
    "Uniform",
    "UniformLogSNR",
    "UniformTime",
    "VPCosine",
    "VPLinear",
    "Vector",
    "Velocity",
    "Windows",
    "clipped",
    "gaussian",
    "load_checkpoint",
    "load_recipe",
    "per_sample",
    "probability_flow",
    "read_npz",
    "rollout",
    "sample",
    "save_checkpoint",
    "start",
    "summary",
    "tempered",
    "trace",
    "train",
    "write_npz",
]
