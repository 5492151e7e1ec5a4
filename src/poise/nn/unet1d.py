r"""The one-dimensional U-Net of Diffusion Policy (Chi et al. 2023, arXiv 2303.04137; after Janner et al. 2205.09991).

Convolutions run over the horizon. Every residual block is conditioned by FiLM (Perez et al. 2018, arXiv 1709.07871),

$$ h \leftarrow \gamma(c) \odot h + \beta(c), \qquad c = [\,\mathrm{embed}(\lambda),\ \text{tokens}\,], $$

or $h \leftarrow h + \beta(c)$ under `FiLM(scale=False)`. Under other conditionings c is the noise level alone: under
`Concatenate` the tokens are further channels of the plan, under `CrossAttention` each resolution attends to them.
With `FiLM` the tensors have the names and shapes of the published checkpoints, so that these can be imported.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from poise.nn.attention import Attend, Memory, Unattended
from poise.nn.conditioning import Conditioning, FiLM, attend
from poise.nn.convolution import Convolution, Upsample, frozen, row_by_row
from poise.nn.embeddings import Level, LogSnr
from poise.nn.spec import Network, NetworkSpec, building
from poise.typing import Actions, Times, Tokens

_FLAT = 40.0  # from here on Mish is x, and up to here its square of an exponential is a float32


@dataclass(frozen=True)
class UNet1D(NetworkSpec):
    """U-Net over the horizon; every conditioning fits.

    The defaults are the compact size; channels (256, 512, 1024) and an embedding of 256 are the published one.

    Attributes:
        channels: Channels of each resolution; each next one halves the horizon.
        kernel: Odd width of the convolutions.
        groups: Groups of the group norm; divides every entry of `channels`.
        embedding: Even width of the embedding of the noise level.
        conditioning: Through which doors the observation enters.
        level: As what the network knows the noise level; `Steps` for networks of a published chain.

    Raises:
        ValueError: A number below 1, an even kernel, or channels that the groups do not divide.
    """

    channels: tuple[int, ...] = (64, 128, 256)
    kernel: int = 5
    groups: int = 8
    embedding: int = 128
    conditioning: Conditioning = FiLM()
    level: Level = LogSnr()

    def __post_init__(self) -> None:
        positive = min(*self.channels, self.groups, self.kernel, 1) == 1
        if not (self.channels and positive and self.kernel % 2) or any(c % self.groups for c in self.channels):
            raise ValueError(
                f"UNet1D got channels={self.channels}, groups={self.groups} and kernel={self.kernel}, expected "
                "positive channels that the groups divide, and an odd kernel: change the channels, the groups or the "
                "kernel"
            )

    def build(self, horizon: int, action: int, tokens: tuple[int, int]) -> Network:
        """The module for plans `(B, horizon, action)`.

        Raises:
            ValueError: A horizon that cannot be halved often enough, an odd embedding, or channels that the heads of
                the attention do not divide.
        """
        multiple = 2 ** (len(self.channels) - 1)
        if horizon % multiple:
            raise ValueError(
                f"UNet1D with {len(self.channels)} resolutions got horizon={horizon}, expected a multiple of "
                f"{multiple}: change the horizon or use fewer channels"
            )
        with building(self):
            return _UNet1D(self, action, tokens)


class _Prepared(NamedTuple):
    entrance: Tensor  # what stands beside every step of the plan, (B, 0 or N D)
    film: Tensor  # what the observation and the biases add to all scales and biases
    level: Tensor  # the matrix that maps the noise level to the rest
    memories: list[Memory | None]  # what each resolution attends to


class _Mish(torch.autograd.Function):
    r"""Mish with its slope, $$ x \tanh(\ln(1 + e^x)), $$ both by one exponential.

    With $n = e^x (e^x + 2)$ the hyperbolic tangent is $n / (n + 2)$. On a CPU PyTorch's own takes about three times as
    long.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        exact = x.to(torch.promote_types(x.dtype, torch.float32))  # tests have more
        e = exact.clamp(max=_FLAT).exp_()
        n = (e + 2).mul_(e)
        inverse = (n + 2).reciprocal_()
        change = e.neg_().add_(n).mul_(inverse).mul_(inverse)  # of the tangent, a quarter
        tanh = n.mul_(inverse)
        ctx.save_for_backward(torch.addcmul(tanh, change, exact, value=4).to(x.dtype))
        return tanh.mul_(exact).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (slope,), (g,) = ctx.saved_tensors, gradients
        return g * slope


