r"""Couplings: which noise of a batch goes with which plan.

Noise and plans are independent in the objective of diffusion. A coupling permutes the noise within a batch, so that
paths cross less and fewer evaluations sample them. Over a batch the noise stays what was drawn; but a plan's own noise
now tells about the plan. To add one, write `cost`.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from poise.extras import extra


@dataclass(frozen=True)
class Coupling(ABC):
    """A rule that pairs the noise of a batch with its plans."""

    @abstractmethod
    def pair(self, x0: Tensor, eps: Tensor) -> Tensor:
        """The noise for each row of `x0`, from rows of `eps`, both `(B, ...)`."""

    @abstractmethod
    def warn(self) -> None:
        """Say what is wrong with it where plans are conditioned on observations."""


@dataclass(frozen=True)
class Independent(Coupling):
    """Noise as it is drawn."""

    def pair(self, x0: Tensor, eps: Tensor) -> Tensor:  # noqa: ARG002 (abstract)
        """The noise."""
        return eps

    def warn(self) -> None:
        """Nothing is wrong."""


@dataclass(frozen=True)
class _Assigned(Coupling):
    r"""The cheapest permutation, $\min_\pi \sum_i c(x_0^i, \epsilon^{\pi(i)})$, of time cubic in the batch."""

    @abstractmethod
    def cost(self, distance: Tensor) -> Tensor:
        """What it costs to pair plan and noise at Euclidean distances `(B, B)`."""

    def pair(self, x0: Tensor, eps: Tensor) -> Tensor:
        """Every row of `eps` once, at the least total cost.

        A batch that is computed in parts is paired within each part.
        """
        cost = self.cost(torch.cdist(x0.flatten(1).double(), eps.flatten(1).double()))
        columns = _solver()(cost.nan_to_num().cpu().numpy())[1]  # what is not finite is for the loss to report
        return eps[torch.from_numpy(columns).to(eps.device)]

    def warn(self) -> None:
        """Warn of the bias."""
        warnings.warn(
            f"{type(self).__name__} pairs the noise of a batch with its plans, but plans depend on observations: in "
            "training the noise then tells about the observation, at run time it does not, and plans are biased (Cheng "
            "and Schwing 2025, arXiv 2503.10636). Keep Independent() unless observations say nothing about plans",
            UserWarning,
            stacklevel=4,  # who makes the spec
        )


@dataclass(frozen=True)
class Immiscible(_Assigned):
    """The least sum of distances, "immiscible diffusion" (Li et al. 2024, arXiv 2406.12303)."""

    def cost(self, distance: Tensor) -> Tensor:
        """The distance."""
        return distance


@dataclass(frozen=True)
class OptimalTransport(_Assigned):
    """The least sum of squared distances, the optimal transport of a minibatch (Tong et al. 2023, arXiv 2302.00482)."""

    def cost(self, distance: Tensor) -> Tensor:
        """Its square."""
        return distance.square()


def _solver() -> Callable[[Any], Any]:
    with extra("transport", "pairing noise with plans needs"):
        from scipy.optimize import linear_sum_assignment
    return linear_sum_assignment


__all__ = ["Coupling", "Immiscible", "Independent", "OptimalTransport"]
