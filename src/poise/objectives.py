"""Densities over the time of a training sample: where on the noise scale the network learns.

A density is given by its quantile function, so that a batch can be stratified; see `poise.draws`. To add one, write
`quantile`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Density(ABC):
    """A density over t in [0, 1]."""

    @abstractmethod
    def quantile(self, u: Tensor) -> Tensor:
        """The time below which a share `u` in [0, 1) of the samples lies."""


@dataclass(frozen=True)
class Uniform(Density):
    """Every time alike."""

    def quantile(self, u: Tensor) -> Tensor:
        """`t = u`."""
        return u


@dataclass(frozen=True)
class LogitNormal(Density):
    r"""$t = 1 / (1 + e^{-z}),\ z \sim N(mean, std^2)$ (Esser et al. 2024, arXiv 2403.03206).

    Attributes:
        mean: Above zero stresses noise, below zero stresses data.
        std: Spread of the logit.
    """

    mean: float = 0.0
    std: float = 1.0

    def quantile(self, u: Tensor) -> Tensor:
        """The logistic function of a normal quantile."""
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6)))


__all__ = ["Density", "LogitNormal", "Uniform"]
