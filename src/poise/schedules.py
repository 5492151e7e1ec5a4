r"""Noise schedules: how much signal and how much noise a diffused sample holds at time t.

$$ x_t = \alpha(t)\, x_0 + \sigma(t)\, \epsilon, \qquad \epsilon \sim N(0, I), \qquad
   \lambda(t) = \log \frac{\alpha(t)}{\sigma(t)}. $$

`t = 0` is data and `t = 1` is noise. The log signal-to-noise ratio `lambda` (called `log_snr`) is finite and strictly
decreasing on the closed interval [0, 1], so that no sampler has to treat an end point apart.

To add a schedule, write a frozen dataclass with `alpha`, `sigma` and `time`; `poise.testing.check_schedule` tells
whether it is one.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

_CACHED_LEVELS = 4096


class Level(NamedTuple):
    """A schedule at one time, in Python floats (double precision).

    Attributes:
        t: Time in [0, 1].
        alpha: Factor of the data.
        sigma: Standard deviation of the noise.
        log_snr: `log(alpha / sigma)`.
        alpha_rate: `d alpha / dt`.
        sigma_rate: `d sigma / dt`.
    """

    t: float
    alpha: float
    sigma: float
    log_snr: float
    alpha_rate: float
    sigma_rate: float


@dataclass(frozen=True)
class Schedule(ABC):
    r"""The pair $\alpha(t), \sigma(t)$ and the inverse of $\lambda(t)$."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        r"""Factor of the data, $\alpha(t)$, for times of any shape in [0, 1]."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        r"""Standard deviation of the noise, $\sigma(t)$."""

    @abstractmethod
    def time(self, log_snr: Tensor) -> Tensor:
        r"""The time at which $\log(\alpha / \sigma)$ has the given value."""

    def log_snr(self, t: Tensor) -> Tensor:
        r"""$\lambda(t) = \log \alpha(t) - \log \sigma(t)$, half the logarithm of the signal-to-noise ratio."""
        return self.alpha(t).log() - self.sigma(t).log()

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        r"""$(\alpha'(t), \sigma'(t))$, exact, by forward-mode differentiation."""
        with torch.inference_mode(False):  # which knows no forward mode
            t = t.clone()
            tangent = torch.ones_like(t)
            return torch.func.jvp(self.alpha, (t,), (tangent,))[1], torch.func.jvp(self.sigma, (t,), (tangent,))[1]

    def at(self, t: float) -> Level:
        """The schedule at one time as floats, computed once in float64 and remembered."""
        level = self._levels.get(t)
        if level is None:
            if len(self._levels) >= _CACHED_LEVELS:
                self._levels.clear()
            level = self._levels[t] = self._level(t)
        return level

    @cached_property
    def _levels(self) -> dict[float, Level]:
        return {}

    def _level(self, t: float) -> Level:
        time = torch.tensor(t, dtype=torch.float64)
        values = (self.alpha(time), self.sigma(time), self.log_snr(time), *self.rates(time))
        return Level(t, *(value.item() for value in values))


@dataclass(frozen=True)
class VPLinear(Schedule):
    r"""Variance preserving, with a rate of noise linear in time (Song et al. 2021, arXiv 2011.13456).

    $$ \beta(u) = \beta_{min} + u\,(\beta_{max} - \beta_{min}), \qquad
       \alpha^2 = \exp\!\Big(-\int_0^u \beta\Big), \qquad \sigma^2 = 1 - \alpha^2, \qquad
       u = t_{min} + (1 - t_{min})\, t. $$

    Attributes:
        beta_min: Rate of noise at u = 0.
        beta_max: Rate of noise at u = 1.
        t_min: The paper's smallest time, which keeps the last noise level above zero.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3

    def _integral(self, t: Tensor) -> Tensor:
        u = self.t_min + (1 - self.t_min) * t
        return self.beta_min * u + (self.beta_max - self.beta_min) * u.square() / 2

    def alpha(self, t: Tensor) -> Tensor:
        r"""$\exp(-\frac12 \int_0^u \beta)$."""
        return torch.exp(-self._integral(t) / 2)

    def sigma(self, t: Tensor) -> Tensor:
        r"""$\sqrt{1 - \exp(-\int_0^u \beta)}$."""
        return torch.sqrt(-torch.expm1(-self._integral(t)))

    def time(self, log_snr: Tensor) -> Tensor:
        r"""Root of a quadratic: the integral of beta is $\log(1 + e^{-2\lambda})$."""
        integral, slope = torch.nn.functional.softplus(-2 * log_snr), self.beta_max - self.beta_min
        u = (torch.sqrt(self.beta_min**2 + 2 * slope * integral) - self.beta_min) / slope
        return (u - self.t_min) / (1 - self.t_min)


@dataclass(frozen=True)
class VPCosine(Schedule):
    r"""Variance preserving along a quarter circle (after Nichol and Dhariwal 2021, arXiv 2102.09672).

    $$ \alpha = \cos\theta, \qquad \sigma = \sin\theta, \qquad \theta = m + (\pi/2 - 2m)\, t. $$

    Attributes:
        margin: Angle m in radians kept from both ends, so that the signal-to-noise ratio stays finite.
    """

    margin: float = 1e-3

    def _angle(self, t: Tensor) -> Tensor:
        return self.margin + (math.pi / 2 - 2 * self.margin) * t

    def alpha(self, t: Tensor) -> Tensor:
        r"""$\cos\theta(t)$."""
        return torch.cos(self._angle(t))

    def sigma(self, t: Tensor) -> Tensor:
        r"""$\sin\theta(t)$."""
        return torch.sin(self._angle(t))

    def time(self, log_snr: Tensor) -> Tensor:
        r"""$\theta = \arctan e^{-\lambda}$, mapped back to t."""
        return (torch.atan(torch.exp(-log_snr)) - self.margin) / (math.pi / 2 - 2 * self.margin)


