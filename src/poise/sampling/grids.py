r"""Time grids: which levels a sampler visits. A grid is a frozen dataclass that maps a number of steps to times.

Most are uniform in some coordinate $c(t)$: $c(t_i) = c(t_0) + \frac{i}{N} (c(0) - c(t_0))$. To add one, write the
coordinate and its inverse.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from poise.schedules import Schedule


class Grid(ABC):
    """A rule `(schedule, steps) -> times`, decreasing to 0, computed in float64."""

    @abstractmethod
    def interior(self, schedule: Schedule, steps: int, begin: float) -> list[float]:
        """The `steps - 1` times between `begin` and 0."""

    def times(self, schedule: Schedule, steps: int, begin: float = 1.0) -> list[float]:
        """The `steps + 1` times from `begin` to 0.

        Args:
            schedule: Noise schedule.
            steps: Number of steps.
            begin: First time: 1 is noise; less for a warm start from a sample that is noisy in part.

        Raises:
            ValueError: Fewer than one step, or a first time outside (0, 1].
        """
        if steps < 1 or not 0 < begin <= 1:
            raise ValueError(
                f"{type(self).__name__} got {steps} steps from t = {begin}, expected at least 1 from a time in (0, 1]"
            )
        return [begin, *self.interior(schedule, steps, begin), 0.0]


class _Uniform(Grid):
    """Uniform in a coordinate of time."""

    @abstractmethod
    def coordinate(self, schedule: Schedule, t: Tensor) -> Tensor:
        """c(t), strictly monotone."""

    @abstractmethod
    def time(self, schedule: Schedule, c: Tensor) -> Tensor:
        """Its inverse."""

    def interior(self, schedule: Schedule, steps: int, begin: float) -> list[float]:
        """Equal strides of the coordinate."""
        first, last = self.coordinate(schedule, torch.tensor([begin, 0.0], dtype=torch.float64)).tolist()
        return self.time(schedule, first + torch.arange(1, steps).double() / steps * (last - first)).tolist()


@dataclass(frozen=True)
class UniformTime(_Uniform):
    r"""$c = t$."""

    def coordinate(self, schedule: Schedule, t: Tensor) -> Tensor:
        """The time itself."""
        return t

    def time(self, schedule: Schedule, c: Tensor) -> Tensor:
        """The time itself."""
        return c


@dataclass(frozen=True)
class UniformLogSNR(_Uniform):
    r"""$c = \lambda(t)$, the log signal-to-noise ratio (Lu et al. 2022, arXiv 2206.00927)."""

    def coordinate(self, schedule: Schedule, t: Tensor) -> Tensor:
        r"""$\lambda(t)$."""
        return schedule.log_snr(t)

    def time(self, schedule: Schedule, c: Tensor) -> Tensor:
        r"""$t(\lambda)$."""
        return schedule.time(c)


@dataclass(frozen=True)
class KarrasGrid(_Uniform):
    r"""$c = (\sigma/\alpha)^{1/\rho}$ (Karras et al. 2022, arXiv 2206.00364, equation 5).

    Attributes:
        rho: Larger values put more steps near the data.

    Raises:
        ValueError: `rho` not above zero.
    """

    rho: float = 7.0

    def __post_init__(self) -> None:
        if not self.rho > 0:
            raise ValueError(f"KarrasGrid got rho={self.rho}, expected a value above zero, such as 7")

    def coordinate(self, schedule: Schedule, t: Tensor) -> Tensor:
        r"""$e^{-\lambda/\rho}$."""
        return torch.exp(-schedule.log_snr(t) / self.rho)

    def time(self, schedule: Schedule, c: Tensor) -> Tensor:
        r"""$t(-\rho \log c)$."""
        return schedule.time(-self.rho * c.log())


@dataclass(frozen=True)
class Quadratic(_Uniform):
    r"""$c = \sqrt t$, more steps near the data (Song et al. 2021, arXiv 2010.02502, appendix D.2)."""

    def coordinate(self, schedule: Schedule, t: Tensor) -> Tensor:
        r"""$\sqrt t$."""
        return t.sqrt()

    def time(self, schedule: Schedule, c: Tensor) -> Tensor:
        r"""$c^2$."""
        return c.square()


@dataclass(frozen=True)
class Trailing(Grid):
    """Uniform in t, rounded to the levels of a discrete chain (Lin et al. 2023, arXiv 2305.08891).

    For a network that knows integer time steps only; it visits the published indices `round(trained * t) - 1`.

    Attributes:
        trained: Steps of the chain that the network was trained on.
        first: 0 divides the way to t = 0 into equal strides; 1 that to the first level of the chain, from which the
            last step goes to t = 0. The spacings "linspace" and, from a time below 1, "leading" of diffusers are so.
    """

    trained: int = 100
    first: int = 0

    def interior(self, schedule: Schedule, steps: int, begin: float) -> list[float]:
        """Equal strides, rounded.

        Raises:
            ValueError: More steps than trained levels.
        """
        if steps > (level := round(self.trained * begin, 6)):
            raise ValueError(
                f"Trailing got {steps} steps, expected at most the {self.trained} trained levels, "
                f"of which {int(self.trained * begin)} lie below t = {begin}"
            )
        return [round(level - i * (level - self.first) / (steps - self.first)) / self.trained for i in range(1, steps)]


@dataclass(frozen=True)
class Listed(Grid):
    """Times that are written down, one list a number of steps, such as `optimised` finds.

    Attributes:
        grids: Lists of times from 1 to 0.

    Raises:
        ValueError: A list that does not fall from 1 to 0.
    """

    grids: tuple[tuple[float, ...], ...] = ((1.0, 0.0),)

    def __post_init__(self) -> None:
        for times in self.grids:
            falls = all(t > s for t, s in zip(times, times[1:], strict=False))
            if len(times) < 2 or not falls or (times[0], times[-1]) != (1.0, 0.0):
                raise ValueError(f"Listed got {times}, expected times that fall from 1.0 to 0.0")

    def interior(self, schedule: Schedule, steps: int, begin: float) -> list[float]:
        """The list of that length.

        Raises:
            ValueError: No such list, or a first time other than 1.
        """
        known = {len(times) - 1: list(times[1:-1]) for times in self.grids}
        if steps not in known or begin != 1:
            raise ValueError(
                f"Listed got {steps} steps from t = {begin}, expected 1.0 and one of {sorted(known)} steps: "
                "see `optimised`"
            )
        return known[steps]


__all__ = ["Grid", "KarrasGrid", "Listed", "Quadratic", "Trailing", "UniformLogSNR", "UniformTime"]
