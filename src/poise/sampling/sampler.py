"""The abstract sampler: one pure step from time t to an earlier time s."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from poise.schedules import Schedule
from poise.typing import Denoiser, Noise


class Sampler(ABC):
    """A rule that takes `x_t` to `x_s`, `s < t`; concrete ones are frozen dataclasses.

    Attributes:
        order: Order of convergence on the probability-flow ODE; `poise.testing.check_sampler` measures it.
        evaluations: Calls of the denoiser a step, counted by the same check; 0 where a tolerance decides.
        extra: Calls beyond those of the steps, once on the way from t = 1 to t = 0.
        bound: What it clamps predictions to itself, as it needs them unclamped too; a policy then hands them on so.
        endings: The last steps of a budget, by its remainder: `endings[r]` costs r evaluations, or r and one step.
    """

    order: int
    evaluations: int
    extra: int = 0
    bound: float | None = None
    endings: "tuple[tuple[Sampler, ...], ...]" = ((),)

    @abstractmethod
    def step(
        self, denoise: Denoiser, schedule: Schedule, x: Tensor, t: float, s: float, noise: Noise, memory: Any = None
    ) -> tuple[Tensor, Any]:
        """One step; what a multistep method remembers goes out with the result and comes back as `memory`."""

    def budget(self, evaluations: int) -> "tuple[Sampler, ...]":
        """The steps that spend exactly so many evaluations; a single one where a tolerance decides.

        Raises:
            ValueError: Evaluations that cannot be spent.
        """
        if not self.evaluations:
            return (self,)
        whole, rest = divmod(evaluations - self.extra, self.evaluations)
        ending = self.endings[rest] if rest < len(self.endings) else ()
        whole -= sum(m.evaluations for m in ending) // self.evaluations
        if rest >= len(self.endings) or whole < 0 or not whole + len(ending):
            raise ValueError(
                f"{type(self).__name__} got a budget of {evaluations} evaluations, expected {self.extra} and at least "
                f"one step of {self.evaluations}" + ("" if len(self.endings) > 1 else ", without a remainder")
            )
        return (self,) * whole + ending


__all__ = ["Sampler"]