@dataclass(frozen=True)
class Rectified(Schedule):
    r"""Straight lines from data to noise: flow matching (Liu et al. 2022, arXiv 2209.03003; Lipman et al. 2210.02747).

    $$ \alpha = 1 - \sigma, \qquad \sigma = m + (1 - 2m)\, t. $$

    Attributes:
        margin: Share m of the line kept from both ends, so that the signal-to-noise ratio stays finite.
    """

    margin: float = 1e-3

    def alpha(self, t: Tensor) -> Tensor:
        r"""$1 - \sigma(t)$."""
        return 1 - self.sigma(t)

    def sigma(self, t: Tensor) -> Tensor:
        r"""$m + (1 - 2m)\, t$."""
        return self.margin + (1 - 2 * self.margin) * t

    def time(self, log_snr: Tensor) -> Tensor:
        r"""$\sigma = 1 / (1 + e^{\lambda})$, mapped back to t."""
        return (torch.sigmoid(-log_snr) - self.margin) / (1 - 2 * self.margin)


@dataclass(frozen=True, repr=False)
class Tabulated(Schedule):
    r"""The discrete chain of DDPM made continuous (Ho et al. 2020, arXiv 2006.11239).

    $$ \bar\alpha_n = \prod_{i \le n} (1 - \beta_i), \qquad
       \lambda\big(\tfrac{n}{N}\big) = \tfrac12 \log\frac{\bar\alpha_n}{1 - \bar\alpha_n}, \qquad n = 1, \dots, N, $$

    with $\lambda$ linear in between and $\alpha^2 + \sigma^2 = 1$. The published step index is `n - 1`; `t = 0` stands
    for the clean sample, with noise `sigma_min`. So a network trained on 100 or 1000 steps runs under every sampler.

    Attributes:
        betas: Variances of the N forward steps, each in (0, 1).
        sigma_min: Noise left at t = 0; smaller than that of the first step.

    Raises:
        ValueError: A beta outside (0, 1), or `sigma_min` not below the first noise level.
    """

    betas: tuple[float, ...]
    sigma_min: float = 1e-3

    def __post_init__(self) -> None:
        if not self.betas or not all(0 < beta < 1 for beta in self.betas):
            raise ValueError(f"Tabulated needs betas in (0, 1), got {self.betas!r}: see Tabulated.squared_cosine(100)")
        if not 0 < self.sigma_min < math.sqrt(self.betas[0]):
            raise ValueError(
                f"Tabulated got sigma_min={self.sigma_min}, expected a value between 0 and the first noise level "
                f"{math.sqrt(self.betas[0]):.3g}: choose a smaller one"
            )

    def __repr__(self) -> str:
        first, last = self.betas[0], self.betas[-1]
        return f"Tabulated({len(self.betas)} betas from {first:.3g} to {last:.3g}, sigma_min={self.sigma_min})"

    @classmethod
    def linear(cls, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> "Tabulated":
        """Betas that grow linearly (Ho et al. 2020, arXiv 2006.11239)."""
        return cls(tuple(torch.linspace(beta_start, beta_end, steps, dtype=torch.float64).tolist()))

    @classmethod
    def squared_cosine(cls, steps: int = 100, beta_max: float = 0.999) -> "Tabulated":
        r"""$\bar\alpha(u) = \cos^2\frac{\pi}{2}\frac{u + 0.008}{1.008}$ (Nichol, Dhariwal 2021, arXiv 2102.09672)."""
        u = torch.arange(steps + 1, dtype=torch.float64) / steps
        level = torch.cos((u + 0.008) / 1.008 * math.pi / 2).square()
        return cls(tuple((1 - level[1:] / level[:-1]).clamp(max=beta_max).tolist()))

    @cached_property
    def _knots(self) -> Tensor:
        level = torch.cumsum(torch.log1p(-torch.tensor(self.betas, dtype=torch.float64)), 0)  # log of alpha-bar
        clean = math.log1p(-(self.sigma_min**2))
        level = torch.cat([torch.tensor([clean], dtype=torch.float64), level])
        return (level - torch.log(-torch.expm1(level))) / 2

    def _interpolated(self, t: Tensor) -> Tensor:
        knots, position = self._knots.to(t), t * len(self.betas)
        left = position.detach().floor().clamp(0, len(self.betas) - 1).long()
        return knots[left] + (position - left) * (knots[left + 1] - knots[left])

    def alpha(self, t: Tensor) -> Tensor:
        r"""$\sqrt{1 / (1 + e^{-2\lambda})}$."""
        return torch.sigmoid(2 * self._interpolated(t)).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        r"""$\sqrt{1 / (1 + e^{2\lambda})}$."""
        return torch.sigmoid(-2 * self._interpolated(t)).sqrt()

    def time(self, log_snr: Tensor) -> Tensor:
        r"""Inverse of the interpolation."""
        knots = self._knots.to(log_snr)
        right = torch.searchsorted(-knots, -log_snr.detach()).clamp(1, len(self.betas))
        share = (knots[right - 1] - log_snr) / (knots[right - 1] - knots[right])
        return (right - 1 + share) / len(self.betas)


__all__ = ["Level", "Rectified", "Schedule", "Tabulated", "VPCosine", "VPLinear"]
