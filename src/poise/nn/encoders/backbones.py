"""Image backbones: images `(B, C, H, W)` to feature maps `(B, channels, h, w)`.

Normalisations here treat each image by itself, or with fixed statistics: a plan must not depend on the other robots in
the batch, and statistics of a batch do not survive the averaging of weights.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

_EPSILON = 1e-5


class Trunk(nn.Module):
    """A backbone that is built: images to feature maps.

    Args:
        module: Images `(B, C, H, W)` to maps `(B, channels, h, w)`, or to a list of which they are the last. Its
            tensors have the names of the published weights.
        channels: Channels of the maps.
        last: The module gives maps with channels last, `(B, h, w, channels)`.
    """

    def __init__(self, module: nn.Module, channels: int, last: bool = False) -> None:
        super().__init__()
        # Images arrive with channels last: weights laid out alike spare a copy of either.
        self.module, self.channels = module.to(memory_format=torch.channels_last), channels  # pyright: ignore
        self.last = last

    def forward(self, images: Tensor) -> Tensor:
        """Feature maps of images."""
        maps = self.module(images)
        maps = maps[-1] if isinstance(maps, Sequence) else maps
        return maps.permute(0, 3, 1, 2) if self.last else maps


@dataclass(frozen=True)
class Backbone(ABC):
    """Hyper-parameters of an image backbone."""

    @abstractmethod
    def build(self, channels: int) -> Trunk:
        """The module for images of so many channels."""


@dataclass(frozen=True)
class Norm(ABC):
    """A normalisation of feature maps, with a factor and an offset a channel named `weight` and `bias`."""

    @abstractmethod
    def build(self, channels: int) -> nn.Module:
        """The module for maps of so many channels."""


@dataclass(frozen=True)
class GroupNorm(Norm):
    """Groups of channels, each with mean 0 and variance 1 over an image (Wu and He 2018, arXiv 1803.08494).

    Attributes:
        size: Channels a group; 16 as in Diffusion Policy (Chi et al. 2023, arXiv 2303.04137).

    Raises:
        ValueError: On `build`: channels that are no multiple of the size.
    """

    size: int = 16

    def build(self, channels: int) -> nn.Module:
        """The module for maps of so many channels."""
        if self.size < 1 or channels % self.size:
            raise ValueError(
                f"GroupNorm got size={self.size} for {channels} channels, expected a divisor of them: choose "
                "GroupNorm(size=...) that divides the channels of every layer, or channels that are its multiples"
            )
        return nn.GroupNorm(channels // self.size, channels, _EPSILON)


@dataclass(frozen=True)
class FrozenBatchNorm(Norm):
    r"""Batch normalisation with the statistics that came with the weights, never updated.

    $$ y = \frac{x - \mu}{\sqrt{\sigma^2 + 10^{-5}}}\, w + b. $$

    The choice for published weights that stay frozen, as they were trained with these statistics. Without weights it
    does nothing but scale.
    """

    def build(self, channels: int) -> nn.Module:
        """The module for maps of so many channels."""
        return _FrozenBatchNorm(channels)


class _FrozenBatchNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.running_mean: Tensor
        self.running_var: Tensor

    def forward(self, maps: Tensor) -> Tensor:
        return functional.batch_norm(
            maps, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=_EPSILON
        )


@dataclass(frozen=True)
class SmallCNN(Backbone):
    """Strided 3 x 3 convolutions with group norm: for training from pixels on a few CPU cores.

    Attributes:
        channels: Channels of each convolution; each halves height and width.
        norm: Normalisation.
    """

    channels: tuple[int, ...] = (32, 64, 128, 256)
    norm: Norm = GroupNorm()

    def __post_init__(self) -> None:
        if not self.channels or min(self.channels) < 1:
            raise ValueError(f"SmallCNN got channels={self.channels}, expected at least one positive number")

    def build(self, channels: int) -> Trunk:
        """The module for images of so many channels."""
        layers: list[nn.Module] = []
        for inputs, outputs in zip((channels, *self.channels), self.channels, strict=False):
            layers += [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), self.norm.build(outputs), nn.ReLU(inplace=True)]
        return Trunk(nn.Sequential(*layers), self.channels[-1])


__all__ = ["Backbone", "FrozenBatchNorm", "GroupNorm", "Norm", "SmallCNN", "Trunk"]
