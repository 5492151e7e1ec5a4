r"""How different, how repeatable and how human plans are, on a fixed set of observations.

All distances are Euclidean, between whole plans in normalised units, as the policy learns them.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from poise.data import Windows
from poise.diagnostics import energy_distance
from poise.evaluation.rollout import Episode
from poise.evaluation.statistics import Interval, bootstrap
from poise.likelihood import Rademacher
from poise.policies import DiffusionPolicy, Policy, PolicySpec
from poise.sampling import DormandPrince, per_sample
from poise.typing import Actions, Noise, Observation

Planned = Callable[[Observation, Noise], Actions]
"""`(observation, noise) -> plans (B, horizon, action)` in the units of the data."""


@dataclass(frozen=True)
class Probe:
    """Observations that every way of planning is asked about.

    Attributes:
        observation: Name -> `(N, history, ...)`.
        actions: `(N, horizon, action)`, what the demonstrators did there, or None.
    """

    observation: Mapping[str, Tensor]
    actions: Actions | None = None

    def __len__(self) -> int:
        return len(next(iter(self.observation.values())))

    def to(self, device: str | torch.device) -> "Probe":
        """The same observations on another device."""
        observation = {name: values.to(device) for name, values in self.observation.items()}
        return Probe(observation, None if self.actions is None else self.actions.to(device))


def held_out(windows: Windows, count: int = 64) -> Probe:
    """Windows spread evenly over demonstrations, without those whose actions are padded at the end."""
    batch = windows[torch.linspace(0, len(windows) - 1, min(count, len(windows))).long()]
    whole = batch.real.all(1)
    keep = whole if bool(whole.any()) else ~whole
    return Probe({name: values[keep] for name, values in batch.observation.items()}, batch.actions[keep])


def visited(spec: PolicySpec, episodes: Iterable[Episode], count: int = 64) -> Probe:
    """Observation histories spread evenly over the steps of episodes; of optional features, those always there.

    Raises:
        ValueError: A policy that sees images, which episodes do not keep.
    """
    if spec.cameras:
        raise ValueError(
            f"got a policy that sees {spec.cameras}, images, which episodes do not keep, expected demonstrations: "
            "poise compare CHECKPOINT --recipe RECIPE --data PATH"
        )
    places = [(e, step) for e in sorted(episodes, key=lambda e: e.seed) for step in range(len(e.actions))]
    chosen = [places[k] for k in torch.linspace(0, len(places) - 1, min(count, len(places))).long().tolist()]
    names = [name for name in spec.observations if all(name in e.observations for e, _ in chosen)]
    past = {k: np.arange(k + 1 - spec.history, k + 1).clip(0) for _, k in chosen}
    seen = {name: np.stack([e.observations[name][past[k]] for e, k in chosen]) for name in names}
    return Probe({name: torch.as_tensor(values, dtype=torch.float32) for name, values in seen.items()})


def mean_distance(samples: Tensor) -> Tensor:
    r"""Mean distance of two different ones of K samples, without bias, for each of N sets.

    $$ \frac{1}{K (K - 1)} \sum_{i \ne j} \|x_i - x_j\|, \qquad
       E = 2 s\, \frac{\Gamma((D + 1)/2)}{\Gamma(D/2)} \text{ for } x \sim N(\mu, s^2 I_D). $$

    Args:
        samples: `(K, N, ...)`.

    Returns:
        `(N,)`, in float64.

    Raises:
        ValueError: Fewer than two samples.
    """
    if len(samples) < 2:
        raise ValueError(f"mean_distance got {len(samples)} samples of each set, expected at least 2 to compare")
    flat = samples.flatten(2).transpose(0, 1).double()
    apart = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")
    return apart.sum((1, 2)) / (len(samples) * (len(samples) - 1))


def spread(policy: Policy, plan: Planned, probe: Probe, draws: int = 8) -> float:
    """Mean distance of plans for the same observation under different noise, averaged over the probe; 0 is one plan."""
    many = {name: _repeated(values, draws) for name, values in probe.observation.items()}
    plans = _normalised(policy, plan(many, per_sample(range(draws * len(probe)))), many)
    return mean_distance(plans.unflatten(0, (draws, len(probe)))).mean().item()


def repeatable(plan: Planned, probe: Probe) -> bool:
    """Whether the same observations and the same noise give the same plans, bit by bit."""
    first, second = (plan(probe.observation, per_sample(range(len(probe)))) for _ in range(2))
    return torch.equal(first, second)


def sensitivity(policy: Policy, plan: Planned, probe: Probe, share: float = 0.01, draws: int = 4) -> float | None:
    r"""How much plans move when observations do, with the noise of sampling held fixed.

    $$ \frac{E \|p(o + \delta, z) - p(o, z)\|}{E \|\delta\|}, \qquad \delta_f \sim N(0, (0.01\, s_f)^2), $$

    both in normalised units, with s_f the standard deviation of feature f over the probe. Above 1 a plan amplifies the
    noise of the sensors. Images stay as they are.

    Args:
        policy: Whose units count.
        plan: The way of planning.
        probe: Where.
        share: Standard deviation of the noise, as a share of each feature's.
        draws: Noisy observations for each one of the probe.

    Returns:
        None where no feature varies, or all are images.
    """
    generator = torch.Generator().manual_seed(0)
    many = {name: _repeated(values, draws) for name, values in probe.observation.items()}
    flat = [name for name, shape in policy.spec.observations.items() if len(shape) < 3]
    noisy = {name: _jittered(many[name], share, generator) if name in flat else many[name] for name in many}
    before, after = policy.normalised(many), policy.normalised(noisy)
    moved = sum((_apart(before[name], after[name]).square() for name in flat), torch.zeros(1)).sqrt().mean().item()
    if not moved:
        return None
    seeds = range(draws * len(probe))
    plans = [_normalised(policy, plan(o, per_sample(seeds)), many) for o in (many, noisy)]
    return _apart(*plans).mean().item() / moved


def to_demonstrations(policy: Policy, plan: Planned, probe: Probe) -> float:
    """Energy distance of one plan for every observation of the probe to what the demonstrators did there.

    Raises:
        ValueError: A probe without demonstrated actions.
    """
    plans = plan(probe.observation, per_sample(range(len(probe))))
    shown = _demonstrated(probe)[:, policy.spec.lead :]
    both = [_normalised(policy, actions, probe.observation) for actions in (plans, shown)]
    return energy_distance(*both)


def demonstrated_floor(policy: Policy, probe: Probe) -> float:
    r"""The energy distance to expect of two independent sets of as many demonstrations, $2 E\|a - a'\| / N$.

    Raises:
        ValueError: A probe without demonstrated actions, or with one.
    """
    demonstrated = _normalised(policy, _demonstrated(probe)[:, policy.spec.lead :], probe.observation)
    return 2 * mean_distance(demonstrated[:, None]).item() / len(probe)


def likelihood(policy: DiffusionPolicy, probe: Probe, count: int = 24, probes: int = 4) -> Interval:
    """Log-density of demonstrated plans in nats a dimension, in the units of the data, with its bootstrap interval.

    It belongs to the law that the network learned, whatever samples from it. The divergence is estimated with a few
    random directions and loose tolerances, whose errors are small beside the spread over plans.

    Args:
        policy: The policy.
        probe: With demonstrated actions.
        count: Plans, evenly spread over the probe.
        probes: Random directions.

    Raises:
        ValueError: A probe without demonstrated actions.
    """
    actions = _demonstrated(probe)
    rows = torch.linspace(0, len(probe) - 1, min(count, len(probe))).long()
    observation = {name: values[rows] for name, values in probe.observation.items()}
    divergence = Rademacher(probes, torch.Generator(actions.device).manual_seed(0))
    found = policy.log_prob(observation, actions[rows], divergence, DormandPrince(1e-3, 1e-3))
    return bootstrap((found.value / actions[0].numel()).double().cpu().numpy())


def _demonstrated(probe: Probe) -> Actions:
    if probe.actions is None:
        raise ValueError("got a probe without actions, expected one of demonstrations: see held_out")
    return probe.actions


def _normalised(policy: Policy, plans: Actions, observation: Observation) -> Tensor:
    return policy.action_normaliser(policy.spec.space.encode(plans, observation)).cpu()


def _repeated(values: Tensor, draws: int) -> Tensor:
    return values.repeat(draws, *[1] * (values.ndim - 1))


def _jittered(values: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Values with noise of a share of their standard deviation, element by element."""
    noise = torch.empty(values.shape).normal_(generator=generator).to(values)
    return values + share * values.flatten(0, 1).std(0) * noise


def _apart(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).flatten(1).norm(dim=1).cpu()


__all__ = [
    "Planned",
    "Probe",
    "demonstrated_floor",
    "held_out",
    "likelihood",
    "mean_distance",
    "repeatable",
    "sensitivity",
    "spread",
    "to_demonstrations",
    "visited",
]
