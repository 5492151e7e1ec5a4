r"""Denoisers: callables `(x_t, t) -> E[x0 | x_t]`.

`Diffusion` is the learned one. `Gaussian` and `Mixture` are exact, in closed form: the tests, the documentation and
the benchmarks stand on them.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from poise.predictions import Prediction
from poise.schedules import Schedule
from poise.tensors import like
from poise.typing import Actions, ConditionalNetwork, Denoiser, Samples, Times, Tokens

_REMEMBERED = 4096


class Diffusion(torch.nn.Module):
    r"""A network, a schedule and a prediction: the learned $E[x_0 \mid x_t, \text{tokens}]$.

    The network sees $x_t / \sqrt{\alpha^2 + \sigma^2}$ and the log signal-to-noise ratio, never t.

    Args:
        network: Module with `prepare(tokens)` and `forward(x, log_snr, prepared)`.
        schedule: Noise schedule.
        prediction: What the network's output means.
    """

    network: ConditionalNetwork

    def __init__(self, network: ConditionalNetwork, schedule: Schedule, prediction: Prediction) -> None:
        super().__init__()
        self.network, self.schedule, self.prediction = network, schedule, prediction
        self._constants: dict[float, tuple[float, float, float, float]] = {}

    def forward(self, x: Actions, t: Times, tokens: Tokens) -> Actions:
        """`E[x0 | x_t = x]` at times `t` of shape `(B,)`."""
        return self.prediction.clean(self.schedule, x, self._output(x, t, tokens), t)

    def _output(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        scale = torch.hypot(self.schedule.alpha(t), self.schedule.sigma(t))
        return self.network(x / like(scale, x), self.schedule.log_snr(t), self.network.prepare(tokens))

    def given(self, tokens: Tokens) -> Denoiser:
        """Bind the condition once a plan, so that no sampler ever hears of it."""
        prepared = self.network.prepare(tokens)

        def denoise(x: Tensor, t: float) -> Tensor:
            inverse_scale, log_snr, c_x, c_y = self._constants_at(t)
            y = self.network(x * inverse_scale, x.new_full(x.shape[:1], log_snr), prepared)
            return torch.add(c_x * x, y, alpha=c_y)

        return denoise

    def _constants_at(self, t: float) -> tuple[float, float, float, float]:
        """`(1 / hypot(alpha, sigma), log_snr, c_x, c_y)` at one time, computed once."""
        constants = self._constants.get(t)
        if constants is None:
            level = self.schedule.at(t)
            c_x, c_y = self.prediction.inverse(self.schedule, torch.tensor(t, dtype=torch.float64))
            constants = (1 / math.hypot(level.alpha, level.sigma), level.log_snr, c_x.item(), c_y.item())
            if len(self._constants) >= _REMEMBERED:  # adaptive solvers never come back to most of their times
                self._constants.clear()
            self._constants[t] = constants
        return constants

    def loss(self, x0: Actions, eps: Actions, t: Times, tokens: Tokens) -> Actions:
        r"""Squared errors $(y_\theta(x_t, \lambda_t) - y)^2$, an element, at $x_t = \alpha x_0 + \sigma \epsilon$.

        Its mean over data, normal noise and times is the training objective of Ho et al. 2020 (arXiv 2006.11239,
        equation 14) for `Epsilon`, and of flow matching (arXiv 2210.02747) for `Flow`; its minimiser is the exact
        denoiser whatever the prediction.
        """
        x = like(self.schedule.alpha(t), x0) * x0 + like(self.schedule.sigma(t), x0) * eps
        target = self.prediction.target(self.schedule, x0, eps, t)
        return (self._output(x, t, tokens).to(target.dtype) - target).square()


@dataclass(frozen=True, eq=False)
class Gaussian:
    r"""The exact denoiser of data $x_0 \sim N(m, \mathrm{diag}(v))$.

    $$ E[x_0 | x_t] = m + \frac{\alpha v}{\alpha^2 v + \sigma^2}\,(x_t - \alpha m). $$

    Attributes:
        schedule: Noise schedule.
        mean: m, of the shape of one sample.
        variance: v, of the shape of one sample.
    """

    schedule: Schedule
    mean: Tensor
    variance: Tensor

    def __call__(self, x: Samples, t: float) -> Samples:
        """`E[x0 | x_t = x]`."""
        level = self.schedule.at(t)
        gain = level.alpha * self.variance / (level.alpha**2 * self.variance + level.sigma**2)
        return self.mean + gain * (x - level.alpha * self.mean)

    def flow(self, x: Samples, t: float, s: float) -> Samples:
        r"""Where the probability-flow ODE takes `x` from time `t` to time `s`, in closed form.

        $$ x_s = \alpha_s m + \sqrt{\frac{\alpha_s^2 v + \sigma_s^2}{\alpha_t^2 v + \sigma_t^2}}\,(x_t - \alpha_t m). $$
        """
        here, there = self.schedule.at(t), self.schedule.at(s)
        before = here.alpha**2 * self.variance + here.sigma**2
        after = there.alpha**2 * self.variance + there.sigma**2
        return there.alpha * self.mean + torch.sqrt(after / before) * (x - here.alpha * self.mean)


@dataclass(frozen=True, eq=False)
class Mixture:
    r"""The exact denoiser of a mixture of isotropic Gaussians, $x_0 \sim \sum_k w_k\, N(m_k, s^2 I)$.

    $$ E[x_0 | x_t] = \sum_k p(k | x_t) \Big(m_k + \frac{\alpha s^2}{\alpha^2 s^2 + \sigma^2}(x_t - \alpha m_k)\Big),
       \qquad p(k | x_t) \propto w_k\, N(x_t; \alpha m_k, (\alpha^2 s^2 + \sigma^2) I). $$

    Attributes:
        schedule: Noise schedule.
        means: `(K, D)`.
        std: s, one number for all components.
        weights: `(K,)`, positive, of sum one.
    """

    schedule: Schedule
    means: Tensor
    std: float
    weights: Tensor

    def _log_joint(self, x: Tensor, t: float) -> tuple[Tensor, Tensor, float]:
        level = self.schedule.at(t)
        variance = level.alpha**2 * self.std**2 + level.sigma**2
        gap = x[:, None] - level.alpha * self.means
        log_normal = -gap.square().sum(-1) / (2 * variance) - x.shape[-1] / 2 * math.log(2 * math.pi * variance)
        return self.weights.log() + log_normal, gap, level.alpha * self.std**2 / variance

    def __call__(self, x: Tensor, t: float) -> Tensor:
        """`E[x0 | x_t = x]` for `x` of shape `(B, D)`."""
        log_joint, gap, gain = self._log_joint(x, t)
        return (torch.softmax(log_joint, 1)[..., None] * (self.means + gain * gap)).sum(1)

    def log_prob(self, x: Tensor, t: float = 0.0) -> Tensor:
        """`log p_t(x)` in nats, `(B,)`."""
        return torch.logsumexp(self._log_joint(x, t)[0], 1)

    def cdf(self, x: Tensor, t: float) -> Tensor:
        """Cumulative distribution at time `t` of a mixture in one dimension, for `x` of shape `(B, 1)`."""
        level = self.schedule.at(t)
        normal = torch.distributions.Normal(
            level.alpha * self.means[:, 0], math.hypot(level.alpha * self.std, level.sigma)
        )
        return (self.weights * normal.cdf(x)).sum(1, keepdim=True)


__all__ = ["Diffusion", "Gaussian", "Mixture"]
