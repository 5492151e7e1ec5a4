r"""Explicit Runge-Kutta methods on the probability-flow ODE in time (Song et al. 2021, arXiv 2011.13456).

$$ k_i = v\Big(x_t + h \sum_{j < i} a_{ij} k_j,\; t + c_i h\Big), \qquad
   x_s = x_t + h \sum_i b_i k_i, \qquad h = s - t, \qquad v = \frac{dx}{dt}. $$

A method is its tableau: to add one, write its coefficients down.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from poise.dynamics import Drift, probability_flow
from poise.sampling.sampler import Sampler
from poise.schedules import Schedule
from poise.typing import Denoiser, Noise


class Tableau(NamedTuple):
    """Butcher's tableau.

    Attributes:
        c: Times of the stages, as shares of the stride; the first is 0.
        a: Weights of the earlier slopes, a row a stage after the first.
        b: Weights of the result.
        error: Weights of the result less those of an embedded method of lower order, or none.
    """

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    error: tuple[float, ...] = ()


def slopes(tableau: Tableau, velocity: Drift, x: Tensor, t: float, s: float, first: Tensor) -> list[Tensor]:
    """All slopes of a step, from the first one."""
    found = [first]
    for c, row in zip(tableau.c[1:], tableau.a, strict=True):
        time = s if c == 1 else t + c * (s - t)
        found.append(velocity(moved(x, s - t, row, found), time))
    return found


def moved(x: Tensor, h: float, weights: Sequence[float], found: Sequence[Tensor]) -> Tensor:
    r"""$x + h \sum_i w_i k_i$."""
    x = torch.add(x, found[0], alpha=h * weights[0])
    for weight, slope in zip(weights[1:], found[1:], strict=True):
        if weight:
            x = x.add_(slope, alpha=h * weight)
    return x


class RungeKutta(Sampler):
    """A method with a tableau, for any velocity; as a sampler, on the probability-flow ODE.

    Attributes:
        tableau: The method's coefficients.
    """

    tableau: Tableau

    @abstractmethod
    def move(self, velocity: Drift, x: Tensor, t: float, s: float) -> Tensor:
        """From time t to time s, in either direction, along `(x, t) -> dx/dt`."""

    def step(
        self, denoise: Denoiser, schedule: Schedule, x: Tensor, t: float, s: float, noise: Noise, memory: Any = None
    ) -> tuple[Tensor, Any]:
        """One step along the probability flow."""
        return self.move(probability_flow(denoise, schedule), x, t, s), None


class _Fixed(RungeKutta):
    def move(self, velocity: Drift, x: Tensor, t: float, s: float) -> Tensor:
        """One step of the formula above."""
        return moved(x, s - t, self.tableau.b, slopes(self.tableau, velocity, x, t, s, velocity(x, t)))


@dataclass(frozen=True)
class Euler(_Fixed):
    r"""Euler's method, $x_s = x_t + (s - t)\, v(x_t, t)$; on the `Rectified` schedule the same as DDIM."""

    order = 1
    evaluations = 1
    tableau = Tableau((0.0,), (), (1.0,))


@dataclass(frozen=True)
class Midpoint(_Fixed):
    r"""The midpoint rule, $x_s = x_t + (s - t)\, v\big(x_t + \frac{s - t}{2} v(x_t, t),\, \frac{t + s}{2}\big)$.

    An odd evaluation of a budget is spent on a last step of Euler's.
    """

    order = 2
    evaluations = 2
    endings = ((), (Euler(),))
    tableau = Tableau((0.0, 0.5), ((0.5,),), (0.0, 1.0))


@dataclass(frozen=True)
class Heun(_Fixed):
    r"""Heun's method, the trapezoidal rule with an Euler guess (Karras et al. 2022, arXiv 2206.00364, algorithm 1).

    $$ \tilde x = x_t + (s - t)\, v(x_t, t), \qquad
       x_s = x_t + \frac{s - t}{2}\, \big(v(x_t, t) + v(\tilde x, s)\big). $$

    A budget ends with a step of `Midpoint`, or for its odd evaluation of Euler's: at the end of the last step sigma is
    zero or small, and the velocity of a learned denoiser is wrong by its error over sigma.
    """

    order = 2
    evaluations = 2
    endings = ((Midpoint(),), (Euler(),))
    tableau = Tableau((0.0, 1.0), ((1.0,),), (0.5, 0.5))


@dataclass(frozen=True)
class RK4(_Fixed):
    r"""The classical method of order four, $x_s = x_t + \frac{s - t}{6} (k_1 + 2 k_2 + 2 k_3 + k_4)$.

    A budget ends with steps of `Midpoint` and Euler's, for the reason that `Heun` has.
    """

    order = 4
    evaluations = 4
    endings = ((Midpoint(), Midpoint()), (Euler(),), (Midpoint(),), (Midpoint(), Euler()))
    tableau = Tableau((0.0, 0.5, 0.5, 1.0), ((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))


__all__ = ["RK4", "Euler", "Heun", "Midpoint", "RungeKutta", "Tableau", "moved", "slopes"]
