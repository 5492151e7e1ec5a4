r"""What a network predicts: one row of a two by two linear system.

$$ \begin{pmatrix} x_t \\ y \end{pmatrix} =
   \begin{pmatrix} \alpha & \sigma \\ a & b \end{pmatrix}
   \begin{pmatrix} x_0 \\ \epsilon \end{pmatrix}. $$

A prediction names its row `(a, b)`; the target of training and the inversion to `x0` are written once, here. To add
one, write a frozen dataclass with `row`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from poise.schedules import Schedule
from poise.tensors import like


@dataclass(frozen=True)
class Prediction(ABC):
    """The row `(a, b)` of `y = a x0 + b eps`."""

    @abstractmethod
    def row(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients `(a, b)` of `x0` and `eps` at times `t`, each of the shape of `t`."""

    def target(self, schedule: Schedule, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the network should output: `a x0 + b eps`, for samples `(B, ...)` and times `(B,)`."""
        a, b = (like(c, x0) for c in self.row(schedule, t))
        return a * x0 + b * eps

    def inverse(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        r"""Coefficients of $x_0 = c_x x_t + c_y y$: $\quad (c_x, c_y) = (b, -\sigma) / (\alpha b - \sigma a)$."""
        a, b = self.row(schedule, t)
        determinant = schedule.alpha(t) * b - schedule.sigma(t) * a
        return b / determinant, -schedule.sigma(t) / determinant

    def clean(self, schedule: Schedule, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        """The `x0` that the output `y` at `x_t = x` stands for."""
        c_x, c_y = (like(c, x) for c in self.inverse(schedule, t))
        return c_x * x + c_y * y


@dataclass(frozen=True)
class Epsilon(Prediction):
    """The noise, `y = eps` (Ho et al. 2020, arXiv 2006.11239)."""

    def row(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        """`(0, 1)`."""
        return torch.zeros_like(t), torch.ones_like(t)


@dataclass(frozen=True)
class Clean(Prediction):
    """The clean sample, `y = x0`."""

    def row(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        """`(1, 0)`."""
        return torch.ones_like(t), torch.zeros_like(t)


@dataclass(frozen=True)
class Velocity(Prediction):
    r"""$y = (\alpha\,\epsilon - \sigma\, x_0) / \sqrt{\alpha^2 + \sigma^2}$ (Salimans, Ho 2022, arXiv 2202.00512)."""

    def row(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        r"""$(-\sigma, \alpha) / \sqrt{\alpha^2 + \sigma^2}$."""
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        norm = torch.hypot(alpha, sigma)
        return -sigma / norm, alpha / norm


@dataclass(frozen=True)
class Flow(Prediction):
    r"""The flow's velocity, $y = \alpha'(t)\, x_0 + \sigma'(t)\,\epsilon$ (Lipman et al. 2022, arXiv 2210.02747)."""

    def row(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        r"""$(\alpha', \sigma')$."""
        return schedule.rates(t)


@dataclass(frozen=True)
class Score(Prediction):
    r"""The score, $y = \nabla_{x_t} \log p(x_t | x_0) = -\epsilon / \sigma$ (Song et al. 2021, arXiv 2011.13456)."""

    def row(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        r"""$(0, -1/\sigma)$."""
        return torch.zeros_like(t), -1 / schedule.sigma(t)


__all__ = ["Clean", "Epsilon", "Flow", "Prediction", "Score", "Velocity"]
