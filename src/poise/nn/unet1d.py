r"""The one-dimensional U-Net of Diffusion Policy (Chi et al. 2023, arXiv 2303.04137; after Janner et al. 2205.09991).

Convolutions run over the horizon. Every residual block is conditioned by FiLM (Perez et al. 2018, arXiv 1709.07871),

$$ h \leftarrow \gamma(c) \odot h + \beta(c), \qquad c = [\,\mathrm{embed}(\lambda),\ \text{tokens}\,]. $$

The tensors have the names and shapes of the published checkpoints, so that these can be imported.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from poise.nn.embeddings import Sinusoidal
from poise.nn.spec import Network, NetworkSpec
from poise.typing import Actions, Times, Tokens

_FEW = 8  # samples: up to here matrix products beat the convolution of PyTorch
_PART = 16  # outputs of one product


@dataclass(frozen=True)
class UNet1D(NetworkSpec):
    """U-Net over the horizon with FiLM; the defaults are the compact size, (256, 512, 1024) is the published one.

    Attributes:
        channels: Channels of each resolution; each next one halves the horizon.
        kernel: Odd width of the convolutions.
        groups: Groups of the group norm; divides every entry of `channels`.
        embedding: Even width of the embedding of the noise level.
    """

    channels: tuple[int, ...] = (64, 128, 256)
    kernel: int = 5
    groups: int = 8
    embedding: int = 128

    def build(self, horizon: int, action: int, tokens: tuple[int, int]) -> Network:
        """The module for plans `(B, horizon, action)`.

        Raises:
            ValueError: A horizon that cannot be halved often enough.
        """
        multiple = 2 ** (len(self.channels) - 1)
        if horizon % multiple:
            raise ValueError(
                f"UNet1D with {len(self.channels)} resolutions got horizon={horizon}, expected a multiple of "
                f"{multiple}: change the horizon or use fewer channels"
            )
        return _UNet1D(self, action, tokens[0] * tokens[1])


class _Convolution(nn.Module):
    """A convolution over the horizon with zeros beyond its ends; its tensors are those of `nn.Conv1d`.

    A convolution is the product of its windows, as rows `(B L, C kernel)`, with the matrix of its weights. For a few
    short plans this takes a third to two thirds of the time of PyTorch's convolution, for a training batch more. The
    weights are cut into parts of `_PART` outputs, because PyTorch shares a batch of products out to its threads, but
    leaves a single one with few rows to one thread.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.weight, self.bias = nn.Conv1d(inputs, outputs, kernel).parameters()
        self.stride, self.padding = stride, kernel // 2
        self.parts = outputs // math.gcd(outputs, _PART)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > _FEW:
            return functional.conv1d(x, self.weight, self.bias, self.stride, self.padding)
        padded, (_, channels, kernel) = functional.pad(x, (self.padding, self.padding)), self.weight.shape
        windows = padded.unfold(2, kernel, self.stride).transpose(1, 2)
        rows, (batch, length) = windows.reshape(-1, channels * kernel), windows.shape[:2]
        weight, bias = self.weight.view(self.parts, -1, channels * kernel), self.bias.view(self.parts, 1, -1)
        y = torch.baddbmm(bias, rows.expand(self.parts, -1, -1), weight.transpose(1, 2))
        return y.view(self.parts, batch, length, -1).permute(1, 0, 3, 2).reshape(batch, -1, length)


