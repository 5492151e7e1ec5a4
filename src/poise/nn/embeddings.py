"""Embeddings of scalars, and of the noise level as networks know it.

To add a way to know the noise level, write a `Level`: a frozen dataclass that builds a module of log-SNR.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from poise.schedules import Tabulated

_SNAP = 1e-3  # of a step: more than float32 log-SNR is off by, far less than a network tells apart


class Sinusoidal(nn.Module):
    r"""$(\sin \omega_1 p, \dots, \sin \omega_n p, \cos \omega_1 p, \dots, \cos \omega_n p)$, n = width / 2.

    The frequencies form a geometric sequence (Vaswani et al. 2017, arXiv 1706.03762). The defaults suit log
    signal-to-noise ratios, which span about [-7, 7]: the slowest wave is monotone on it, the fastest resolves 0.1.

    Args:
        width: Even number of outputs.
        low: Lowest frequency in radians a unit.
        high: Highest frequency in radians a unit.

    Raises:
        ValueError: A width that is odd or below 2.
    """

    def __init__(self, width: int, low: float = 0.1, high: float = 20.0) -> None:
        super().__init__()
        if width < 2 or width % 2:
            raise ValueError(
                f"Sinusoidal got width={width}, expected an even number of at least 2, for it holds pairs of sine and "
                "cosine: choose an even width of the embedding"
            )
        frequencies = torch.exp(torch.linspace(math.log(low), math.log(high), width // 2))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.frequencies: Tensor

    def forward(self, position: Tensor) -> Tensor:
        """Embed `(B,)` positions as `(B, width)`."""
        return _waves(position, self.frequencies)


def _waves(position: Tensor, frequencies: Tensor) -> Tensor:
    angle = position[:, None] * frequencies
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


@dataclass(frozen=True)
class Level(ABC):
    """As what a network knows the noise level."""

    @abstractmethod
    def build(self, width: int) -> nn.Module:
        """A module from log signal-to-noise ratios `(B,)` to embeddings `(B, width)`.

        Raises:
            ValueError: A width that cannot be.
        """


@dataclass(frozen=True)
class LogSnr(Level):
    """Waves of the log signal-to-noise ratio itself, which every schedule has."""

    def build(self, width: int) -> nn.Module:
        """The module."""
        return Sinusoidal(width)


@dataclass(frozen=True)
class Steps(Level):
    r"""Waves of the index of the step of a DDPM chain: what published networks are trained with.

    $$ p = N\,t(\lambda) - 1 \in [0, N - 1], \qquad
       \omega_k = 10000^{-k / (n - 1)}, \quad k = 0, \dots, n - 1, \quad n = \mathrm{width} / 2 $$

    (Ho et al. 2020, arXiv 2006.11239; the waves after Vaswani et al. 2017, arXiv 1706.03762). On the levels of the
    chain p is the published integer exactly, also from log-SNR in float32; in between, where samplers of continuous
    time go, it is interpolated as the schedule is. Beyond the ends of the chain p stays at its ends.

    Attributes:
        schedule: The chain that the network is trained on; the policy may sample on another schedule.
    """

    schedule: Tabulated

    def build(self, width: int) -> nn.Module:
        """The module."""
        return _Steps(self.schedule, width)


class _Steps(nn.Module):
    def __init__(self, schedule: Tabulated, width: int) -> None:
        super().__init__()
        if width < 4 or width % 2:
            raise ValueError(f"Steps got an embedding of width={width}, expected an even number of at least 4")
        half = width // 2
        # To the bit as published: at step 1000 a rounding of the frequency is one in the fifth digit of the wave.
        frequencies = torch.exp(torch.arange(half) * -(math.log(10000) / (half - 1)))
        self.schedule, self.last = schedule, len(schedule.betas) - 1
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.frequencies: Tensor

    def forward(self, log_snr: Tensor) -> Tensor:
        exact = log_snr.to(torch.promote_types(log_snr.dtype, torch.float32))
        index = ((self.last + 1) * self.schedule.time(exact) - 1).clamp(0, self.last)
        nearest = index.round()
        index = torch.where((index - nearest).abs() < _SNAP, nearest, index)
        return _waves(index, self.frequencies).to(log_snr.dtype)


__all__ = ["Level", "LogSnr", "Sinusoidal", "Steps"]
