r"""The exact linear part of the diffusion, and polynomials under the integral that is left.

With $\lambda = \log(\alpha/\sigma)$ the probability-flow ODE has two solutions (Lu et al. 2022, arXiv 2206.00927 for
the noise, 2211.01095 for the data),

$$ x_s = \frac{\sigma_s}{\sigma_t} x_t + \sigma_s \int_{\lambda_t}^{\lambda_s} e^{\lambda}\, x_0\, d\lambda
       = \frac{\alpha_s}{\alpha_t} x_t - \alpha_s \int_{\lambda_t}^{\lambda_s} e^{-\lambda}\, \epsilon\, d\lambda. $$

With a polynomial $D(u) = \sum_n d_n u^n$ in $u = (\lambda - \lambda_t) / h$, $h = \lambda_s - \lambda_t$, in the place
of $x_0$ or of $\epsilon$, both become

$$ x_s = c\, x_t + a \sum_n d_n I_n(k), \qquad I_n(k) = k \int_0^1 e^{-k (1 - u)}\, u^n\, du, $$

where $c = \sigma_s/\sigma_t, a = \alpha_s, k = h$ for the data and $c = \alpha_s/\alpha_t, a = \sigma_s, k = -h$ for
the noise. Samplers differ in the quantity and in the points that the polynomial goes through.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

from poise.schedules import Level

Values = tuple[tuple[Tensor, Level], ...]
"""What a polynomial goes through, and where."""

_SMALL = 0.05  # below it the recursion of the moments cancels, and eight terms of their series are exact


class Linear(NamedTuple):
    """A step without its polynomial: `x_s = keep x_t + gain sum d_n I_n(k) + std z`."""

    keep: float
    gain: float
    k: float
    std: float = 0.0


def data_linear(here: Level, there: Level, eta: float = 0.0) -> Linear:
    r"""The polynomial stands for $x_0$; `eta` is the share of the reverse SDE's noise.

    $$ c = \frac{\sigma_s}{\sigma_t} e^{-\eta^2 h}, \qquad k = (1 + \eta^2)\, h, \qquad
       \mathrm{std} = \sigma_s \sqrt{1 - e^{-2 \eta^2 h}}. $$
    """
    h = there.log_snr - here.log_snr
    fresh = eta * eta * h
    std = there.sigma * math.sqrt(-math.expm1(-2 * fresh)) if fresh else 0.0
    return Linear(there.sigma / here.sigma * math.exp(-fresh), there.alpha, h + fresh, std)


def noise_linear(here: Level, there: Level) -> Linear:
    r"""The polynomial stands for $\epsilon$."""
    return Linear(there.alpha / here.alpha, there.sigma, here.log_snr - there.log_snr)


def noise_of(x: Tensor, x0: Tensor, level: Level) -> Tensor:
    r"""$\hat\epsilon = (x_t - \alpha x_0) / \sigma$."""
    return (x / level.sigma).sub_(x0, alpha=level.alpha / level.sigma)


def moments(k: float, count: int) -> list[float]:
    r"""$I_0, \dots$: by $I_0 = 1 - e^{-k}$, $I_n = 1 - n I_{n-1} / k$, and by their series near zero."""
    if abs(k) < _SMALL:
        return [
            sum(k * (-k) ** j * math.factorial(n) / math.factorial(n + j + 1) for j in range(8)) for n in range(count)
        ]
    values = [-math.expm1(-k)]
    for n in range(1, count):
        values.append(1 - n * values[-1] / k)
    return values


@lru_cache(4096)
def exact_weights(k: float, nodes: tuple[float, ...]) -> tuple[float, ...]:
    r"""The $w_i$ of $\sum_n d_n I_n(k) = \sum_i w_i D(u_i)$, for the polynomial through the nodes $u_i$."""
    integrals, weights = moments(k, len(nodes)), []
    for i, node in enumerate(nodes):
        basis = [1.0]  # coefficients of Lagrange's polynomial, the constant first
        for other in nodes[:i] + nodes[i + 1 :]:
            raised, kept = [0.0, *basis], [*basis, 0.0]
            basis = [(r - other * c) / (node - other) for r, c in zip(raised, kept, strict=True)]
        weights.append(sum(c * integral for c, integral in zip(basis, integrals, strict=True)))
    return tuple(weights)


def midpoint_weights(k: float, u: float) -> tuple[float, float]:
    r"""For the nodes 0 and u with $I_1 = I_0 / 2$, exact to the same order: what the papers publish for order 2."""
    whole = -math.expm1(-k)
    return whole * (1 - 0.5 / u), whole * 0.5 / u


def usable(values: Values, order: int, there: Level) -> Values:
    """The values that a step to `there` may extrapolate from: the newest one on a long last stride, else `order`.

    Long is a stride of log-SNR of over twice the one before it, as is the last one on a uniform grid of time. There the
    polynomial would be followed far beyond its values, and the errors of a learned denoiser with it.

    Args:
        values: Each with its level, newest first, at the begin of the step.
        order: The largest number of values.
        there: The level at the end of the step.
    """
    long = (
        there.t == 0
        and len(values) > 1
        and there.log_snr - values[0][1].log_snr > 2 * (values[0][1].log_snr - values[1][1].log_snr)
    )
    return values[: 1 if long else order]


def advance(linear: Linear, x: Tensor, weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    r"""$c\, x + a \sum_i w_i D_i$."""
    x = linear.keep * x
    for weight, value in zip(weights, values, strict=True):
        x = x.add_(value, alpha=linear.gain * weight)
    return x


__all__ = [
    "Linear",
    "Values",
    "advance",
    "data_linear",
    "exact_weights",
    "midpoint_weights",
    "moments",
    "noise_linear",
    "noise_of",
    "usable",
]
