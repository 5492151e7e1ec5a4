"""The sampling loop, as an iterator: progress bars, animations and early stopping are the caller's `for`."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
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
    return noise(like, 1.0, 1.0) * math.hypot(level.alpha, level.sigma)


def walk(
    denoise: Denoiser,
    schedule: Schedule,
    steps: Iterable[tuple[Sampler, float, float]],
    x: Tensor,
    noise: Noise | None = None,
) -> Iterator[State]:
    """Yield the state after every step, in either direction of time; `steps` may be decided on the way.

    Nothing on the way waits for a device: predictions that are not finite are found after the last step.

    Args:
        denoise: `(x_t, t) -> E[x0 | x_t]`.
        schedule: The schedule that `x` and `denoise` live on.
        steps: Sampler, time and next time of every step.
        x: The sample at the first time, `(B, ...)`.
        noise: Source of noise for stochastic samplers; by default PyTorch's global generator.

    Raises:
        ValueError: A prediction of another shape than the sample, or one that is not finite: names step and level.
    """
    noise, sums, places = noise or gaussian(), list[Tensor](), list[tuple[int, float]]()

    def watched(x: Tensor, t: float) -> Tensor:
        x0 = denoise(x, t)
        if x0.shape != x.shape:
            raise ValueError(
                f"The denoiser returned the shape {tuple(x0.shape)} for samples of shape {tuple(x.shape)}, expected "
                "the same: one prediction of x0 an entry"
            )
        sums.append(x0.sum())
        places.append((step, t))
        return x0

    memory, owner, step = None, None, 0
    for step, (method, t, s) in enumerate(steps, 1):  # noqa: B007 (read by `watched`)
        if method is not owner:
            memory, owner = None, method
        x, memory = method.step(watched, schedule, x, t, s, noise, memory)
        yield State(x, s, len(sums))
    if not torch.compiler.is_exporting():  # a program does not raise
        _raise_unless_finite(sums, places, schedule)


def _raise_unless_finite(sums: list[Tensor], places: list[tuple[int, float]], schedule: Schedule) -> None:
    if sums and not bool(torch.isfinite(finite := torch.stack(sums)).all()):
        step, t = places[torch.isfinite(finite).tolist().index(False)]
        raise ValueError(
            f"The denoiser returned NaN or infinity at step {step}, t = {t:.6g}, log-SNR "
            f"{schedule.at(t).log_snr:.4g}, expected finite numbers: check the network's weights and its condition, "
            "and that the first sample was finite"
        )


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
        ValueError: Times that do not decrease, not one sampler a step, or a prediction of another shape or not finite.
    """
    steps = len(times) - 1
    samplers = [sampler] * steps if isinstance(sampler, Sampler) else list(sampler)
    if steps < 1 or any(t <= s for t, s in zip(times, times[1:], strict=False)):
        raise ValueError(f"trace got times {list(times)}, expected at least two that decrease, such as [1.0, 0.5, 0.0]")
    if len(samplers) != steps:
        raise ValueError(f"trace got {len(samplers)} samplers for {steps} steps, expected one a step or one for all")
    schedule.remember(times)
    yield from walk(denoise, schedule, zip(samplers, times, times[1:], strict=False), x, noise)


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


__all__ = ["State", "sample", "start", "trace", "walk"]
