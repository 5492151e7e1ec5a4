r"""Explicit Runge-Kutta methods on the probability-flow ODE in time (Song et al. 2021, arXiv 2011.13456).

$$ \frac{dx}{dt} = \alpha'(t)\, x_0(x, t) + \sigma'(t)\, \frac{x - \alpha(t)\, x_0(x, t)}{\sigma(t)}. $$
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from poise.dynamics import probability_flow
from poise.sampling.sampler import Sampler
from poise.schedules import Schedule
from poise.typing import Denoiser, Noise


@dataclass(frozen=True)
class Euler(Sampler):
    r"""Euler's method, $x_s = x_t + (s - t)\, v(x_t, t)$; on the `Rectified` schedule the same as DDIM."""

    order: ClassVar[int] = 1
    evaluations: ClassVar[int] = 1

    def step(
        self, denoise: Denoiser, schedule: Schedule, x: Tensor, t: float, s: float, noise: Noise, memory: Any = None
    ) -> tuple[Tensor, Any]:
        """One step along the tangent."""
        return torch.add(x, probability_flow(denoise, schedule)(x, t), alpha=s - t), None


@dataclass(frozen=True)
class Heun(Sampler):
    r"""Heun's method, the trapezoidal rule with an Euler guess (Karras et al. 2022, arXiv 2206.00364, algorithm 1).

    $$ \tilde x = x_t + (s - t)\, v(x_t, t), \qquad
       x_s = x_t + \frac{s - t}{2}\, \big(v(x_t, t) + v(\tilde x, s)\big). $$

    An odd evaluation of a budget is spent on a last step of Euler's.
    """

    order: ClassVar[int] = 2
    evaluations: ClassVar[int] = 2
    leftover: ClassVar[tuple[Sampler, ...]] = (Euler(),)

    def step(
        self, denoise: Denoiser, schedule: Schedule, x: Tensor, t: float, s: float, noise: Noise, memory: Any = None
    ) -> tuple[Tensor, Any]:
        """One step with the mean of the slopes at both ends."""
        velocity, stride = probability_flow(denoise, schedule), s - t
        slope = velocity(x, t)
        guess_slope = velocity(torch.add(x, slope, alpha=stride), s)
        return torch.add(x, slope + guess_slope, alpha=stride / 2), None


__all__ = ["Euler", "Heun"]
