"""Residual networks for images, with the tensor names of torchvision, so that its weights load."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from poise.nn.encoders.backbones import Backbone, GroupNorm, Norm, Trunk

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
_WIDTHS = (64, 128, 256, 512)


@dataclass(frozen=True)
class ResNet(Backbone):
    r"""ResNet-18 or ResNet-34 without its classifier (He et al. 2015, arXiv 1512.03385).

    Every block of two convolutions adds to what it is given,

    $$ h \leftarrow \mathrm{ReLU}\big(P h + N_2 W_2\, \mathrm{ReLU}(N_1 W_1 h)\big), $$

    with 3 x 3 convolutions W, norms N, and P the identity, or a strided 1 x 1 convolution where the size changes. Maps
    have 512 channels and a 32nd of the height and width of the image.

    Attributes:
        depth: 18 or 34.
        norm: Normalisation; the published weights of batch norms load into either kind.

    Raises:
        ValueError: Another depth.
    """

    depth: int = 18
    norm: Norm = GroupNorm()

    def __post_init__(self) -> None:
        if self.depth not in _BLOCKS:
            raise ValueError(
                f"ResNet got depth={self.depth}, expected one of {sorted(_BLOCKS)}: take one of them, or another "
                f"network as Timm({f'resnet{self.depth}'!r})"
            )

    def build(self, channels: int) -> Trunk:
        """The module for images of so many channels."""
        return Trunk(_ResNet(channels, _BLOCKS[self.depth], self.norm), _WIDTHS[-1])


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = norm.build(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = norm.build(outputs)
        same = inputs == outputs and stride == 1
        self.downsample = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm.build(outputs))
        )

    def forward(self, h: Tensor) -> Tensor:
        inner = functional.relu(self.bn1(self.conv1(h)))
        return functional.relu(self.bn2(self.conv2(inner)) + self.downsample(h))


class _ResNet(nn.Module):
    def __init__(self, channels: int, blocks: tuple[int, ...], norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, _WIDTHS[0], 7, 2, 3, bias=False)
        self.bn1 = norm.build(_WIDTHS[0])
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(*(_Block(*size, norm) for size in _sizes(stage, count))) for stage, count in enumerate(blocks)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        h = functional.relu(self.bn1(self.conv1(images)))
        h = functional.max_pool2d(h, 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(h))))


def _sizes(stage: int, blocks: int) -> list[tuple[int, int, int]]:
    """Inputs, outputs and stride of the blocks of a stage: only the first changes the size, and not in stage 0."""
    inputs, outputs, stride = _WIDTHS[max(stage - 1, 0)], _WIDTHS[stage], 2 if stage else 1
    return [(inputs, outputs, stride)] + [(outputs, outputs, 1)] * (blocks - 1)


__all__ = ["ResNet"]
