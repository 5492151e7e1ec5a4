r"""Normalisers: an affine map a dimension, whose constants travel in the checkpoint.

$$ y = scale \cdot x + offset. $$

A near-constant dimension (range or deviation below 1e-4) gets scale 1, never one over a small number, so that a sensor
that hardly moved in the demonstrations cannot blow up at run time.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from poise.data.mapped import relieve

_CHUNK = 2**19  # rows of a column copied before the memory of mapped files is looked at
_NEARLY_CONSTANT = 1e-4


@dataclass(frozen=True)
class Scaling(ABC):
    """A rule that finds scale and offset from data."""

    @abstractmethod
    def fit(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """`(scale, offset)`, each `(D,)` and float64, from rows `(N, D)` of any type.

        They may be memory-mapped and many: make no copy of them all.
        """


@dataclass(frozen=True)
class Limits(Scaling):
    r"""Minimum and maximum to -1 and 1; a near-constant dimension is centred on zero."""

    def fit(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """From the smallest and the largest value of every dimension."""
        low, high = torch.stack([torch.stack(torch.aminmax(column)) for column in _columns(data)], 1)
        return self.between(low, high)

    @staticmethod
    def between(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """From the limits `(D,)` themselves."""
        constant = high - low < _NEARLY_CONSTANT
        scale = torch.where(constant, torch.ones_like(low), 2 / (high - low).clamp_min(_NEARLY_CONSTANT))
        return scale, -scale * (low + high) / 2


@dataclass(frozen=True)
class Standard(Scaling):
    """Zero mean and unit (sample) standard deviation."""

    def fit(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """From the mean and the standard deviation of every dimension."""
        correction = min(1, len(data) - 1)  # a single row is constant
        found = [torch.stack(torch.std_mean(column, correction=correction)) for column in _columns(data)]
        deviation, mean = torch.stack(found, 1)
        deviation = torch.where(deviation < _NEARLY_CONSTANT, torch.ones_like(deviation), deviation)
        return 1 / deviation, -mean / deviation


@dataclass(frozen=True)
class Quantile(Scaling):
    """A low and a high quantile to -1 and 1, so that a few outliers do not squeeze the rest.

    Attributes:
        low: Share of the data below -1.
        high: Share of the data below 1.

    Raises:
        ValueError: Shares that are not in order within [0, 1].
    """

    low: float = 0.01
    high: float = 0.99

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"Quantile got low={self.low} and high={self.high}, expected 0 <= low < high <= 1")

    def fit(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """The limits between these quantiles of every dimension."""
        shares = [self.low, self.high]
        bounds = [np.quantile(column.cpu().numpy(), shares, overwrite_input=True) for column in _columns(data)]
        low, high = torch.as_tensor(np.stack(bounds, 1), device=data.device)
        return Limits.between(low, high)


@dataclass(frozen=True)
class Pixels(Scaling):
    """Channels of 8-bit images by constants that need no data: 0 to 255 becomes `(x / 255 - mean) / deviation`.

    Attributes:
        mean: Of each channel in 0 to 1; one number serves all.
        deviation: Of each channel in 0 to 1; one number serves all.
    """

    mean: tuple[float, ...] = (0.5,)
    deviation: tuple[float, ...] = (0.5,)

    def fit(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """The constants, whatever the data.

        Raises:
            ValueError: Neither one constant nor one a channel.
        """
        if not {len(self.mean), len(self.deviation)} <= {1, data.shape[1]}:
            raise ValueError(
                f"Pixels got mean={self.mean} and deviation={self.deviation} for images of {data.shape[1]} channels, "
                "expected one number each, or one a channel"
            )
        mean, deviation = (_constants(data, v).expand(data.shape[1]) for v in (self.mean, self.deviation))
        return 1 / (255 * deviation), -mean / deviation


@dataclass(frozen=True)
class Unscaled(Scaling):
    """The data as they are."""

    def fit(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """One and zero."""
        return _constants(data, [1.0] * data.shape[1]), _constants(data, [0.0] * data.shape[1])


def _columns(data: Tensor) -> Iterator[Tensor]:
    """Copies `(N,)` of the columns of rows `(N, D)` in float64, each in the place of the one before."""
    whole = torch.empty(len(data), dtype=torch.float64, device=data.device)
    for column in range(data.shape[1]):
        for into, rows in zip(whole.split(_CHUNK), data.split(_CHUNK), strict=True):
            into.copy_(rows[:, column])
            relieve()
        yield whole


def _constants(data: Tensor, values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=data.device)


class Normaliser(nn.Module):
    """The affine map of one feature. Until it is fitted or loaded, its constants are NaN and its use is an error.

    Args:
        name: Of the feature, for messages.
        shape: Of the constants, which meet the last dimensions of the data: one row of a feature, the channels of an
            image, or one element of a set.
    """

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.name = name
        self.register_buffer("scale", torch.full(shape, torch.nan))
        self.register_buffer("offset", torch.full(shape, torch.nan))
        self.scale: Tensor
        self.offset: Tensor

    def fit(self, data: Tensor, scaling: Scaling) -> None:
        """Take the constants from data `(..., *shape)`."""
        scale, offset = scaling.fit(data.reshape(-1, self.scale.numel()))
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
                "call policy.fit(windows) before training and planning, or load a checkpoint that holds them"
            )

    def forward(self, x: Tensor) -> Tensor:
        """Data to normalised units."""
        x = x.to(self.scale.dtype)
        if x.ndim < self.scale.ndim + 4:
            return torch.addcmul(self.offset, x, self.scale)
        # A batch of images: one pass over rows of pixels takes a tenth of the time of one over their channels.
        scale, offset = self.scale.repeat(x.shape[-2]), self.offset.repeat(x.shape[-2])
        return torch.addcmul(offset, x.flatten(-2), scale).unflatten(-1, x.shape[-2:])

    def inverse(self, y: Tensor) -> Tensor:
        """Normalised units to data."""
        return (y - self.offset) / self.scale


__all__ = ["Limits", "Normaliser", "Pixels", "Quantile", "Scaling", "Standard", "Unscaled"]
