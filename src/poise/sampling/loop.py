"""The sampling loop, as an iterator: progress bars, animations and early stopping are the caller's `for`."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from poise.sampling.noise import gaussian
from poise.sampling.sampler import Sampler
from poise.schedules import Schedule
from poise.typing import Denoiser, Noise


class State(NamedTuple):
    """A sample on its way.

    Attributes:
        x: The sample at time t, `(B, ...)`.
        t: Its time, 1 is noise and 0 is data.
        evaluations: Calls of the denoiser so far, counted.
    """

    x: Tensor
    t: float
    evaluations: int


def start(schedule: Schedule, like: Tensor, noise: Noise) -> Tensor:
    r"""A draw from the end of the forward process, $N(0, (\alpha_1^2 + \sigma_1^2) I)$, of the shape of `like`.

    Exact for data of unit variance, and off by $\alpha_1^2$ times the rest for others.
    """
    level = schedule.at(1.0)
    return noise(like) * math.hypot(level.alpha, level.sigma)


def trace(
    denoise: Denoiser,
    schedule: Schedule,
    sampler: Sampler | Sequence[Sampler],
    times: Sequence[float],
    x: Tensor,
    noise: Noise | None = None,
) -> Iterator[State]:
    """Yield the state after every step from `times[0]` down to `times[-1]`.

    Args:
        denoise: `(x_t, t) -> E[x0 | x_t]`.
        schedule: The schedule that `x` and `denoise` live on.
        sampler: One sampler for all steps, or one a step (see `Sampler.budget`).
        times: Decreasing times.
        x: The sample at `times[0]`, `(B, ...)`; see `start`.
        noise: Source of noise for stochastic samplers; by default PyTorch's global generator.

    Raises:
        ValueError: Times that do not decrease, or not one sampler a step.
    """
    steps = len(times) - 1
    samplers = [sampler] * steps if isinstance(sampler, Sampler) else list(sampler)
    if len(samplers) != steps:
        raise ValueError(f"trace got {len(samplers)} samplers for {steps} steps, expected one a step or one for all")
    if steps < 1 or any(t <= s for t, s in zip(times, times[1:], strict=False)):
        raise ValueError(f"trace got times {list(times)}, expected at least two that decrease, such as [1.0, 0.5, 0.0]")
    noise, calls = noise or gaussian(), 0

    def counted(x: Tensor, t: float) -> Tensor:
        nonlocal calls
        calls += 1
        return denoise(x, t)

    memory, owner = None, samplers[0]
    for method, t, s in zip(samplers, times, times[1:], strict=False):
        if method is not owner:
            memory, owner = None, method
        x, memory = method.step(counted, schedule, x, t, s, noise, memory)
        yield State(x, s, calls)


def sample(
    denoise: Denoiser,
    schedule: Schedule,
    sampler: Sampler | Sequence[Sampler],
    times: Sequence[float],
    x: Tensor,
    noise: Noise | None = None,
) -> State:
    """The last state of `trace`."""
    *_, last = trace(denoise, schedule, sampler, times, x, noise)
    return last


__all__ = ["State", "sample", "start", "trace"]
