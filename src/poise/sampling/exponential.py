r"""Samplers that solve the linear part of the diffusion exactly; `poise.sampling.polynomials` has the formulas.

`DPMSolver` puts a polynomial through values of the noise, `DPMSolverPP` through values of the data. Those named
`...Single` take new values within every step, the others go through values of the steps before.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from poise.dynamics import posterior, transition
from poise.sampling.polynomials import (
    Linear,
    advance,
    data_linear,
    exact_weights,
    midpoint_weights,
    noise_linear,
    noise_of,
    usable,
)
from poise.sampling.sampler import Sampler
from poise.schedules import Level, Schedule
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
        bound: Clamp $x_0$ to plus or minus this where it stands in the first term, but not in $\hat\epsilon$, as
            diffusers does by default. With a denoiser that is `clipped` both are of the clamped one.

    Raises:
        ValueError: `eta` outside [0, 1].
    """

    eta: float = 0.0
    bound: float | None = None
    order = 1
    evaluations = 1

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"DDIM got eta={self.eta}, expected a value from 0 (deterministic) to 1 (DDPM)")

    def step(
        self, denoise: Denoiser, schedule: Schedule, x: Tensor, t: float, s: float, noise: Noise, memory: Any = None
    ) -> tuple[Tensor, Any]:
        """One step of the formula above."""
        here, there, x0 = schedule.at(t), schedule.at(s), denoise(x, t)
        fresh = self.eta**2 * -math.expm1(2 * (here.log_snr - there.log_snr))
        keep = there.sigma * math.sqrt(1 - fresh) / here.sigma
        x = (
            torch.add(keep * x, x0, alpha=there.alpha - keep * here.alpha)
            if self.bound is None
            else torch.add(keep * (x - here.alpha * x0), x0.clamp(-self.bound, self.bound), alpha=there.alpha)
        )
        return (torch.add(x, noise(x, t, s), alpha=there.sigma * math.sqrt(fresh)) if fresh else x), None


@dataclass(frozen=True)
class DDPM(Sampler):
    r"""Ancestral sampling with either variance of the paper, or one between (Ho et al. 2020, arXiv 2006.11239).

    $$ x_s = c_x x_t + c_0 x_0 + \tilde v^{1 - w}\, v^{w}\, z, $$

    with `(c_x, c_0, v~) = posterior(schedule, t, s)` and v the standard deviation of $q(x_t | x_s)$. The weight
    between them is that of a learned variance (Nichol, Dhariwal 2021, arXiv 2102.09672, equation 15).

    Attributes:
        upper: The weight w: 0 is the posterior variance, "fixed small", and 1 the variance of the step, "fixed large",
            which leaves noise in the sample at the last step too.

    Raises:
        ValueError: `upper` outside [0, 1].
    """

    upper: float = 0.0
    order = 1
    evaluations = 1

    def __post_init__(self) -> None:
        if not 0 <= self.upper <= 1:
            raise ValueError(f"DDPM got upper={self.upper}, expected a value from 0 (fixed small) to 1 (fixed large)")

    def step(
        self, denoise: Denoiser, schedule: Schedule, x: Tensor, t: float, s: float, noise: Noise, memory: Any = None
    ) -> tuple[Tensor, Any]:
        """One step of the formula above."""
        c_x, c_0, std = posterior(schedule, t, s)
        x = torch.add(c_x * x, denoise(x, t), alpha=c_0)
        # Between the standard deviations of the posterior and of the step.
        return x.add_(noise(x, t, s), alpha=std ** (1 - self.upper) * transition(schedule, s, t)[1] ** self.upper), None


@dataclass(frozen=True)
class _Exponential(Sampler):
    """What the single- and multistep methods share: an order, and the quantity of the polynomial."""

    order: int = 2

    @abstractmethod
    def _linear(self, here: Level, there: Level) -> Linear:
        """The exact part of a step."""

    @abstractmethod
    def _value(self, x: Tensor, x0: Tensor, here: Level) -> Tensor:
        """The quantity that the polynomial stands for."""

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ValueError(f"{type(self).__name__} got order={self.order}, expected 1, 2 or 3")


class _OfNoise(_Exponential):
    def _linear(self, here: Level, there: Level) -> Linear:
        return noise_linear(here, there)

    def _value(self, x: Tensor, x0: Tensor, here: Level) -> Tensor:
        return noise_of(x, x0, here)


class _OfData(_Exponential):
    def _value(self, x: Tensor, x0: Tensor, here: Level) -> Tensor:
        return x0


@dataclass(frozen=True)
class _Multistep(_Exponential):
    """Extrapolation through the last `order` values; the first steps are of lower order, as published."""

    evaluations = 1

    def step(
        self, denoise: Denoiser, schedule: Schedule, x: Tensor, t: float, s: float, noise: Noise, memory: Any = None
    ) -> tuple[Tensor, Any]:
        """One step; the memory is the last values and their levels, newest first."""
        here, there, x0 = schedule.at(t), schedule.at(s), denoise(x, t)
        if math.isinf(there.log_snr):  # a schedule that ends without noise, at the prediction
            return there.alpha * x0, None
        past = usable(((self._value(x, x0, here), here), *(memory or ())), self.order, there)
        linear, h = self._linear(here, there), there.log_snr - here.log_snr
        nodes = tuple((level.log_snr - here.log_snr) / h for _, level in past)
        published = self.order == len(nodes) == 2
        weights = midpoint_weights(linear.k, nodes[1]) if published else exact_weights(linear.k, nodes)
        x = advance(linear, x, weights, [value for value, _ in past])
        return (x.add_(noise(x, t, s), alpha=linear.std) if linear.std else x), past


