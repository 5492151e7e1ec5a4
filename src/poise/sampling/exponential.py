r"""Samplers that solve the linear part of the diffusion exactly and approximate the denoiser only.

With $\lambda = \log(\alpha/\sigma)$ the probability-flow ODE has the solution (Lu et al. 2022, arXiv 2211.01095)

$$ x_s = \frac{\sigma_s}{\sigma_t} x_t
       + \sigma_s \int_{\lambda_t}^{\lambda_s} e^{\lambda}\, x_0(x_\lambda, \lambda)\, d\lambda, $$

and the samplers differ in the polynomial in $\lambda$ that stands for $x_0$ under the integral.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from poise.sampling.sampler import Sampler
from poise.schedules import Schedule
from poise.typing import Denoiser, Noise


@dataclass(frozen=True)
class DDIM(Sampler):
    r"""DDIM and DDPM (Song et al. 2021, arXiv 2010.02502; Ho et al. 2020, arXiv 2006.11239).

    $$ x_s = \alpha_s x_0 + \sigma_s \sqrt{1 - \eta^2 \rho}\; \hat\epsilon + \sigma_s \eta \sqrt{\rho}\; z, \qquad
       \hat\epsilon = \frac{x_t - \alpha_t x_0}{\sigma_t}, \qquad \rho = 1 - e^{2(\lambda_t - \lambda_s)}. $$

    `eta = 0` is deterministic: the exponential integrator with a constant $x_0$. `eta = 1` is ancestral sampling with
    the variance of the posterior $q(x_s | x_t, x_0)$, that is $\sigma_s^2 \rho$.

    Attributes:
        eta: Share of fresh noise, in [0, 1].

    Raises:
        ValueError: `eta` outside [0, 1].
    """

    eta: float = 0.0
    order: ClassVar[int] = 1
    evaluations: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"DDIM got eta={self.eta}, expected a value from 0 (deterministic) to 1 (DDPM)")

    def step(
        self, denoise: Denoiser, schedule: Schedule, x: Tensor, t: float, s: float, noise: Noise, memory: Any = None
    ) -> tuple[Tensor, Any]:
        """One step of the formula above."""
        here, there = schedule.at(t), schedule.at(s)
        fresh = self.eta**2 * -math.expm1(2 * (here.log_snr - there.log_snr))
        keep = there.sigma * math.sqrt(1 - fresh) / here.sigma
        x = torch.add(keep * x, denoise(x, t), alpha=there.alpha - keep * here.alpha)
        return (torch.add(x, noise(x), alpha=there.sigma * math.sqrt(fresh)) if fresh else x), None


@dataclass(frozen=True)
class DPMSolverPP(Sampler):
    r"""DPM-Solver++(2M), multistep (Lu et al. 2022, arXiv 2211.01095, algorithm 2).

    $$ x_s = \frac{\sigma_s}{\sigma_t} x_t - \alpha_s\,(e^{-h} - 1)\, D, \qquad
       D = \Big(1 + \frac{1}{2r}\Big)\, x_0(x_t) - \frac{1}{2r}\, x_0(x_{prev}), $$

    with $h = \lambda_s - \lambda_t$ and $r = h_{prev} / h$; the first step, without a past, takes $D = x_0(x_t)$.
    """

    order: ClassVar[int] = 2
    evaluations: ClassVar[int] = 1

    def step(
        self, denoise: Denoiser, schedule: Schedule, x: Tensor, t: float, s: float, noise: Noise, memory: Any = None
    ) -> tuple[Tensor, Any]:
        """One step; the memory is the last prediction and the last stride of log-SNR."""
        here, there = schedule.at(t), schedule.at(s)
        x0, h = denoise(x, t), there.log_snr - here.log_snr
        gain = -there.alpha * math.expm1(-h)
        x = there.sigma / here.sigma * x
        if memory is None:
            return x.add_(x0, alpha=gain), (x0, h)
        previous, h_previous = memory
        half = h / (2 * h_previous)
        return x.add_(x0, alpha=gain * (1 + half)).add_(previous, alpha=-gain * half), (x0, h)


__all__ = ["DDIM", "DPMSolverPP"]
