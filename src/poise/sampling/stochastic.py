r"""Samplers of the reverse SDE, and ways to add noise around any other sampler.

$$ dx = \Big[f x - \frac{1 + \eta^2}{2}\, g^2\, \nabla \log p_t(x)\Big] dt + \eta\, g\, d\bar w, \qquad
   \nabla \log p_t(x) = \frac{\alpha x_0 - x}{\sigma^2}, $$

has the marginals of the diffusion for every eta (Song et al. 2021, arXiv 2011.13456). `DDIM(eta=1)`, `DDPM` and
`DPMSolverPP(eta=1)` sample it too.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from poise.dynamics import diffuse, reverse_sde
from poise.sampling.exponential import DPMSolverPP
from poise.sampling.runge_kutta import Heun
from poise.sampling.sampler import Sampler
from poise.schedules import Schedule
from poise.typing import Denoiser, Noise

_MOST_CHURN = math.sqrt(2) - 1  # Karras et al.: never more new noise than there is
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)


@dataclass(frozen=True)
class EulerMaruyama(Sampler):
    r"""Euler-Maruyama, $x_s = x_t + (s - t)\,[\dots] + \eta\, g_t \sqrt{t - s}\; z$.

    Attributes:
        eta: Share of the noise: 0 is Euler's method on the ODE, 1 the reverse SDE.

    Raises:
        ValueError: A negative `eta`.
    """

    eta: float = 1.0
    order = 1
    evaluations = 1

    def __post_init__(self) -> None:
        if not self.eta >= 0:
            raise ValueError(f"EulerMaruyama got eta={self.eta}, expected 0 (the ODE) or more, such as 1 (the SDE)")

    def step(
        self, denoise: Denoiser, schedule: Schedule, x: Tensor, t: float, s: float, noise: Noise, memory: Any = None
    ) -> tuple[Tensor, Any]:
        """One step with drift and diffusion of time t."""
        drift, diffusion = reverse_sde(denoise, schedule, self.eta)
        moved = torch.add(x, drift(x, t), alpha=s - t)
        std = diffusion(t) * math.sqrt(t - s) if self.eta else 0.0
        return (moved.add_(noise(x, t, s), alpha=std) if std else moved), None


@lru_cache(4096)
def _score_weight(schedule: Schedule, t: float, s: float) -> float:
    r"""$\alpha_s \int_s^t \frac{g^2}{\alpha} du = \alpha_s \int \alpha\, e^w dw$, $w = \log(1 + \sigma^2/\alpha^2)$.

    By Gauss-Legendre quadrature; variance preserving schedules give $2 (\alpha_s / \alpha_t - 1)$ to rounding.
    """
    low, high = (math.log1p((level.sigma / level.alpha) ** 2) for level in (schedule.at(s), schedule.at(t)))
    w = torch.from_numpy(low + (high - low) * (_NODES + 1) / 2)
    alpha = schedule.alpha(schedule.time(-torch.expm1(w).log() / 2))
    return schedule.at(s).alpha * (high - low) / 2 * (torch.from_numpy(_WEIGHTS) * alpha * w.exp()).sum().item()


@dataclass(frozen=True)
class ExponentialSDE(Sampler):
    r"""The exponential integrator of the reverse SDE with a constant score (Zhang, Chen 2022, arXiv 2204.13902).

    $$ x_s = \frac{\alpha_s}{\alpha_t} x_t + \alpha_s \int_s^t \frac{g_u^2}{\alpha_u} du\; \nabla \log p_t(x_t)
             + \alpha_s \sqrt{e^{-2\lambda_t} - e^{-2\lambda_s}}\; z. $$

    `DPMSolverPP(order=1, eta=1)` is the same with $x_0$ held constant.
    """

    order = 1
    evaluations = 1

    def step(
        self, denoise: Denoiser, schedule: Schedule, x: Tensor, t: float, s: float, noise: Noise, memory: Any = None
    ) -> tuple[Tensor, Any]:
        """One step of the formula above."""
        here, there = schedule.at(t), schedule.at(s)
        ratio, weight = there.alpha / here.alpha, _score_weight(schedule, t, s) / here.sigma**2
        std = ratio * here.sigma * math.sqrt(-math.expm1(2 * (here.log_snr - there.log_snr)))
        x = torch.add((ratio - weight) * x, denoise(x, t), alpha=weight * here.alpha)
        return x.add_(noise(x, t, s), alpha=std), None


@dataclass(frozen=True)
class Churn(Sampler):
    r"""EDM's stochastic sampler: add noise, then take a longer deterministic step (Karras et al. 2022, 2206.00364).

    $$ \frac{\hat\sigma}{\hat\alpha} = (1 + \gamma) \frac{\sigma_t}{\alpha_t}, \qquad
       \gamma = \min(c\, h,\, \sqrt 2 - 1), \qquad h = \lambda_s - \lambda_t, $$

    while $\sigma_t/\alpha_t$ lies in the given range and noise is left to add. The paper's $S_{churn} / N$ is $c\,h$
    here, in proportion to the stride, so that a finer grid converges to an SDE.

    Attributes:
        sampler: Deterministic sampler of the steps, without a memory: past values would lie on another path.
        churn: c, new noise for a unit of log-SNR.
        low: Least $\sigma/\alpha$ with new noise, $S_{tmin}$.
        high: Largest, $S_{tmax}$.

    Raises:
        ValueError: A negative `churn`, or a multistep sampler.
    """

    sampler: Sampler = Heun()
    churn: float = 1.0
    low: float = 0.0
    high: float = math.inf

    def __post_init__(self) -> None:
        if not self.churn >= 0:
            raise ValueError(f"Churn got churn={self.churn}, expected 0 (none) or more")
        for name in ("order", "evaluations", "extra"):
            object.__setattr__(self, name, getattr(self.sampler, name))
        endings = (tuple(replace(self, sampler=last) for last in ending) for ending in self.sampler.endings)
        object.__setattr__(self, "endings", tuple(endings))

    def step(
        self, denoise: Denoiser, schedule: Schedule, x: Tensor, t: float, s: float, noise: Noise, memory: Any = None
    ) -> tuple[Tensor, Any]:
        """Noise up, then one step of the sampler."""
        here, there = schedule.at(t), schedule.at(s)
        gamma = min(self.churn * (there.log_snr - here.log_snr), _MOST_CHURN)
        up = here.log_snr - math.log1p(gamma)
        if gamma and self.low <= here.sigma / here.alpha <= self.high and up > schedule.at(1.0).log_snr:
            noisier = schedule.at_log_snr(up).t
            x, t = diffuse(schedule, x, noisier, noise, s=t), noisier
        x, memory = self.sampler.step(denoise, schedule, x, t, s, noise)
        if memory is not None:
            raise ValueError(f"Churn got {self.sampler}, expected a sampler that remembers nothing, such as Heun()")
        return x, None


@dataclass(frozen=True)
class PredictorCorrector(Sampler):
    r"""Langevin steps after every step of a predictor (Song et al. 2021, arXiv 2011.13456, algorithms 4 and 5).

    $$ x \leftarrow x + \varepsilon\, \nabla \log p_s(x) + \sqrt{2 \varepsilon}\; z, \qquad
       \varepsilon = 2\, (r\, \sigma_s)^2. $$

    This is the paper's rule $\varepsilon = 2\,(r\, \|z\| / \|\nabla \log p\|)^2$ with the norms by their expectation,
    $\sqrt D$ and $\sqrt D / \sigma_s$, so that a sample depends neither on its batch nor on a norm near zero. A
    correction is a step of Euler-Maruyama, whose error, a share of about $r^2$ of the noise, no finer grid removes.

    Attributes:
        predictor: Sampler of the steps.
        corrections: Langevin steps after each.
        snr: r, the signal-to-noise ratio of a correction.

    Raises:
        ValueError: Fewer than one correction, or an `snr` that is not above zero.
    """

    predictor: Sampler = DPMSolverPP()
    corrections: int = 1
    snr: float = 0.16

    def __post_init__(self) -> None:
        if self.corrections < 1 or not self.snr > 0:
            raise ValueError(
                f"PredictorCorrector got corrections={self.corrections} and snr={self.snr}, expected at least one "
                "correction and an snr above zero, such as 0.16"
            )
        whole = self.predictor.evaluations + self.corrections
        object.__setattr__(self, "order", self.predictor.order)
        object.__setattr__(self, "evaluations", whole)
        object.__setattr__(self, "endings", ((), *(self.predictor.budget(n) for n in range(1, whole))))

    def step(
        self, denoise: Denoiser, schedule: Schedule, x: Tensor, t: float, s: float, noise: Noise, memory: Any = None
    ) -> tuple[Tensor, Any]:
        """One step of the predictor, then the corrections at its end."""
        x, memory = self.predictor.step(denoise, schedule, x, t, s, noise, memory)
        level, share = schedule.at(s), 2 * self.snr**2
        for _ in range(self.corrections):
            x = torch.add((1 - share) * x, denoise(x, s), alpha=share * level.alpha)
            x = x.add_(noise(x, s, s), alpha=math.sqrt(2 * share) * level.sigma)
        return x, memory


__all__ = ["Churn", "EulerMaruyama", "ExponentialSDE", "PredictorCorrector"]