@dataclass(frozen=True)
class DPMSolver(_Multistep, _OfNoise):
    r"""DPM-Solver, multistep: a polynomial of $\epsilon$ through past values (Lu et al. 2022, arXiv 2206.00927).

    Attributes:
        order: 1 (which is DDIM), 2 or 3 values; three are integrated exactly.

    Raises:
        ValueError: An order out of range.
    """


@dataclass(frozen=True)
class DPMSolverPP(_Multistep, _OfData):
    r"""DPM-Solver++ and SDE-DPM-Solver++, multistep (Lu et al. 2022, arXiv 2211.01095, algorithm 2 and appendix).

    For order 2, with $h = \lambda_s - \lambda_t$, $r = h_{prev} / h$ and $k = (1 + \eta^2) h$,

    $$ x_s = \frac{\sigma_s}{\sigma_t} e^{-\eta^2 h} x_t + \alpha_s\,(1 - e^{-k})\, D
             + \sigma_s \sqrt{1 - e^{-2 \eta^2 h}}\; z, \qquad
       D = \Big(1 + \frac{1}{2r}\Big)\, x_0(x_t) - \frac{1}{2r}\, x_0(x_{prev}). $$

    Order 3 integrates the parabola through three values exactly; the published code drops a factor of two in its
    second difference and stays at order 2. The first steps, without a past, are of lower order.

    Attributes:
        order: 1 (which is DDIM), 2 or 3 values.
        eta: Share of the reverse SDE's noise: 0 is the ODE, 1 the SDE.

    Raises:
        ValueError: An order out of range, or a negative `eta`.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.eta >= 0:
            raise ValueError(f"DPMSolverPP got eta={self.eta}, expected 0 (the ODE) or more, such as 1 (the SDE)")

    def _linear(self, here: Level, there: Level) -> Linear:
        return data_linear(here, there, self.eta)


@dataclass(frozen=True)
class _Singlestep(_Exponential):
    r"""Stages at thirds or halves of the stride of log-SNR, each from the values at its begin and at the last stage."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "evaluations", self.order)
        lower = [type(self)(order) for order in range(1, self.order)]
        endings = {1: ((),), 2: ((), tuple(lower)), 3: (tuple(lower[::-1]), tuple(lower[:1]), tuple(lower[1:]))}
        object.__setattr__(self, "endings", endings[self.order])

    def step(
        self, denoise: Denoiser, schedule: Schedule, x: Tensor, t: float, s: float, noise: Noise, memory: Any = None
    ) -> tuple[Tensor, Any]:
        """One step with `order` evaluations; to a level without noise, with one, at the prediction."""
        if math.isinf(schedule.at(s).log_snr):
            return schedule.at(s).alpha * denoise(x, t), None
        return self.solve(denoise, schedule, x, t, s, self._value(x, denoise(x, t), schedule.at(t)))[0], None

    def solve(
        self, denoise: Denoiser, schedule: Schedule, x: Tensor, t: float, s: float, first: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """The step from the value at its begin, and all its values; an embedded pair needs them."""
        here, there, values = schedule.at(t), schedule.at(s), [first]
        h = there.log_snr - here.log_snr
        for stage in range(1, self.order):
            level = schedule.at_log_snr(here.log_snr + h * stage / self.order)
            y = self._reach(x, here, level, values, (stage - 1) / stage)
            values.append(self._value(y, denoise(y, level.t), level))
        return self._reach(x, here, there, values, (self.order - 1) / self.order), values

    def _reach(self, x: Tensor, here: Level, level: Level, values: list[Tensor], node: float) -> Tensor:
        """From the first value and the last, which lies at the share `node` of the way."""
        linear = self._linear(here, level)
        if len(values) == 1:
            return advance(linear, x, exact_weights(linear.k, (0.0,)), values)
        weights = midpoint_weights(linear.k, node) if self.order == 2 else exact_weights(linear.k, (0.0, node))
        return advance(linear, x, weights, [values[0], values[-1]])


@dataclass(frozen=True)
class DPMSolverSingle(_Singlestep, _OfNoise):
    r"""DPM-Solver, singlestep (Lu et al. 2022, arXiv 2206.00927, algorithms 1, 2 and 4), in $\epsilon$.

    Attributes:
        order: 1 (which is DDIM), 2 or 3, and as many evaluations a step.

    Raises:
        ValueError: An order out of range.
    """


@dataclass(frozen=True)
class DPMSolverPPSingle(_Singlestep, _OfData):
    r"""DPM-Solver++, singlestep (Lu et al. 2022, arXiv 2211.01095, algorithm 1), in $x_0$.

    Attributes:
        order: 1 (which is DDIM), 2 or 3, and as many evaluations a step.

    Raises:
        ValueError: An order out of range.
    """

    def _linear(self, here: Level, there: Level) -> Linear:
        return data_linear(here, there)


__all__ = ["DDIM", "DDPM", "DPMSolver", "DPMSolverPP", "DPMSolverPPSingle", "DPMSolverSingle"]
