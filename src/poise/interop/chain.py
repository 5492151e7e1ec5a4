"""The noise schedulers of diffusers, as the checkpoints that were trained with them describe them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from poise.data.untrusted import DataError
from poise.interop.fields import Fields, described
from poise.interop.lerobot_config import PREDICTIONS, SCHEDULES, SIGMA_MIN
from poise.predictions import Prediction
from poise.sampling import DDIM, DDPM, Grid, Sampler, Trailing
from poise.schedules import Tabulated

_STEPS = 10_000
# What diffusers takes for a field that is not set; a value that is an error here would change the plans.
_DEFAULTS: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "prediction_type": "epsilon",
    "variance_type": "fixed_small",
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "timestep_spacing": "leading",
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

    @property
    def grid(self) -> Grid:
        """Of strides of whole levels that end at the first one."""
        return Trailing(len(self.schedule.betas), first=1)

    @property
    def begin(self) -> float:
        """The level of the first step."""
        steps = len(self.schedule.betas)
        return ((self.evaluations - 1) * (steps // self.evaluations) + 1) / steps


def complete(fields: Fields, defaults: Mapping[str, Any], names: Collection[str]) -> Fields:
    """The fields with defaults for those that are left out.

    Raises:
        DataError: A field that is not among the known ones and set to anything but null or false.
    """
    unknown = {name for name, value in fields.values.items() if value not in (None, False)} - {*defaults, *names}
    if unknown:
        expected = f"expected only {sorted({*defaults, *names} - {'_target_'})}"
        raise DataError(fields.path, fields.where, f"sets {sorted(unknown)[:5]}, {expected}")
    return Fields(fields.path, fields.where, {**defaults, **fields.values})


def read_chain(fields: Fields, kind: str, evaluations: int | None) -> Chain:
    """The scheduler in some fields.

    Args:
        fields: Of the scheduler.
        kind: "DDPM" or "DDIM".
        evaluations: Steps of a plan; None means all of the chain.

    Raises:
        DataError: A field out of range or unknown, or a choice that we have no counterpart of.
    """
    fields = complete(fields, _DEFAULTS, ("_target_",))
    for name in ("variance_type", "set_alpha_to_one", "steps_offset", "timestep_spacing"):
        if fields.values[name] != _DEFAULTS[name]:
            fields.refuse(name, f"{_DEFAULTS[name]!r}, the one that we have a counterpart of")
    steps = fields.integer("num_train_timesteps", _STEPS)
    evaluations = steps if evaluations is None else evaluations
    if not 1 <= evaluations <= steps or (kind == "DDPM" and evaluations != steps):
        expected = f"{steps}" if kind == "DDPM" else f"1 to {steps}"
        problem = f"plans in {evaluations} steps under {kind} with num_train_timesteps={steps}, expected {expected}"
        raise DataError(fields.path, fields.where, f"{problem}: versions of diffusers differ in what else they do")
    make = fields.choice("beta_schedule", SCHEDULES)
    with described(fields.path, fields.where):
        exact = make(steps, fields.number("beta_start"), fields.number("beta_end"))
        # diffusers computes 1 - beta in float32.
        alphas = 1 - torch.tensor(exact.betas, dtype=torch.float64).float()
        schedule = Tabulated(tuple((1 - alphas.double()).tolist()), SIGMA_MIN)
    bound = fields.number("clip_sample_range") if fields.flag("clip_sample") else None
    sampler = DDPM() if kind == "DDPM" else DDIM(bound=bound)
    return Chain(schedule, fields.choice("prediction_type", PREDICTIONS), bound, sampler, evaluations)


__all__ = ["Chain", "complete", "read_chain"]
