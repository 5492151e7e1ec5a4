"""The two-step minimal iterative policy: what is left of a flow when its randomness is taken away."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from poise.data import Batch
from poise.draws import Draws
from poise.policies.policy import Policy
from poise.policies.spec import PolicySpec
from poise.sampling import State
from poise.typing import Noise, Observation

_SHARE = 0.9  # t* of the paper, where t = 1 is data; the second call corrects errors of about 1 - t*
_NOTHING = -7.0  # log-SNR of the first call, whose input says nothing: that of pure noise on the default schedule
_NEARLY = -math.log(1 - _SHARE)  # log-SNR of the second call: that of a + (1 - t*) z for actions of unit variance

_Call = Callable[[Tensor], Tensor]


class MinimalIterative(Policy):
    r"""Two passes of one network: guess the plan, then correct the guess (arXiv 2512.01809).

    $$ L = \frac{\|f(0, \lambda_0, o) - a\|^2}{t_*^2} + \frac{\|f(a + (1 - t_*) z, \lambda_*, o) - a\|^2}{(1 - t_*)^2},
       \qquad z \sim N(0, I),\ t_* = 0.9, $$

    $$ a_1 = f(0, \lambda_0, o), \qquad a_2 = f(a_1, \lambda_*, o). $$

    There is no randomness when it plans. The paper tells the network the time, ours tell theirs the log-SNR: that of
    the noisy actions in the second term, $\lambda_* = -\log(1 - t_*) = 2.3$, and -7 where there is no signal. What it
    does better than `Regression` is due to iteration, what a diffusion does better than it to sampling.
    """

    def __init__(self, spec: PolicySpec) -> None:
        super().__init__(spec)
        self.network = spec.network.build(spec.horizon, spec.action, self.encoder.tokens)

    def _calls(self, observation: Observation, draws: Draws | None = None) -> tuple[_Call, _Call]:
        """The two passes, for one observation: that from nothing, and that from nearly finished actions."""
        prepared = self.network.prepare(self.tokens(observation, draws))

        def at(log_snr: float) -> _Call:
            return lambda x: self.network(x, x.new_full(x.shape[:1], log_snr), prepared)

        return at(_NOTHING), at(_NEARLY)

    def loss(self, batch: Batch, draws: Draws | None = None) -> Tensor:
        """Both terms of the loss above, an element of the plan."""
        (first, second), a = self._calls(batch.observation, draws), self.encoded(batch)
        z = (draws or Draws()).normal(*a.shape).to(a)
        guess = (first(torch.zeros_like(a)) - a).square() / _SHARE**2
        return guess + (second(a + (1 - _SHARE) * z) - a).square() / (1 - _SHARE) ** 2

    def trace(self, observation: Observation, noise: Noise | None = None) -> Iterator[State]:
        """Two states: the guess, and the plan."""
        first, second = self._calls(observation)
        rows = next(iter(observation.values())).shape[0]
        zero = self.action_normaliser.scale.new_zeros(rows, self.spec.horizon, self.spec.action)
        guess = self.bounded(first(zero))
        yield State(self.decoded(guess, observation), 1 - _SHARE, 1)
        yield State(self.decoded(self.bounded(second(guess)), observation), 0.0, 2)


__all__ = ["MinimalIterative"]
