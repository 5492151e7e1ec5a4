"""Conformance of schedules and predictions, and diffusions whose solution is known."""

from dataclasses import dataclass

import torch
from torch import Tensor

from poise.denoisers import Mixture
from poise.predictions import Prediction
from poise.schedules import Schedule, VPCosine
from poise.testing.assertions import near, require

_DOUBLE = torch.float64


def check_schedule(schedule: Schedule) -> None:
    """Monotone and finite log-SNR, positive alpha and sigma, the inverse, and rates against finite differences."""
    t = torch.linspace(0, 1, 2001, dtype=_DOUBLE)
    alpha, sigma, log_snr = schedule.alpha(t), schedule.sigma(t), schedule.log_snr(t)
    require(bool((alpha > 0).all() & (sigma > 0).all()), f"{schedule}: alpha and sigma must be above zero on [0, 1]")
    require(bool(torch.isfinite(log_snr).all()), f"{schedule}: log_snr must be finite on [0, 1]")
    require(bool((log_snr.diff() < 0).all()), f"{schedule}: log_snr must strictly decrease with t")
    near(log_snr, torch.log(alpha / sigma), 1e-8, f"{schedule}: log_snr is not log(alpha / sigma)")
    near(schedule.time(log_snr), t, 1e-8, f"{schedule}: time does not invert log_snr")
    # Midpoints of the cells, so that a table's kinks at round times are not straddled.
    middle, h = (t[1:] + t[:-1])[::7] / 2, 1e-7
    for name, function, rate in zip(
        ("alpha", "sigma"), (schedule.alpha, schedule.sigma), schedule.rates(middle), strict=True
    ):
        difference = (function(middle + h) - function(middle - h)) / (2 * h)
        scale = rate.abs().clamp_min(1.0)
        near(rate / scale, difference / scale, 1e-5, f"{schedule}: the rate of {name} is not its derivative")
    level = schedule.at(0.5)
    near(
        torch.tensor(level.alpha, dtype=_DOUBLE),
        schedule.alpha(torch.tensor(0.5, dtype=_DOUBLE)),
        1e-12,
        f"{schedule}: at(0.5)",
    )
    single = schedule.log_snr(t.float())
    near(single.double(), log_snr, 2e-2, f"{schedule}: float32 strays from float64")


def check_prediction(prediction: Prediction, schedule: Schedule) -> None:
    """The target and its inversion agree in float32 and float64, for any shape, also square ones."""
    generator = torch.Generator().manual_seed(0)
    for dtype, tolerance in ((torch.float32, 2e-3), (_DOUBLE, 1e-9)):
        for shape in ((5,), (5, 5), (4, 3, 2)):
            x0, eps = (torch.randn(shape, generator=generator, dtype=_DOUBLE).to(dtype) for _ in range(2))
            t = torch.linspace(0.02, 0.98, shape[0], dtype=dtype)
            expand = (-1, *[1] * (len(shape) - 1))
            x = schedule.alpha(t).reshape(expand) * x0 + schedule.sigma(t).reshape(expand) * eps
            y = prediction.target(schedule, x0, eps, t)
            clean = prediction.clean(schedule, x, y, t)
            # Recovering x0 from eps divides by alpha: the rounding of x is magnified by 1 / alpha.
            scale = (1 + 1 / schedule.alpha(t)).reshape(expand)
            message = f"{prediction} on {schedule}, {dtype}, {shape}: clean does not invert target"
            near(clean / scale, x0 / scale, tolerance, message)


@dataclass(frozen=True)
class Scaled(Schedule):
    """A schedule with alpha and sigma times a constant: the same diffusion in other units."""

    base: Schedule = VPCosine()
    factor: float = 3.0

    def alpha(self, t: Tensor) -> Tensor:
        """Times the factor."""
        return self.factor * self.base.alpha(t)

    def sigma(self, t: Tensor) -> Tensor:
        """Times the factor."""
        return self.factor * self.base.sigma(t)

    def time(self, log_snr: Tensor) -> Tensor:
        """Unchanged."""
        return self.base.time(log_snr)


def asymmetric_mixture(schedule: Schedule) -> Mixture:
    """A mixture in one dimension without any symmetry that could raise an order by accident."""
    means = torch.tensor([[-1.2], [0.3], [1.5]], dtype=_DOUBLE)
    return Mixture(schedule, means, 0.35, torch.tensor([0.2, 0.5, 0.3], dtype=_DOUBLE))


def transport(mixture: Mixture, x: Tensor, t: float, s: float) -> Tensor:
    r"""Where the probability-flow ODE takes `x` of shape `(B, 1)` from time `t` to time `s`, in closed form.

    In one dimension the flow keeps the order of the samples, so it maps quantiles to quantiles,

    $$ x_s = F_s^{-1}\big(F_t(x_t)\big), $$

    with F the cumulative distributions; inverted by bisection.
    """
    target = mixture.cdf(x, t)
    low, high = torch.full_like(x, -60.0), torch.full_like(x, 60.0)
    for _ in range(80):
        middle = (low + high) / 2
        below = mixture.cdf(middle, s) < target
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


__all__ = ["Scaled", "asymmetric_mixture", "check_prediction", "check_schedule", "transport"]
