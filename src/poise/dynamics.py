r"""The dynamics of diffusion as plain functions."""

from collections.abc import Callable

import torch
from torch import Tensor

from poise.schedules import Schedule
from poise.typing import Denoiser


def probability_flow(denoise: Denoiser, schedule: Schedule) -> Callable[[Tensor, float], Tensor]:
    r"""The ODE whose solutions have the marginals of the diffusion (Song et al. 2021, arXiv 2011.13456, section 4.3).

    $$ \frac{dx}{dt} = \alpha'\, x_0 + \sigma'\,\frac{x - \alpha x_0}{\sigma}
                     = \frac{\sigma'}{\sigma}\, x + \Big(\alpha' - \frac{\sigma'\alpha}{\sigma}\Big)\, x_0(x, t). $$

    Returns:
        The velocity `(x, t) -> dx/dt`, of the shape of `x`.
    """

    def velocity(x: Tensor, t: float) -> Tensor:
        level = schedule.at(t)
        rate = level.sigma_rate / level.sigma
        return torch.add(rate * x, denoise(x, t), alpha=level.alpha_rate - rate * level.alpha)

    return velocity


__all__ = ["probability_flow"]