class _ConvBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, spec: UNet1D) -> None:
        super().__init__()
        self.block = nn.Sequential(
            Convolution(inputs, outputs, spec.kernel),
            nn.GroupNorm(spec.groups, outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        convolution, norm = self.block
        assert isinstance(norm, nn.GroupNorm)
        x = convolution(x)
        if row_by_row(self, x):  # which PyTorch's norm takes as they lie where there is a dimension more
            x = torch.group_norm(x[:, :, None], norm.num_groups, norm.weight, norm.bias, norm.eps)[:, :, 0]
        else:
            x = torch.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
        slow = self.training and x.device.type == "cpu" and not torch.compiler.is_compiling()
        return _Mish.apply(x) if slow else functional.mish(x)


class _ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, condition: int, spec: UNet1D) -> None:
        super().__init__()
        self.conv1 = _ConvBlock(inputs, outputs, spec)
        self.conv2 = _ConvBlock(outputs, outputs, spec)
        self.scaled = spec.conditioning.doors.scale
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(condition, (1 + self.scaled) * outputs))
        self.residual_conv = Convolution(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def film(self) -> nn.Linear:
        """The layer that maps the condition to scale and bias, or to the bias."""
        layer = self.cond_encoder[1]
        assert isinstance(layer, nn.Linear)
        return layer

    def forward(self, x: Tensor, films: Iterator[Tensor]) -> Tensor:
        scale = next(films) if self.scaled else None
        bias, h = next(films), self.conv1(x)
        h = h + bias if scale is None else torch.addcmul(bias, scale, h)
        return self.conv2(h) + self.residual_conv(x)


class _Stage(nn.ModuleList):
    """Two residual blocks, a change of resolution and, before it, attention: the first three under published names."""

    def __init__(self, blocks: tuple[nn.Module, nn.Module], resample: nn.Module, attend: nn.Module) -> None:
        super().__init__([*blocks, resample, attend])

    def forward(self, x: Tensor, films: Iterator[Tensor], memories: Iterator[Memory | None]) -> tuple[Tensor, Tensor]:
        """The features before and after the change of resolution."""
        first, second, resample, attend = self
        x = second(first(x, films), films)
        x = attend(x.transpose(1, 2), next(memories)).transpose(1, 2)
        return x, resample(x)


def _joined(h: Tensor, skip: Tensor, by_rows: bool) -> Tensor:
    """The channels of both, in memory as they were."""
    if not by_rows:
        return torch.cat([h, skip], 1)
    return torch.cat([h.transpose(1, 2), skip.transpose(1, 2)], 2).transpose(1, 2)


class _UNet1D(Network):
    def __init__(self, spec: UNet1D, action: int, tokens: tuple[int, int]) -> None:
        super().__init__()
        self.embedding, channels, doors = spec.embedding, spec.channels, spec.conditioning.doors
        self.entering, joining = (tokens[0] * tokens[1] * door for door in (doors.entrance, doors.modulation))
        self.joining = joining

        def block(inputs: int, outputs: int) -> _ResidualBlock:
            return _ResidualBlock(inputs, outputs, spec.embedding + joining, spec)

        def stage(inputs: int, outputs: int, resample: nn.Module) -> _Stage:
            return _Stage((block(inputs, outputs), block(outputs, outputs)), resample, attend(doors, outputs, tokens))

        self.diffusion_step_encoder = nn.Sequential(
            spec.level.build(spec.embedding),
            nn.Linear(spec.embedding, 4 * spec.embedding),
            nn.Mish(),
            nn.Linear(4 * spec.embedding, spec.embedding),
        )
        self.down_modules = nn.ModuleList()
        for inputs, outputs in zip((action + self.entering, *channels), channels, strict=False):
            deepest = len(self.down_modules) == len(channels) - 1
            down = nn.Identity() if deepest else Convolution(outputs, outputs, 3, stride=2)
            self.down_modules.append(stage(inputs, outputs, down))
        self.mid_modules = nn.ModuleList(block(channels[-1], channels[-1]) for _ in range(2))
        self.up_modules = nn.ModuleList()
        for outputs, inputs in reversed(list(zip(channels, channels[1:], strict=False))):
            self.up_modules.append(stage(2 * inputs, outputs, Upsample(outputs)))
        self.final_conv = nn.Sequential(_ConvBlock(channels[0], channels[0], spec), Convolution(channels[0], action, 1))
        self._films = [m.film() for m in self.modules() if isinstance(m, _ResidualBlock)]
        parts = 1 + doors.scale
        self._widths = [layer.out_features // parts for layer in self._films for _ in range(parts)]
        self._attends = [m for m in self.modules() if isinstance(m, Attend | Unattended)]

    def prepare(self, tokens: Tokens) -> _Prepared:
        """Of all scales and biases what the observation adds, and the keys and values of all attention."""
        flat = tokens.flatten(1)
        biases = torch.cat([layer.bias for layer in self._films])
        level_part, observation_part = self._film_weights()
        film = functional.linear(functional.mish(flat[:, : self.joining]), observation_part, biases)
        memories = [attend.prepare(tokens) for attend in self._attends]
        return _Prepared(flat[:, : self.entering], film, level_part.t(), memories)

    def _film_weights(self) -> tuple[Tensor, Tensor]:
        """The matrices that map the noise level, and the observation, to all scales and biases."""
        # Contiguous: of views of frozen matrices PyTorch 2.13's templates computed other numbers on two threads.
        parts = [layer.weight.split([self.embedding, self.joining], dim=1) for layer in self._films]
        return torch.cat([level for level, _ in parts]), torch.cat([observation for _, observation in parts])

    def forward(self, x: Actions, log_snr: Times, prepared: _Prepared) -> Actions:
        level = functional.mish(self.diffusion_step_encoder(log_snr))
        if frozen(self):
            film = prepared.film + functional.linear(level, self._film_weights()[0])
        else:
            film = torch.addmm(prepared.film, level, prepared.level)
        films, memories = iter(film[..., None].split(self._widths, dim=1)), iter(prepared.memories)
        entrance = prepared.entrance[:, None].expand(-1, x.shape[1], -1)
        h, skips = torch.cat([x, entrance], dim=2).transpose(1, 2), []
        for stage in self.down_modules:
            skip, h = stage(h, films, memories)
            skips.append(skip)
        for block in self.mid_modules:
            h = block(h, films)
        for stage in self.up_modules:
            h = stage(_joined(h, skips.pop(), row_by_row(self, h)), films, memories)[1]
        return self.final_conv(h).transpose(1, 2)


__all__ = ["UNet1D"]
