"""Validation: how well the averaged policy does on held-out demonstrations, with the same draws at every call."""

from dataclasses import dataclass

import torch
from torch import Tensor

from poise.data import Windows
from poise.draws import Draws
from poise.policies import Policy
from poise.sampling import gaussian
from poise.training.spec import TrainingSpec

_LEVELS = 8  # of noise
_WINDOWS = 512  # evenly spread, that the loss at each level is the mean of
_TRIED, _PLANS = 128, 8  # windows that plans are made for, and plans each


@dataclass(frozen=True)
class Validation:
    """Figures of held-out demonstrations.

    Attributes:
        loss: Mean of the losses at the levels.
        levels: `(log_snr, loss)` at evenly spread quantiles of the density over t, from the least noise on. A policy
            that knows no noise has the same loss at all of them.
        action_error: Mean distance of an action, in the units of the data, to that of the best of 8 plans: what several
            ways of doing a thing do not punish.
    """

    loss: float
    levels: tuple[tuple[float, float], ...]
    action_error: float


@torch.no_grad()
def validate(policy: Policy, windows: Windows, spec: TrainingSpec) -> Validation:
    """Try a policy, in evaluation mode, on held-out windows; noise and levels are the same at every call."""
    density, schedule = policy.spec.density, policy.spec.schedule
    generator = torch.Generator(policy.action_normaliser.scale.device)
    batch, levels = windows[_spread(len(windows), _WINDOWS, windows)], []
    for level in ((i + 0.5) / _LEVELS for i in range(_LEVELS)):
        losses = policy.loss(batch, Draws(generator.manual_seed(spec.seed), level=level)).mean(-1)
        value = losses[batch.real].mean() if spec.mask_padding else losses.mean()
        t = float(density.quantile(torch.tensor(level, dtype=torch.float64)))
        levels.append((schedule.at(t).log_snr, value.item()))
    mean = sum(loss for _, loss in levels) / len(levels)
    return Validation(mean, tuple(levels), best_of(policy, windows, generator.manual_seed(spec.seed)))


@torch.no_grad()
def best_of(policy: Policy, windows: Windows, generator: torch.Generator) -> float:
    """Mean over held-out windows of the smallest of 8 plans' mean distances to the demonstrated actions."""
    batch = windows[_spread(len(windows), _TRIED, windows)]
    many = {name: values.repeat(_PLANS, *[1] * (values.ndim - 1)) for name, values in batch.observation.items()}
    plans = policy.plan(many, gaussian(generator)).unflatten(0, (_PLANS, -1))
    lead = policy.spec.lead
    gaps, real = (plans - batch.actions[:, lead:]).norm(dim=-1), batch.real[:, lead:]
    return ((gaps * real).sum(-1) / real.sum(-1)).min(0).values.mean().item()


def _spread(count: int, most: int, windows: Windows) -> Tensor:
    return torch.linspace(0, count - 1, min(count, most)).round().long().to(windows.device)


__all__ = ["Validation", "best_of", "validate"]
