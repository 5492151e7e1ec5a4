"""A mixture density network over whole plans: several modes in one forward pass."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from poise.data import Batch
from poise.draws import Draws
from poise.policies.policy import Policy
from poise.policies.spec import PolicySpec
from poise.sampling import State, gaussian
from poise.typing import Noise, Observation

_COMPONENTS = 5  # K, as in the published LSTM-GMM
_NARROWEST = 0.01  # smallest deviation in normalised units: without a floor, repeated actions have infinite likelihood


class MixtureRegression(Policy):
    r"""The same network and encoder with a Gaussian mixture at the end: the baseline for multimodality.

    It is the mixture density network of Bishop 1994, and the LSTM-GMM of Mandlekar et al. 2021 (arXiv 2108.03298)
    without the LSTM.

    $$ p(a | o) = \sum_{k=1}^{K} w_k(o) \prod_{i,j} N\big(a_{ij};\, m_{kij}(o),\, s_{kij}(o)^2\big), \qquad K = 5. $$

    A component is a whole plan, so that one draw keeps to one route. The network is built for plans of $K (2 A + 1)$
    dimensions instead of A, means, deviations and logits (which are averaged over the horizon), and is called once,
    with zero for the noisy plan and the log-SNR as in `Regression`.
    """

    def __init__(self, spec: PolicySpec) -> None:
        super().__init__(spec)
        channels = _COMPONENTS * (2 * spec.action + 1)
        self.network = spec.network.build(spec.horizon, channels, self.encoder.tokens)

    def components(self, observation: Observation, draws: Draws | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """`log w` `(B, K)`, and m and s `(B, K, horizon, action)`, of normalised plans.

        Args:
            observation: Name -> `(B, history, ...)`.
            draws: Of what is random in training, as in `Policy.normalised`.
        """
        tokens, action = self.tokens(observation, draws), self.spec.action
        zero = tokens.new_zeros(len(tokens), self.spec.horizon, _COMPONENTS * (2 * action + 1))
        y = self.network(zero, tokens.new_zeros(len(tokens)), self.network.prepare(tokens))
        y = y.to(self.action_normaliser.scale.dtype)  # densities in half precision are none
        means, widths, logits = y.unflatten(2, (_COMPONENTS, -1)).transpose(1, 2).split([action, action, 1], dim=-1)
        return logits.mean((2, 3)).log_softmax(1), means, _NARROWEST + functional.softplus(widths)

    def loss(self, batch: Batch, draws: Draws | None = None) -> Tensor:
        r"""$-\log p(a_{ij} | a_{<ij}, o)$ in nats, conditioned on the elements before it in the order of time.

        By the chain rule the sum over a plan is $-\log p(a | o)$, and the sum over its real actions, which come before
        the padded ones, is that of the real actions: leaving padding out is exact.
        """
        log_weights, means, deviations = self.components(batch.observation, draws)
        gap = (self.encoded(batch)[:, None] - means) / deviations
        log_normal = -0.5 * gap.square() - deviations.log() - 0.5 * math.log(2 * math.pi)
        joint = torch.cat([log_weights[..., None], log_weights[..., None] + log_normal.flatten(2).cumsum(2)], dim=2)
        return -joint.logsumexp(1).diff(dim=1).unflatten(1, means.shape[2:])

    def trace(self, observation: Observation, noise: Noise | None = None) -> Iterator[State]:
        r"""One state: $m_k + T s_k \epsilon$ with k drawn by weight and T the temperature; at T = 0 a mean."""
        noise = noise or gaussian()
        log_weights, means, deviations = self.components(observation)
        uniform = torch.special.ndtr(noise(log_weights[:, :1], 1.0, 1.0))
        drawn = (uniform > log_weights.exp().cumsum(1)[:, :-1]).sum(1)
        rows = torch.arange(len(drawn), device=drawn.device)
        mean, deviation = means[rows, drawn], deviations[rows, drawn]
        x = mean + self.spec.temperature * deviation * noise(mean, 1.0, 1.0)
        yield State(self.decoded(self.bounded(x), observation), 0.0, 1)


__all__ = ["MixtureRegression"]
