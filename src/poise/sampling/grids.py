"""Time grids: which levels a sampler visits. A grid is a frozen dataclass that maps a number of steps to times."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from poise.schedules import Schedule


@dataclass(frozen=True)
class Grid(ABC):
    """A rule `(schedule, steps) -> times`, decreasing from 1 to 0, computed in float64."""

    @abstractmethod
    def interior(self, schedule: Schedule, steps: int) -> list[float]:
        """The `steps - 1` times between 1 and 0."""

    def times(self, schedule: Schedule, steps: int) -> list[float]:
        """The `steps + 1` times.

        Raises:
            ValueError: Fewer than one step.
        """
        if steps < 1:
            raise ValueError(f"{type(self).__name__} got {steps} steps, expected at least 1")
        return [1.0, *self.interior(schedule, steps), 0.0]


@dataclass(frozen=True)
class UniformTime(Grid):
    r"""$t_i = 1 - i / N$."""

    def interior(self, schedule: Schedule, steps: int) -> list[float]:
        """Equal strides of t."""
        return [1 - i / steps for i in range(1, steps)]


@dataclass(frozen=True)
class UniformLogSNR(Grid):
    r"""$\lambda(t_i) = \lambda(1) + \frac{i}{N}\,(\lambda(0) - \lambda(1))$ (Lu et al. 2022, arXiv 2206.00927)."""

    def interior(self, schedule: Schedule, steps: int) -> list[float]:
        """Equal strides of the log signal-to-noise ratio."""
        low, high = schedule.at(1.0).log_snr, schedule.at(0.0).log_snr
        levels = torch.linspace(low, high, steps + 1, dtype=torch.float64)[1:-1]
        return schedule.time(levels).tolist()


@dataclass(frozen=True)
class Trailing(Grid):
    """Uniform in t, rounded to the levels of a discrete chain (Lin et al. 2023, arXiv 2305.08891).

    For a network that knows integer time steps only; it visits the published indices `round(trained * t) - 1`.

    Attributes:
        trained: Steps of the chain that the network was trained on.
    """

    trained: int = 100

    def interior(self, schedule: Schedule, steps: int) -> list[float]:
        """Equal strides, rounded.

        Raises:
            ValueError: More steps than trained levels.
        """
        if steps > self.trained:
            raise ValueError(f"Trailing got {steps} steps, expected at most the {self.trained} trained levels")
        return [round(self.trained * (1 - i / steps)) / self.trained for i in range(1, steps)]


__all__ = ["Grid", "Trailing", "UniformLogSNR", "UniformTime"]
