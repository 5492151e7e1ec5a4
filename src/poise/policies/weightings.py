r"""Weightings: how much an error counts at each level of noise.

A weighting says what the squared error of $x_0$ counts, w. At a fixed $x_t$ an error of the network's output y = a x0 +
b eps is in proportion to it,

$$ y - y^* = \Big(a - b\, \frac{\alpha}{\sigma}\Big)\,(\hat x_0 - x_0), $$

so the loss of any prediction is multiplied by $w / (a - b\,\alpha/\sigma)^2$, and its gradient with respect to
$\hat x_0$ does not depend on what the network predicts. To add one, write `clean`.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from poise.predictions import Prediction
from poise.schedules import Schedule


@dataclass(frozen=True)
class Weighting(ABC):
    """A factor of the squared error of the network's output at every time."""

    @abstractmethod
    def factor(self, prediction: Prediction, schedule: Schedule, t: Tensor) -> Tensor:
        """The factor at times `t`, of their shape."""


@dataclass(frozen=True)
class Unit(Weighting):
    """The squared error of the output as it is; what it counts for x0 then depends on the prediction."""

    def factor(self, prediction: Prediction, schedule: Schedule, t: Tensor) -> Tensor:  # noqa: ARG002 (abstract)
        """One."""
        return torch.ones_like(t)


@dataclass(frozen=True)
class _OfClean(Weighting):
    """A weight of the squared error of x0."""

    @abstractmethod
    def clean(self, schedule: Schedule, t: Tensor) -> Tensor:
        """The weight w at times `t`, of their shape."""

    def factor(self, prediction: Prediction, schedule: Schedule, t: Tensor) -> Tensor:
        r"""$w / (a - b\,\alpha/\sigma)^2 = w\, c_y^2$, with $c_y$ of `Prediction.inverse`."""
        return self.clean(schedule, t) * prediction.inverse(schedule, t)[1].square()


@dataclass(frozen=True)
class MinSNR(_OfClean):
    r"""$w = \min(\mathrm{SNR}, \gamma),\ \mathrm{SNR} = \alpha^2 / \sigma^2$ (Hang et al. 2023, arXiv 2303.09556).

    Attributes:
        gamma: Where the weight ends to grow towards the data.

    Raises:
        ValueError: A gamma that is not above zero.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        _positive(self, "gamma", self.gamma)

    def clean(self, schedule: Schedule, t: Tensor) -> Tensor:
        """The clamped signal-to-noise ratio."""
        return torch.exp(2 * schedule.log_snr(t)).clamp_max(self.gamma)


@dataclass(frozen=True)
class EDM(_OfClean):
    r"""$w = (\tilde\sigma^2 + \sigma_d^2) / (\tilde\sigma\, \sigma_d)^2,\ \tilde\sigma = \sigma / \alpha$.

    From Karras et al. 2022 (arXiv 2206.00364), where it makes the loss of the preconditioned network one at every level
    of noise; for data of unit deviation that network is one of `Velocity`, which has this weighting by itself.

    Attributes:
        sigma_data: Standard deviation of the data, in normalised units.

    Raises:
        ValueError: A deviation that is not above zero.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        _positive(self, "sigma_data", self.sigma_data)

    def clean(self, schedule: Schedule, t: Tensor) -> Tensor:
        r"""$\tilde\sigma^{-2} + \sigma_d^{-2}$."""
        return torch.exp(2 * schedule.log_snr(t)) + self.sigma_data**-2


@dataclass(frozen=True)
class LogitNormalWeight(_OfClean):
    r"""The logit-normal density as a weight of the loss of straight flows (Esser et al. 2024, arXiv 2403.03206).

    $$ w = \frac{\pi(\tau)}{\tau^2}, \qquad \tau = \frac{\sigma}{\alpha + \sigma}, \qquad
       \pi(\tau) = \frac{1}{s \sqrt{2\pi}}\, \frac{1}{\tau (1 - \tau)}
                   \exp\Big(-\frac{(\log\frac{\tau}{1 - \tau} - m)^2}{2 s^2}\Big). $$

    With times uniform on a straight line it has the expectation of the flow's loss with times from `LogitNormal`, and
    more variance: it is for other predictions and schedules, and for densities chosen apart.

    Attributes:
        mean: m; above zero stresses noise, below zero stresses data.
        std: s, spread of the logit.

    Raises:
        ValueError: A spread that is not above zero.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        _positive(self, "std", self.std)

    def clean(self, schedule: Schedule, t: Tensor) -> Tensor:
        r"""$\pi(\tau) / \tau^2$, with $\log(\tau / (1 - \tau)) = -\lambda$."""
        logit = -schedule.log_snr(t)
        log_normal = -(((logit - self.mean) / self.std) ** 2) / 2 - math.log(self.std * math.sqrt(2 * math.pi))
        return torch.exp(log_normal - 3 * nn.functional.logsigmoid(logit) - nn.functional.logsigmoid(-logit))


def _positive(weighting: Weighting, name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{type(weighting).__name__} got {name}={value}, expected a finite number above zero")


__all__ = ["EDM", "LogitNormalWeight", "MinSNR", "Unit", "Weighting"]
