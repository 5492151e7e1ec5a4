"""Conformance of samplers: orders of convergence, counts and moments."""

import math

import torch
from torch import Tensor

from poise.denoisers import Gaussian
from poise.sampling import Sampler, UniformTime, brownian, gaussian, gaussian_law, per_sample, sample, trace
from poise.schedules import Schedule, VPCosine
from poise.testing.assertions import near, require
from poise.testing.diffusions import Scaled, asymmetric_mixture, transport

_DOUBLE = torch.float64


def observed_order(sampler: Sampler, schedule: Schedule, target: str, steps: int = 400) -> float:
    """Slope of the error against the number of steps (`steps` to twice as many), from t = 0.8 to t = 0.2.

    The two strides before the equal ones are as short as the square of theirs, so that what a multistep method does
    without a past does not count.

    Args:
        sampler: A deterministic sampler.
        schedule: Any schedule.
        target: `gaussian` or `mixture`; both have their ODE's solution in closed form.
        steps: The coarser number of steps.
    """
    begin, end = 0.8, 0.2
    x = torch.linspace(-1.5, 1.5, 7, dtype=_DOUBLE)[:, None]
    if target == "gaussian":
        denoise = Gaussian(schedule, torch.tensor([0.7], dtype=_DOUBLE), torch.tensor([0.2], dtype=_DOUBLE))
        exact = denoise.flow(x, begin, end)
    else:
        denoise = asymmetric_mixture(schedule)
        exact = transport(denoise, x, begin, end)
    errors = []
    for n in (steps, 2 * steps):
        brief = ((begin - end) / n) ** 2
        times = [begin, begin - brief, *(begin - 2 * brief + (end - begin + 2 * brief) * i / n for i in range(n + 1))]
        got = sample(denoise, schedule, sampler, times, x).x
        errors.append((got - exact).abs().mean().item())
    return math.log2(errors[0] / errors[1])


def weak_order(sampler: Sampler, schedule: Schedule, steps: int = 40) -> float:
    """Slope of the error of the variance on a Gaussian (`steps` to twice as many), by the exact law of the sampler."""
    begin, end = 0.8, 0.2
    variance = torch.tensor([0.2, 0.6, 3.0], dtype=_DOUBLE)
    first, last = (level.alpha**2 * variance + level.sigma**2 for level in (schedule.at(begin), schedule.at(end)))
    errors = []
    for n in (steps, 2 * steps):
        times = [begin + (end - begin) * i / n for i in range(n + 1)]
        errors.append((gaussian_law(sampler, schedule, times, variance, first) - last).abs().sum().item())
    return math.log2(errors[0] / errors[1])


def strong_order(sampler: Sampler, schedule: Schedule, steps: int = 32, paths: int = 64) -> float:
    """Slope of the distance to the same sampler on the same Brownian paths with twice as many steps, on a mixture."""
    begin, end, noise = 0.8, 0.2, brownian(range(paths))
    denoise, x = asymmetric_mixture(schedule), torch.linspace(-1.5, 1.5, paths, dtype=_DOUBLE)[:, None]
    results = []
    for n in (steps, 2 * steps, 4 * steps):
        times = [begin + (end - begin) * i / n for i in range(n + 1)]
        results.append(sample(denoise, schedule, sampler, times, x, noise).x)
    coarse, fine = ((a - b).square().mean().sqrt().item() for a, b in zip(results, results[1:], strict=False))
    return math.log2(coarse / fine)


def check_sampler(sampler: Sampler, schedule: Schedule | None = None) -> None:
    """Order, counted evaluations, budgets, determinism, independence of the batch, moments, and scaling."""
    schedule = schedule or VPCosine()
    _check_evaluations(sampler, schedule)
    _check_batch_independence(sampler, schedule)
    _check_scaling(sampler, schedule)
    _check_moments(sampler, schedule)
    if _draws_noise(sampler, schedule) or not sampler.evaluations:
        return
    for target in ("gaussian", "mixture"):
        order = observed_order(sampler, schedule, target)
        require(
            order > sampler.order - 0.2, f"{sampler}: observed order {order:.2f} on a {target}, not {sampler.order}"
        )


