"""UniPC: a predictor and a corrector that share their evaluations."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from poise.sampling.polynomials import Values, advance, data_linear, exact_weights, midpoint_weights, usable
from poise.sampling.sampler import Sampler
from poise.schedules import Level, Schedule
from poise.typing import Denoiser, Noise


class _Memory(NamedTuple):
    """The corrected sample at the last level, and values of x0 with their levels, newest first."""

    x: Tensor
    past: Values


@dataclass(frozen=True)
class UniPC(Sampler):
    r"""UniPC-p in the data with $B(h) = e^h - 1$, multistep (Zhao et al. 2023, arXiv 2302.04867).

    The predictor extrapolates through the last p values of $x_0$. The value at the predicted point then joins the
    polynomial, which corrects the step, at no further evaluation; only the last step stays as predicted. Where the
    papers' weights are 1/2, for two nodes, so are these; all others are exact.

    Attributes:
        order: p, values of the predictor: 1, 2 or 3. With the corrector the error is of order p + 1.

    Raises:
        ValueError: An order out of range.
    """

    order: int = 2
    evaluations = 1

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ValueError(f"UniPC got order={self.order}, expected 1, 2 or 3")

    def step(
        self, denoise: Denoiser, schedule: Schedule, x: Tensor, t: float, s: float, noise: Noise, memory: Any = None
    ) -> tuple[Tensor, Any]:
        """Correct the last step with the new value, then predict the next."""
        here, there, x0 = schedule.at(t), schedule.at(s), denoise(x, t)
        past = ((x0, here), *(memory.past if memory else ()))
        if memory:
            x = _through(memory.x, memory.past[0][1], here, past[: self.order + 1])
        if math.isinf(there.log_snr):
            return there.alpha * x0, None
        return _through(x, here, there, usable(past, self.order, there)), _Memory(x, past[: self.order])


def _through(x: Tensor, here: Level, there: Level, values: Values) -> Tensor:
    """The step from `here` to `there` with the polynomial through the values."""
    linear, h = data_linear(here, there), there.log_snr - here.log_snr
    nodes = tuple((level.log_snr - here.log_snr) / h for _, level in values)
    if len(nodes) != 2:
        weights = exact_weights(linear.k, nodes)
    elif nodes[0] == 0:
        weights = midpoint_weights(linear.k, nodes[1])
    else:
        weights = midpoint_weights(linear.k, nodes[0])[::-1]
    return advance(linear, x, weights, [value for value, _ in values])


__all__ = ["UniPC"]
