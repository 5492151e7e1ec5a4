"""The noise schedulers of diffusers, as the checkpoints that were trained with them describe them."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from poise.data.untrusted import DataError
from poise.interop.fields import Fields, described
from poise.policies import PolicySpec
from poise.predictions import Clean, Epsilon, Prediction
from poise.sampling import DDIM, DDPM, Sampler, Trailing
from poise.schedules import Tabulated

MAX_STEPS = 10_000
PREDICTIONS: Mapping[str, Prediction] = {"epsilon": Epsilon(), "sample": Clean()}
SCHEDULES = {
    "squaredcos_cap_v2": lambda steps, start, end: Tabulated.squared_cosine(steps),  # noqa: ARG005
    "linear": Tabulated.linear,
    "scaled_linear": Tabulated.scaled_linear,
}
_SIGMA_MIN = 1e-9  # their chains end without noise; so little is none in float32
_FIXED = {"variance_type": "fixed_small", "set_alpha_to_one": True, "steps_offset": 0, "timestep_spacing": "leading"}
# What diffusers takes for a field that is not set; a value that is an error here would change the plans.
_DEFAULTS: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "prediction_type": "epsilon",
    **_FIXED,
}


@dataclass(frozen=True)
class Chain:
    """How a policy was noised in training, and how it plans.

    Attributes:
        schedule: The chain.
        prediction: What the network gives.
        bound: Predicted actions are clamped to plus or minus this.
        sampler: The scheduler as ours.
        evaluations: Steps of a plan.
    """

    schedule: Tabulated
    prediction: Prediction
    bound: float | None
    sampler: Sampler
    evaluations: int

    def under(self, spec: PolicySpec) -> PolicySpec:
        """A policy with this noise. Its strides are of whole levels and end at the first: diffusers' "leading"."""
        steps = len(self.schedule.betas)
        return dataclasses.replace(
            spec,
            schedule=self.schedule,
            prediction=self.prediction,
            bound=self.bound,
            sampler=self.sampler,
            grid=Trailing(steps, first=1),
            begin=((self.evaluations - 1) * (steps // self.evaluations) + 1) / steps,
            evaluations=self.evaluations,
        )


def read_chain(fields: Fields, kind: str, evaluations: int | None) -> Chain:
    """The chain that some fields describe, none of which is left out.

    Args:
        fields: Among others those of the scheduler.
        kind: "DDPM" or "DDIM".
        evaluations: Steps of a plan; None means all of the chain.

    Raises:
        DataError: A field out of range, or a choice that we have no counterpart of.
    """
    steps, make = fields.integer("num_train_timesteps", MAX_STEPS), fields.choice("beta_schedule", SCHEDULES)
    with described(fields.path, fields.where):
        exact = make(steps, fields.number("beta_start"), fields.number("beta_end"))
        # diffusers computes 1 - beta in float32.
        alphas = 1 - torch.tensor(exact.betas, dtype=torch.float64).float()
        schedule = Tabulated(tuple((1 - alphas.double()).tolist()), _SIGMA_MIN)
    bound = fields.number("clip_sample_range") if fields.flag("clip_sample") else None
    sampler = DDPM() if kind == "DDPM" else DDIM(bound=bound)
    return Chain(schedule, fields.choice("prediction_type", PREDICTIONS), bound, sampler, evaluations or steps)


def read_scheduler(fields: Fields, kind: str, evaluations: int | None) -> Chain:
    """As `read_chain`, of a scheduler of diffusers with its defaults.

    Raises:
        DataError: Also an unknown field, or a number of steps that versions of diffusers understand differently.
    """
    fields = fields.complete(_DEFAULTS, ("_target_",))
    for name, value in _FIXED.items():
        fields.must(name, value, "we have a counterpart of no other")
    chain = read_chain(fields, kind, evaluations)
    steps, count = len(chain.schedule.betas), chain.evaluations
    if count > steps or (kind == "DDPM" and count != steps):
        expected = f"{steps}" if kind == "DDPM" else f"1 to {steps}"
        problem = f"plans in {count} steps under {kind} with num_train_timesteps={steps}, expected {expected}"
        raise DataError(fields.path, fields.where, f"{problem}: versions of diffusers differ in what else they do")
    return chain


__all__ = ["MAX_STEPS", "PREDICTIONS", "SCHEDULES", "Chain", "read_chain", "read_scheduler"]
