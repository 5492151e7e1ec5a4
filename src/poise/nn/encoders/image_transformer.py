"""The encoder of images by attention over patches (ViT)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from poise.nn.attention import check_heads
from poise.nn.encoders.features import common_channels, only_images
from poise.nn.encoders.layers import self_attention
from poise.nn.spec import Encoder, EncoderSpec
from poise.typing import Observation, Tokens

_FINEST = 1e4  # longest wave over shortest


@dataclass(frozen=True)
class ImageTransformer(EncoderSpec):
    r"""A vision transformer (Dosovitskiy et al. 2020, arXiv 2010.11929): each image is cut into patches, which attend.

    A patch in row i and column j is embedded linearly and given its place, half of the units for each direction,

    $$ \big(\sin \omega_k i, \cos \omega_k i, \sin \omega_k j, \cos \omega_k j\big)_k, \qquad
       \omega_k = 10000^{-k / n}, \quad n = \mathrm{width} / 4, $$

    so cameras of different sizes share all weights; only a learned vector a camera tells them apart. Tokens are those
    of the oldest step first, then by the cameras' names, then by rows.

    Attributes:
        patch: Height and width of a patch, in pixels.
        width: Units of a token.
        depth: Number of layers.
        heads: Attention heads.
        pooled: One token an image, which attends to its patches; otherwise every patch is a token.

    Raises:
        ValueError: A width that is no multiple of the heads or of four; on `build`: a low-dimensional feature, images
            of different numbers of channels, or of a size that is no multiple of the patch.
    """

    patch: int = 12
    width: int = 128
    depth: int = 4
    heads: int = 4
    pooled: bool = True

    def __post_init__(self) -> None:
        check_heads("ImageTransformer", self.width, self.heads)
        if self.width % 4 or self.patch < 1:
            raise ValueError(
                f"ImageTransformer got width={self.width} and patch={self.patch}, expected a width that is "
                "a multiple of 4, for a sine and a cosine in two directions, and a patch of at least 1 pixel: change "
                "the one that is not"
            )

    def build(self, shapes: Mapping[str, tuple[int, ...]], history: int) -> Encoder:
        """The module for the named images."""
        images = only_images("ImageTransformer", shapes)
        for name, (height, width, _) in images.items():
            if height % self.patch or width % self.patch:
                raise ValueError(
                    f"ImageTransformer got image {name!r} of {height} x {width} pixels, expected multiples of "
                    f"patch={self.patch}: crop the image, or choose a patch that divides {math.gcd(height, width)}"
                )
        channels = common_channels("ImageTransformer", images, "leave one out, or encode it by a CNN(shared=False)")
        return _ImageTransformer(self, images, channels, history)


class _ImageTransformer(Encoder):
    def __init__(
        self, spec: ImageTransformer, images: Mapping[str, tuple[int, int, int]], channels: int, history: int
    ) -> None:
        super().__init__()
        self.names, self.pooled = list(images), spec.pooled
        patches = [height // spec.patch * (width // spec.patch) for height, width, _ in images.values()]
        self.tokens = (history * (len(images) if spec.pooled else sum(patches)), spec.width)
        self.embed = nn.Conv2d(channels, spec.width, spec.patch, spec.patch)
        self.cameras = nn.Parameter(0.02 * torch.randn(len(images), spec.width))
        if spec.pooled:
            self.summary = nn.Parameter(0.02 * torch.randn(spec.width))
        self.attend = self_attention(spec.width, spec.depth, spec.heads)

    def forward(self, observation: Observation) -> Tokens:
        seen = [
            self._see(observation[name].flatten(0, 1), camera).unflatten(0, observation[name].shape[:2])
            for name, camera in zip(self.names, self.cameras, strict=True)
        ]
        return torch.cat(seen, 2).flatten(1, 2)

    def _see(self, images: Tensor, camera: Tensor) -> Tensor:
        maps = self.embed(images.permute(0, 3, 1, 2))
        h = (maps + places(maps)).flatten(2).mT + camera
        if self.pooled:
            h = torch.cat([(self.summary + camera).expand(h.shape[0], 1, -1), h], 1)
        h = self.attend(h)
        return h[:, :1] if self.pooled else h


def places(maps: Tensor) -> Tensor:
    """Sines and cosines of row and column, `(width, h, w)`, for maps `(B, width, h, w)`."""
    quarter, (rows, columns) = maps.shape[1] // 4, maps.shape[-2:]
    steps = torch.arange(max(rows, columns, quarter), dtype=torch.float32, device=maps.device)
    angles = _FINEST ** (-steps[:quarter, None] / quarter) * steps
    waves = torch.cat([angles.sin(), angles.cos()])
    shape = (2 * quarter, rows, columns)
    return torch.cat([waves[:, :rows, None].expand(shape), waves[:, None, :columns].expand(shape)]).to(maps.dtype)


__all__ = ["ImageTransformer", "places"]
