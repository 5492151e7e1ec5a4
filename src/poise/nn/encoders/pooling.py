"""Poolings: feature maps `(B, channels, h, w)` of any size to one vector an image."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class Pooled(nn.Module, ABC):
    """Feature maps `(B, channels, h, w)` to `(B, features)`, for any height and width.

    Attributes:
        features: Numbers an image.
    """

    features: int

    @abstractmethod
    def forward(self, maps: Tensor) -> Tensor:
        """One vector an image."""


@dataclass(frozen=True)
class Pooling(ABC):
    """What turns feature maps of any size into a vector."""

    @abstractmethod
    def build(self, channels: int) -> Pooled:
        """The module for maps of so many channels."""


def spatial_softmax(maps: Tensor) -> Tensor:
    r"""Where each map is high: expected coordinates under its softmax (Finn et al. 2016, arXiv 1509.06113).

    $$ p_{ij} = \frac{e^{m_{ij}}}{\sum_{kl} e^{m_{kl}}}, \qquad
       (x, y) = \sum_{ij} p_{ij} \left(\frac{2 j}{w - 1} - 1,\; \frac{2 i}{h - 1} - 1\right). $$

    Args:
        maps: `(B, K, h, w)`.

    Returns:
        `(B, K, 2)`: x to the right and y downwards, from -1 at the first pixel to 1 at the last; 0 if there is but one.
    """
    weights = maps.flatten(2).softmax(-1).unflatten(-1, maps.shape[-2:])
    x = (weights.sum(-2) * _coordinates(maps.shape[-1], weights)).sum(-1)
    y = (weights.sum(-1) * _coordinates(maps.shape[-2], weights)).sum(-1)
    return torch.stack([x, y], -1)


def _coordinates(count: int, like: Tensor) -> Tensor:
    pixels = torch.arange(count, dtype=like.dtype, device=like.device)
    return (2 * pixels - (count - 1)) / max(count - 1, 1)


@dataclass(frozen=True)
class SpatialSoftmax(Pooling):
    """Coordinates of learned keypoints; see `spatial_softmax`. What a robot needs most: where things are.

    Attributes:
        keypoints: Number of keypoints; each has a map that a 1 x 1 convolution makes of the backbone's.

    Raises:
        ValueError: No keypoint; when called, maps of one pixel, all of whose coordinates are 0.
    """

    keypoints: int = 32

    def __post_init__(self) -> None:
        if self.keypoints < 1:
            raise ValueError(f"SpatialSoftmax got keypoints={self.keypoints}, expected at least 1")

    def build(self, channels: int) -> Pooled:
        """The module for maps of so many channels."""
        return _SpatialSoftmax(self, channels)


class _SpatialSoftmax(Pooled):
    def __init__(self, spec: SpatialSoftmax, channels: int) -> None:
        super().__init__()
        self.features = 2 * spec.keypoints
        # An offset would not change a softmax.
        self.keypoints = nn.Conv2d(channels, spec.keypoints, 1, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        if maps.shape[-2:] == (1, 1):
            raise ValueError(
                "SpatialSoftmax got feature maps of 1 x 1 pixels, which have no coordinates: "
                "give larger images, a backbone with fewer strides, or AveragePool()"
            )
        return spatial_softmax(self.keypoints(maps)).flatten(1)


@dataclass(frozen=True)
class AveragePool(Pooling):
    """The mean of each map."""

    def build(self, channels: int) -> Pooled:
        """The module for maps of so many channels."""
        return _AveragePool(channels)


class _AveragePool(Pooled):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.features = channels

    def forward(self, maps: Tensor) -> Tensor:
        return maps.mean((2, 3))


__all__ = ["AveragePool", "Pooled", "Pooling", "SpatialSoftmax", "spatial_softmax"]
