"""The abstract sampler: one pure step from time t to an earlier time s."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from poise.schedules import Schedule
from poise.typing import Denoiser, Noise


@dataclass(frozen=True)
class Sampler(ABC):
    """A rule that takes `x_t` to `x_s`, `s < t`.

    Attributes:
        order: Global order of convergence on the probability-flow ODE; `poise.testing.check_sampler` measures it.
        evaluations: Calls of the denoiser a step; counted by the same check.
        leftover: Cheaper steps for the evaluations of a budget that do not fill a step, at most one of each.
    """

    order: ClassVar[int]
    evaluations: ClassVar[int]
    leftover: ClassVar["tuple[Sampler, ...]"] = ()

    @abstractmethod
    def step(
        self, denoise: Denoiser, schedule: Schedule, x: Tensor, t: float, s: float, noise: Noise, memory: Any = None
    ) -> tuple[Tensor, Any]:
        """One step; what a multistep method remembers goes out with the result and comes back as `memory`."""

    def budget(self, evaluations: int) -> "tuple[Sampler, ...]":
        """The steps that spend so many evaluations; what does not fill a step goes to `leftover`.

        Raises:
            ValueError: Not enough evaluations for one step.
        """
        whole, rest = divmod(evaluations, self.evaluations)
        steps = (self,) * whole + self.leftover[:rest]
        if evaluations < 1 or not steps:
            raise ValueError(f"{type(self).__name__} got a budget of {evaluations} evaluations, expected at least 1")
        return steps


__all__ = ["Sampler"]
