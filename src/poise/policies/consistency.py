r"""The sampler of distilled policies: multistep consistency sampling."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from poise.sampling import Sampler
from poise.schedules import Schedule
from poise.typing import Denoiser, Noise


@dataclass(frozen=True)
class Consistency(Sampler):
    r"""Jump to the end of the path, then back to a level with fresh noise (Song et al. 2023, 2303.01469, algorithm 1).

    $$ x_s = \alpha_s f(x_t, t) + \sigma_s z, \qquad x_0 = \alpha_0 f(x_t, t) \text{ at the last step,} $$

    where f predicts the end of the probability flow through $x_t$, as students of `poise.training.Distillation` do.
    With an exact f the law of every state is that of the diffusion, whatever the number of steps; with a denoiser,
    which predicts the mean of all ends, only `order` and the counts are those of a sampler, and plans lose variance.
    """

    order = 1
    evaluations = 1

    def step(
        self, denoise: Denoiser, schedule: Schedule, x: Tensor, t: float, s: float, noise: Noise, memory: Any = None
    ) -> tuple[Tensor, Any]:
        """One step of the formula above."""
        there = schedule.at(s)
        end = there.alpha * denoise(x, t)
        return (torch.add(end, noise(x, t, s), alpha=there.sigma) if s else end), None


__all__ = ["Consistency"]
