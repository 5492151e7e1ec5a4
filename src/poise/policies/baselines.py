"""The baselines that every claim about diffusion must be compared with."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from poise.data import Batch, Windows
from poise.draws import Draws
from poise.policies.policy import Policy
from poise.policies.spec import PolicySpec
from poise.sampling import State
from poise.typing import Noise, Observation

_THUMBNAIL = 16  # pixels a side: a picture of 96 pixels takes 36 times the memory and tells hardly more of a layout
_CHUNK = 512  # windows gathered at once, whose pictures are whole until they are shrunk


class Regression(Policy):
    r"""The same network and encoder under squared error: one forward pass, the conditional mean $E[a | o]$.

    The network gets zero for the noisy plan and for the log-SNR. Where demonstrations take several routes, their mean
    is often none of them.
    """

    def __init__(self, spec: PolicySpec) -> None:
        super().__init__(spec)
        self.network = spec.network.build(spec.horizon, spec.action, self.encoder.tokens)

    def _mean(self, observation: Observation, draws: Draws | None = None) -> Tensor:
        tokens = self.tokens(observation, draws)
        zero = tokens.new_zeros(tokens.shape[0], self.spec.horizon, self.spec.action)
        return self.network(zero, zero[:, 0, 0], self.network.prepare(tokens))

    def loss(self, batch: Batch, draws: Draws | None = None) -> Tensor:
        """`(f(o) - a)^2`."""
        return (self._mean(batch.observation, draws) - self.encoded(batch)).square()

    def trace(self, observation: Observation, noise: Noise | None = None) -> Iterator[State]:
        """One state: the mean."""
        yield State(self.decoded(self.bounded(self._mean(observation)), observation), 0.0, 1)


class NearestNeighbour(Policy):
    """The actions that followed the most similar observation histories of the demonstrations, in normalised units.

    Compare Chi et al. 2023 (arXiv 2303.04137) with the look-up tables of arXiv 2505.05787. It does not learn: call
    `remember` once. Pictures are compared as thumbnails, and the distance of two of them is the root mean square over
    pixels and channels, so that a picture weighs as much as one number. An optional feature that is absent has no say.
    """

    def __init__(self, spec: PolicySpec) -> None:
        super().__init__(spec)
        self.neighbours = 1
        self.register_buffer("observed", torch.empty(0))
        self.register_buffer("followed", torch.empty(0))
        self.observed: Tensor
        self.followed: Tensor

    def using(self, neighbours: int) -> "NearestNeighbour":
        """The same memory, planning the mean of so many answers; like a sampler, it is not saved with the policy.

        Raises:
            ValueError: Fewer than one, or more than there are windows.
        """
        if not 1 <= neighbours <= len(self.followed):
            raise ValueError(
                f"NearestNeighbour got neighbours={neighbours}, expected 1 to the {len(self.followed)} windows that it "
                "remembers"
            )
        policy = copy.copy(self)
        policy.neighbours = neighbours
        return policy

    def _vector(self, observation: Observation) -> Tensor:
        return torch.cat(list(self._parts(observation).values()), dim=1)

    def _parts(self, observation: Observation) -> dict[str, Tensor]:
        features = self.normalised(observation)
        return {name: _comparable(features[name]) for name in sorted(self.spec.observations)}

    @torch.no_grad()
    def remember(self, windows: Windows) -> None:
        """Store all windows; `fit` must have been called."""
        self.eval().ready()
        batches = [windows[chunk] for chunk in torch.arange(len(windows)).split(_CHUNK)]
        self.observed = torch.cat([self._vector(batch.observation) for batch in batches])
        self.followed = torch.cat([self.encoded(batch) for batch in batches])

    def loss(self, batch: Batch, draws: Draws | None = None) -> Tensor:
        """Squared error of the remembered actions; nothing to differentiate."""
        return (self._recall(batch.observation) - self.encoded(batch)).square()

    def trace(self, observation: Observation, noise: Noise | None = None) -> Iterator[State]:
        """One state, without any network evaluation."""
        yield State(self.decoded(self.bounded(self._recall(observation)), observation), 0.0, 0)

    def _recall(self, observation: Observation) -> Tensor:
        """The mean of the actions of the nearest windows.

        Raises:
            ValueError: Nothing is remembered.
        """
        parts, observed = self._parts(observation), self.observed
        if not len(self.followed):
            raise ValueError(
                "NearestNeighbour has no demonstrations to look among, expected those of training: call "
                "policy.remember(windows) after policy.fit(windows), once"
            )
        if not set(parts) <= set(observation):  # what is absent is zero here: let it be zero there
            given = [part.new_full((part.shape[1],), name in observation) for name, part in parts.items()]
            observed = observed * torch.cat(given)
        distances = torch.cdist(torch.cat(list(parts.values()), dim=1), observed)
        return self.followed[distances.topk(self.neighbours, largest=False).indices].mean(1)


def _comparable(feature: Tensor) -> Tensor:
    """A feature `(B, history, ...)` as a vector: numbers as they are, pictures `(B, history, H, W, C)` shrunk."""
    if feature.ndim < 5:
        return feature.flatten(1)
    small = functional.adaptive_avg_pool2d(feature.flatten(0, 1).movedim(-1, 1), _THUMBNAIL)
    return small.reshape(len(feature), -1) / small[0].numel() ** 0.5


__all__ = ["NearestNeighbour", "Regression"]
