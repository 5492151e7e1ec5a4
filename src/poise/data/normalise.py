r"""Normalisers: an affine map a dimension, whose constants travel in the checkpoint.

$$ y = scale \cdot x + offset. $$

A near-constant dimension (range or deviation below 1e-4) gets scale 1, never one over a small number, so that a sensor
that hardly moved in the demonstrations cannot blow up at run time.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_NEARLY_CONSTANT = 1e-4


@dataclass(frozen=True)
class Scaling(ABC):
    """A rule that finds scale and offset from data."""

    @abstractmethod
    def fit(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """`(scale, offset)`, each `(D,)`, from rows `(N, D)`."""


@dataclass(frozen=True)
class Limits(Scaling):
    r"""Minimum and maximum to -1 and 1; a near-constant dimension is centred on zero."""

    def fit(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """From the smallest and the largest value of every dimension."""
        low, high = data.amin(0), data.amax(0)
        constant = high - low < _NEARLY_CONSTANT
        scale = torch.where(constant, torch.ones_like(low), 2 / (high - low).clamp_min(_NEARLY_CONSTANT))
        return scale, -scale * (low + high) / 2


@dataclass(frozen=True)
class Standard(Scaling):
    """Zero mean and unit (sample) standard deviation."""

    def fit(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """From the mean and the standard deviation of every dimension."""
        deviation, mean = torch.std_mean(data, 0)
        deviation = torch.where(deviation < _NEARLY_CONSTANT, torch.ones_like(deviation), deviation)
        return 1 / deviation, -mean / deviation


class Normaliser(nn.Module):
    """The affine map of one feature. Until it is fitted or loaded, its constants are NaN and its use is an error.

    Args:
        name: Of the feature, for messages.
        shape: Of one row of the feature.
    """

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.name = name
        self.register_buffer("scale", torch.full(shape, torch.nan))
        self.register_buffer("offset", torch.full(shape, torch.nan))
        self.scale: Tensor
        self.offset: Tensor

    def fit(self, data: Tensor, scaling: Scaling) -> None:
        """Take the constants from rows `(N, *shape)`."""
        scale, offset = scaling.fit(data.reshape(len(data), -1).double())
        self.scale.copy_(scale.reshape(self.scale.shape))
        self.offset.copy_(offset.reshape(self.offset.shape))

    def check(self) -> None:
        """Raise unless there are statistics.

        Raises:
            ValueError: The normaliser was never fitted.
        """
        if not bool(torch.isfinite(self.scale).all() & torch.isfinite(self.offset).all()):
            raise ValueError(
                f"Feature {self.name!r} has no statistics, expected a scale and an offset a dimension: "
                "call policy.fit(episodes) before training, or load a checkpoint that holds them"
            )

    def forward(self, x: Tensor) -> Tensor:
        """Data to normalised units."""
        return x * self.scale + self.offset

    def inverse(self, y: Tensor) -> Tensor:
        """Normalised units to data."""
        return (y - self.offset) / self.scale


__all__ = ["Limits", "Normaliser", "Scaling", "Standard"]
