"""The encoder of images by convolutions: one token a camera and history step."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from poise.nn.encoders.backbones import Backbone
from poise.nn.encoders.features import common_channels, only_images
from poise.nn.encoders.pooling import Pooling, SpatialSoftmax
from poise.nn.encoders.resnet import ResNet
from poise.nn.spec import Encoder, EncoderSpec
from poise.typing import Observation, Tokens

_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, for pixels in [0, 1]


@dataclass(frozen=True)
class CNN(EncoderSpec):
    """Backbone, pooling and a linear layer: a token for each camera and history step.

    The tokens are those of the oldest step first, and within a step in the order of the cameras' names. Cameras may
    have different sizes. By default this is the encoder of Diffusion Policy (Chi et al. 2023, arXiv 2303.04137), but
    for the ReLU that its code puts after the linear layer (`relu`); for a few CPU cores take `SmallCNN()`.

    Attributes:
        backbone: Images to feature maps.
        pooling: Feature maps to a vector.
        width: Units of a token; None leaves out the linear layer, so that a token is what the pooling gives.
        shared: One set of weights for all cameras; otherwise one each.
        frozen: The backbone keeps the weights that it has, without a gradient and always in evaluation mode; see
            `load_backbone`.
        relu: A ReLU after the linear layer, as in the published code.
        imagenet: Hand the backbone images as weights trained on ImageNet expect them: less the mean of ImageNet, in
            units of its standard deviation, of each colour. Otherwise it gets them as they arrive, in [-1, 1].

    Raises:
        ValueError: A width below 1; on `build`: a low-dimensional feature, an image that is too small for the backbone,
            images of different numbers of channels for shared weights, or of other than three with `imagenet`.
    """

    backbone: Backbone = ResNet()
    pooling: Pooling = SpatialSoftmax()
    width: int | None = 64
    shared: bool = True
    frozen: bool = False
    relu: bool = False
    imagenet: bool = False

    def __post_init__(self) -> None:
        if self.width is not None and self.width < 1:
            raise ValueError(
                f"CNN got width={self.width}, expected at least 1 unit a token, or None for the pooled ones"
            )

    def build(self, shapes: Mapping[str, tuple[int, ...]], history: int) -> Encoder:
        """The module for the named images."""
        images = only_images("CNN", shapes)
        if self.shared:
            common_channels("CNN(shared=True)", images, "use shared=False")
        for name, (_, _, channels) in images.items():
            if self.imagenet and channels != 3:
                raise ValueError(f"CNN(imagenet=True) got image {name!r} of {channels} channels, expected 3")
        return _CNN(self, images, history)


class _CNN(Encoder):
    def __init__(self, spec: CNN, images: Mapping[str, tuple[int, int, int]], history: int) -> None:
        super().__init__()
        self.names = list(images)
        eyes = [_Eye(spec, images[name][2]) for name in (self.names[:1] if spec.shared else self.names)]
        self.tokens, self.eyes = (history * len(images), eyes[0].width), nn.ModuleList(eyes)
        for name, eye in self._pairs():
            _try(eye, name, images[name])

    def _pairs(self) -> list[tuple[str, nn.Module]]:
        eyes = list(self.eyes) * (len(self.names) // len(self.eyes))
        return list(zip(self.names, eyes, strict=True))

    def forward(self, observation: Observation) -> Tokens:
        seen = [
            eye(observation[name].flatten(0, 1)).unflatten(0, observation[name].shape[:2])
            for name, eye in self._pairs()
        ]
        return torch.stack(seen, 2).flatten(1, 2)


class _Eye(nn.Module):
    """Images `(B, H, W, C)` to tokens `(B, width)`."""

    def __init__(self, spec: CNN, channels: int) -> None:
        super().__init__()
        self.frozen = spec.frozen
        self.trunk = spec.backbone.build(channels).requires_grad_(not spec.frozen)
        self.pool = spec.pooling.build(self.trunk.channels)
        self.width = spec.width or self.pool.features
        self.project = nn.Identity() if spec.width is None else nn.Linear(self.pool.features, spec.width)
        self.relu = nn.ReLU() if spec.relu else nn.Identity()
        self.colours = _ImageNet() if spec.imagenet else nn.Identity()

    def train(self, mode: bool = True) -> "_Eye":
        super().train(mode)
        self.trunk.train(mode and not self.frozen)
        return self

    def forward(self, images: Tensor) -> Tensor:
        # A permuted view: in memory the channels stay last, which convolutions like.
        return self.relu(self.project(self.pool(self.trunk(self.colours(images).permute(0, 3, 1, 2)))))


class _ImageNet(nn.Module):
    """From pixels in [-1, 1] to the units of ImageNet."""

    def __init__(self) -> None:
        super().__init__()
        scale = [0.5 / deviation for deviation in _DEVIATION]
        shift = [(0.5 - mean) / deviation for mean, deviation in zip(_MEAN, _DEVIATION, strict=True)]
        self.register_buffer("scale", torch.tensor(scale), persistent=False)
        self.register_buffer("shift", torch.tensor(shift), persistent=False)
        self.scale: Tensor
        self.shift: Tensor

    def forward(self, images: Tensor) -> Tensor:
        return torch.addcmul(self.shift, images, self.scale)


def _try(eye: nn.Module, name: str, shape: tuple[int, int, int]) -> None:
    """Refuse images that the backbone cannot take when the encoder is built, not when the robot moves."""
    training = eye.training
    try:
        with torch.no_grad():
            eye.eval()(torch.zeros(1, *shape))
    except (ValueError, RuntimeError, AssertionError) as error:
        raise ValueError(
            f"CNN got image {name!r} of shape {shape}, which its backbone does not take: {error}"
        ) from error
    eye.train(training)


__all__ = ["CNN"]