def _draws_noise(sampler: Sampler, schedule: Schedule) -> bool:
    calls = []

    def spy(x: Tensor, t: float, s: float) -> Tensor:
        calls.append(x)
        return torch.zeros_like(x)

    times = UniformTime().times(schedule, 10)
    sample(asymmetric_mixture(schedule), schedule, sampler, times, torch.ones(2, 1, dtype=_DOUBLE), spy)
    return bool(calls)


def _check_evaluations(sampler: Sampler, schedule: Schedule) -> None:
    if not sampler.evaluations:
        require(sampler.budget(7) == (sampler,), f"{sampler}: a tolerance decides, but a budget is several steps")
        return
    denoise, x = asymmetric_mixture(schedule), torch.ones(2, 1, dtype=_DOUBLE)
    counts = [state.evaluations for state in trace(denoise, schedule, sampler, [1.0, 0.7, 0.3, 0.0], x)]
    declared = 3 * sampler.evaluations + sampler.extra
    require(counts[-1] == declared, f"{sampler}: counted evaluations {counts}, declared {declared}")
    for budget in (sampler.extra + steps * sampler.evaluations for steps in (1, 2, 7)):
        samplers = sampler.budget(budget)
        times = UniformTime().times(schedule, len(samplers))
        spent = sample(denoise, schedule, samplers, times, x).evaluations
        require(spent == budget, f"{sampler}: spent {spent} of a budget of {budget}")


def _check_batch_independence(sampler: Sampler, schedule: Schedule) -> None:
    denoise, times = asymmetric_mixture(schedule), UniformTime().times(schedule, 8)
    x = torch.linspace(-1, 1, 6, dtype=_DOUBLE)[:, None]
    together = sample(denoise, schedule, sampler, times, x, per_sample(range(6))).x
    again = sample(denoise, schedule, sampler, times, x, per_sample(range(6))).x
    require(torch.equal(together, again), f"{sampler}: the same seeds gave two results")
    if sampler.evaluations:  # strides by a tolerance are common to the batch
        alone = torch.cat(
            [sample(denoise, schedule, sampler, times, x[i : i + 1], per_sample([i])).x for i in range(6)]
        )
        near(together, alone, 1e-12, f"{sampler}: a sample depends on its batch")


def _check_scaling(sampler: Sampler, schedule: Schedule) -> None:
    """In units that are c times smaller everything is c times larger; the denoiser's `x0` stays."""
    scaled, times = Scaled(schedule), UniformTime().times(schedule, 6)
    x = torch.linspace(-1, 1, 5, dtype=_DOUBLE)[:, None]
    base = sample(asymmetric_mixture(schedule), schedule, sampler, times, x, per_sample(range(5))).x
    other = sample(asymmetric_mixture(scaled), scaled, sampler, times, scaled.factor * x, per_sample(range(5))).x
    if sampler.evaluations:  # an absolute tolerance has units
        near(other / scaled.factor, base, 1e-9, f"{sampler}: the result depends on the units of the diffusion")


def _check_moments(sampler: Sampler, schedule: Schedule, count: int = 20_000) -> None:
    mean, variance = torch.tensor([0.4], dtype=_DOUBLE), torch.tensor([0.3], dtype=_DOUBLE)
    denoise, level = Gaussian(schedule, mean, variance), schedule.at(1.0)
    noise = gaussian(torch.Generator().manual_seed(0))
    spread = torch.sqrt(level.alpha**2 * variance + level.sigma**2)
    x = level.alpha * mean + spread * noise(torch.empty(count, 1, dtype=_DOUBLE), 1.0, 1.0)
    steps = 250 if sampler.evaluations else 20  # which a tolerance divides further
    x = sample(denoise, schedule, sampler, UniformTime().times(schedule, steps), x, noise).x
    last = schedule.at(0.0)
    expected_mean, expected = last.alpha * mean, last.alpha**2 * variance + last.sigma**2
    # Five standard errors, and one per cent for the strides.
    error = 5 * torch.sqrt(expected / count) + 0.01 * torch.sqrt(expected)
    require(bool((x.mean(0) - expected_mean).abs() < error), f"{sampler}: mean {x.mean(0)}, exact {expected_mean}")
    ratio = x.var(0) / expected
    require(bool((ratio - 1).abs() < 5 * math.sqrt(2 / count) + 0.02), f"{sampler}: variance off by {ratio}")


__all__ = ["check_sampler", "observed_order", "strong_order", "weak_order"]
