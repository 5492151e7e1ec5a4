"""Validation: how well the averaged policy does on held-out demonstrations, with the same draws at every call."""

from collections.abc import Callable
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
_TOGETHER = 8  # windows whose plans are made at once


class Stopped(Exception):  # noqa: N818 (nothing is wrong)
    """A validation was not wanted any more."""


def _never() -> bool:
    return False


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
def validate(policy: Policy, windows: Windows, spec: TrainingSpec, stopped: Callable[[], bool] = _never) -> Validation:
    """Try a policy, in evaluation mode, on held-out windows; noise and levels are the same at every call.

    Args:
        policy: Any policy.
        windows: The held-out ones.
        spec: Whose seed and mask are used.
        stopped: Asked between parts of the work, which takes long for a large network on a CPU.

    Raises:
        Stopped: It said so.
    """
    density, schedule = policy.spec.density, policy.spec.schedule
    generator = torch.Generator(policy.action_normaliser.scale.device)
    batch, levels = windows[_spread(len(windows), _WINDOWS, windows)], []
    for level in ((i + 0.5) / _LEVELS for i in range(_LEVELS)):
        _check(stopped)
        losses = policy.loss(batch, Draws(generator.manual_seed(spec.seed), level=level)).mean(-1)
        value = losses[batch.real].mean() if spec.mask_padding else losses.mean()
        t = float(density.quantile(torch.tensor(level, dtype=torch.float64)))
        levels.append((schedule.at(t).log_snr, value.item()))
    mean = sum(loss for _, loss in levels) / len(levels)
    return Validation(mean, tuple(levels), best_of(policy, windows, generator.manual_seed(spec.seed), stopped))


@torch.no_grad()
def best_of(
    policy: Policy, windows: Windows, generator: torch.Generator, stopped: Callable[[], bool] = _never
) -> float:
    """Mean over held-out windows of the smallest of 8 plans' mean distances to the demonstrated actions."""
    found, lead = [], policy.spec.lead
    for part in _spread(len(windows), _TRIED, windows).split(_TOGETHER):
        _check(stopped)
        batch = windows[part]
        many = {name: values.repeat(_PLANS, *[1] * (values.ndim - 1)) for name, values in batch.observation.items()}
        plans = policy.plan(many, gaussian(generator)).unflatten(0, (_PLANS, -1))
        gaps, real = (plans - batch.actions[:, lead:]).norm(dim=-1), batch.real[:, lead:]
        found.append(((gaps * real).sum(-1) / real.sum(-1)).min(0).values)
    return torch.cat(found).mean().item()


def _check(stopped: Callable[[], bool]) -> None:
    if stopped():
        raise Stopped


def _spread(count: int, most: int, windows: Windows) -> Tensor:
    return torch.linspace(0, count - 1, min(count, most)).round().long().to(windows.device)


__all__ = ["Stopped", "Validation", "best_of", "validate"]
