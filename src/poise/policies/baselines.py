"""The baselines that every claim about diffusion must be compared with."""

from collections.abc import Iterator

import torch
from torch import Tensor

from poise.data import Batch, Windows
from poise.policies.policy import Policy
from poise.policies.spec import PolicySpec
from poise.sampling import State
from poise.typing import Noise, Observation


class Regression(Policy):
    r"""The same network and encoder under squared error: one forward pass, the conditional mean $E[a | o]$.

    The network gets zero for the noisy plan and for the log-SNR. Where demonstrations take several routes, their mean
    is often none of them.
    """

    def __init__(self, spec: PolicySpec) -> None:
        super().__init__(spec)
        self.network = spec.network.build(spec.horizon, spec.action, self.encoder.tokens)

    def _mean(self, observation: Observation) -> Tensor:
        tokens = self.tokens(observation)
        zero = tokens.new_zeros(len(tokens), self.spec.horizon, self.spec.action)
        return self.network(zero, tokens.new_zeros(len(tokens)), self.network.prepare(tokens))

    def loss(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """`(f(o) - a)^2`."""
        return (self._mean(batch.observation) - self.encoded(batch)).square()

    def trace(self, observation: Observation, noise: Noise | None = None) -> Iterator[State]:
        """One state: the mean."""
        yield State(self.decoded(self._mean(observation), observation), 0.0, 1)


class NearestNeighbour(Policy):
    """The actions that followed the most similar observation history of the demonstrations, in normalised units.

    Compare Chi et al. 2023 (arXiv 2303.04137) with the look-up tables of arXiv 2505.05787. It does not learn: call
    `remember` once.
    """

    def __init__(self, spec: PolicySpec) -> None:
        super().__init__(spec)
        self.register_buffer("observed", torch.empty(0))
        self.register_buffer("followed", torch.empty(0))
        self.observed: Tensor
        self.followed: Tensor

    def _vector(self, observation: Observation) -> Tensor:
        features = self.normalised(observation)
        return torch.cat([features[name].flatten(1) for name in sorted(features)], dim=1)

    def remember(self, windows: Windows) -> None:
        """Store all windows; `fit` must have been called."""
        self.ready()
        batch = windows[torch.arange(len(windows))]
        self.observed, self.followed = self._vector(batch.observation), self.encoded(batch)

    def loss(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """Squared error of the remembered actions; nothing to differentiate."""
        return (self._recall(batch.observation) - self.encoded(batch)).square()

    def trace(self, observation: Observation, noise: Noise | None = None) -> Iterator[State]:
        """One state, without any network evaluation."""
        yield State(self.decoded(self._recall(observation), observation), 0.0, 0)

    def _recall(self, observation: Observation) -> Tensor:
        return self.followed[torch.cdist(self._vector(observation), self.observed).argmin(1)]


__all__ = ["NearestNeighbour", "Regression"]