class _ConvBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, spec: UNet1D) -> None:
        super().__init__()
        self.block = nn.Sequential(
            _Convolution(inputs, outputs, spec.kernel),
            nn.GroupNorm(spec.groups, outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        convolution, norm = self.block
        assert isinstance(norm, nn.GroupNorm)
        x = convolution(x)
        return functional.mish(torch.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps))


class _ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, condition: int, spec: UNet1D) -> None:
        super().__init__()
        self.conv1 = _ConvBlock(inputs, outputs, spec)
        self.conv2 = _ConvBlock(outputs, outputs, spec)
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(condition, 2 * outputs))
        self.residual_conv = _Convolution(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def film(self) -> nn.Linear:
        """The layer that maps the condition to scale and bias."""
        layer = self.cond_encoder[1]
        assert isinstance(layer, nn.Linear)
        return layer

    def forward(self, x: Tensor, films: Iterator[Tensor]) -> Tensor:
        scale, bias = next(films), next(films)
        return self.conv2(torch.addcmul(bias, scale, self.conv1(x))) + self.residual_conv(x)


class _Stage(nn.ModuleList):
    """Two residual blocks and a change of resolution, under the published names 0, 1 and 2."""

    def __init__(self, inputs: int, outputs: int, condition: int, spec: UNet1D, resample: nn.Module) -> None:
        super().__init__()
        for module in (
            _ResidualBlock(inputs, outputs, condition, spec),
            _ResidualBlock(outputs, outputs, condition, spec),
            resample,
        ):
            self.append(module)

    def forward(self, x: Tensor, films: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
        """The features before and after the change of resolution."""
        first, second, resample = self
        x = second(first(x, films), films)
        return x, resample(x)


class _UNet1D(Network):
    def __init__(self, spec: UNet1D, action: int, observation: int) -> None:
        super().__init__()
        self.embedding, channels = spec.embedding, spec.channels
        condition = spec.embedding + observation

        self.diffusion_step_encoder = nn.Sequential(
            Sinusoidal(spec.embedding),
            nn.Linear(spec.embedding, 4 * spec.embedding),
            nn.Mish(),
            nn.Linear(4 * spec.embedding, spec.embedding),
        )
        self.down_modules = nn.ModuleList()
        for i, (inputs, outputs) in enumerate(zip((action, *channels), channels, strict=False)):
            deepest = i == len(channels) - 1
            down = nn.Identity() if deepest else _Convolution(outputs, outputs, 3, stride=2)
            self.down_modules.append(_Stage(inputs, outputs, condition, spec, down))
        last = channels[-1]
        self.mid_modules = nn.ModuleList(_ResidualBlock(last, last, condition, spec) for _ in range(2))
        self.up_modules = nn.ModuleList()
        for outputs, inputs in reversed(list(zip(channels, channels[1:], strict=False))):
            up = nn.ConvTranspose1d(outputs, outputs, 4, stride=2, padding=1)
            self.up_modules.append(_Stage(2 * inputs, outputs, condition, spec, up))
        self.final_conv = nn.Sequential(
            _ConvBlock(channels[0], channels[0], spec), _Convolution(channels[0], action, 1)
        )
        self._films = [m.film() for m in self.modules() if isinstance(m, _ResidualBlock)]
        self._widths = [layer.out_features // 2 for layer in self._films for _ in range(2)]

    def prepare(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Of all scales and biases: what the observation adds, and the matrix that maps the level to the rest."""
        observation = functional.mish(tokens.flatten(1))
        weights = torch.cat([layer.weight for layer in self._films])
        biases = torch.cat([layer.bias for layer in self._films])
        level_part, observation_part = weights.split([self.embedding, weights.shape[1] - self.embedding], dim=1)
        return functional.linear(observation, observation_part, biases), level_part.t()

    def forward(self, x: Actions, log_snr: Times, prepared: tuple[Tensor, Tensor]) -> Actions:
        from_observation, level_part = prepared
        level = functional.mish(self.diffusion_step_encoder(log_snr))
        film = torch.addmm(from_observation, level, level_part)
        films = iter(film[..., None].split(self._widths, dim=1))
        h, skips = x.transpose(1, 2), []
        for stage in self.down_modules:
            skip, h = stage(h, films)
            skips.append(skip)
        for block in self.mid_modules:
            h = block(h, films)
        for stage in self.up_modules:
            h = stage(torch.cat([h, skips.pop()], dim=1), films)[1]
        return self.final_conv(h).transpose(1, 2)


__all__ = ["UNet1D"]
