"""Augmentation of images: random in training, fixed at run time, on the device and in one batch.

To add one, write what it does to the size of an image, to a training batch and at run time.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from poise.draws import Draws

Image = tuple[int, int, int]
"""`(height, width, channels)`."""

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass(frozen=True)
class Augmentation(ABC):
    """A change of the images of one or several cameras.

    Attributes:
        features: Names of the cameras; none means all.
    """

    features: tuple[str, ...] = ()

    @abstractmethod
    def size(self, image: Image) -> Image:
        """The size of an image afterwards.

        Raises:
            ValueError: An image that it cannot be applied to.
        """

    @abstractmethod
    def train(self, images: Tensor, draws: Draws) -> Tensor:
        """Changed images `(B, history, H, W, C)`, with one draw a sample, common to its history."""

    @abstractmethod
    def run(self, images: Tensor) -> Tensor:
        """Images as the policy sees them at run time."""

    def applies(self, name: str) -> bool:
        """Whether the camera of that name is meant."""
        return not self.features or name in self.features

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise unless every named feature is an image.

        Raises:
            ValueError: Names the feature that is none.
        """
        cameras = sorted(name for name, shape in shapes.items() if len(shape) == 3)
        wrong = sorted(set(self.features) - set(cameras))
        if wrong or not cameras:
            raise ValueError(
                f"{type(self).__name__} got the features {wrong or 'of all cameras'}, expected some of the images "
                f"{cameras}: an image is a feature of shape (height, width, channels)"
            )


@dataclass(frozen=True)
class Crop(Augmentation):
    """A window of every image: at a random place in training, in the centre at run time.

    The positions that a network reads off an image then vary in training (Mandlekar et al. 2021, arXiv 2108.03298).

    Attributes:
        height: Of the window, in pixels.
        width: Of the window, in pixels.
    """

    height: int = 84
    width: int = 84

    def size(self, image: Image) -> Image:
        """The window's."""
        if not (1 <= self.height <= image[0] and 1 <= self.width <= image[1]):
            raise ValueError(
                f"Crop got a window of {self.height} x {self.width} for images of {image[0]} x {image[1]} pixels, "
                "expected one that fits: choose a smaller window, or name the cameras in `features`"
            )
        return self.height, self.width, image[2]

    def train(self, images: Tensor, draws: Draws) -> Tensor:
        """Windows at random places."""
        batch, _, height, width, channels = images.shape
        top, left = (
            draws.integers(whole - part + 1, batch).to(images.device)
            for whole, part in ((height, self.height), (width, self.width))
        )
        # All windows are views of the rows of numbers, of which one a sample is copied.
        rows = images.flatten(3).unfold(2, self.height, 1).unfold(3, channels * self.width, channels)
        cut = rows[torch.arange(batch, device=images.device), :, top, left]
        return cut.unflatten(-1, (self.width, channels))

    def run(self, images: Tensor) -> Tensor:
        """The window in the centre."""
        top, left = (images.shape[2] - self.height) // 2, (images.shape[3] - self.width) // 2
        return images[:, :, top : top + self.height, left : left + self.width]


@dataclass(frozen=True)
class ColourJitter(Augmentation):
    r"""Random brightness, contrast, saturation and hue of RGB images in 0 to 255, as one affine map of the colours.

    $$ x \leftarrow b\,\big[c\, R_h S_s\, x + (1 - c)\, \bar{y}\big], \qquad S_s = s I + (1 - s)\, \mathbf 1 w^\top, $$

    with w the weights of luma, y its mean over the image, and R a rotation about the grey axis. Each of b, c, s is
    drawn uniformly from one plus or minus its strength, the angle of R from plus or minus 2 pi times `hue`.

    Attributes:
        brightness: Strength, 0 to 1.
        contrast: Strength, 0 to 1.
        saturation: Strength, 0 to 1.
        hue: Strength, 0 to 0.5, in turns.
    """

    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.3
    hue: float = 0.02

    def size(self, image: Image) -> Image:
        """Unchanged."""
        if image[2] != 3:
            raise ValueError(
                f"ColourJitter got images of {image[2]} channels, expected 3 (RGB): name the colour cameras in "
                "`features`"
            )
        return image

    def train(self, images: Tensor, draws: Draws) -> Tensor:
        """One draw of colours a sample."""
        strengths = torch.tensor((self.brightness, self.contrast, self.saturation, self.hue), device=images.device)
        draw = 2 * draws.uniform(len(images), 4).to(images.device) - 1
        brightness, contrast, saturation, hue = (draw * strengths).T[..., None, None]
        luma, identity = torch.tensor(_LUMA, device=images.device), torch.eye(3, device=images.device)
        saturate = (1 + saturation) * identity - saturation * luma.expand(3, 3)
        colours = (1 + brightness) * (1 + contrast) * (_about_grey(2 * math.pi * hue, identity) @ saturate)
        x = images.float()
        grey = (x.mean((1, 2, 3)) @ luma)[:, None, None]
        offset = -(1 + brightness) * contrast * grey
        changed = torch.baddbmm(offset, x.flatten(1, 3), colours.transpose(1, 2)).reshape(x.shape)
        return changed.clamp(0, 255)

    def run(self, images: Tensor) -> Tensor:
        """Unchanged."""
        return images


def _about_grey(angle: Tensor, identity: Tensor) -> Tensor:
    """Rotations of colours about the axis (1, 1, 1), by Rodrigues' formula, for angles `(B, 1, 1)`."""
    cross = (identity.roll(1, 0) - identity.roll(1, 1)) / math.sqrt(3)
    grey = torch.full_like(identity, 1 / 3)
    return grey + angle.cos() * (identity - grey) + angle.sin() * cross


__all__ = ["Augmentation", "ColourJitter", "Crop", "Image"]
