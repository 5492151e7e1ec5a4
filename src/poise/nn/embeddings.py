"""Embeddings of scalars."""

import math

import torch
from torch import Tensor, nn


class Sinusoidal(nn.Module):
    r"""$(\sin \omega_1 p, \dots, \sin \omega_n p, \cos \omega_1 p, \dots, \cos \omega_n p)$, n = width / 2.

    The frequencies form a geometric sequence (Vaswani et al. 2017, arXiv 1706.03762). The defaults suit log
    signal-to-noise ratios, which span about [-7, 7]: the slowest wave is monotone on it, the fastest resolves 0.1.

    Args:
        width: Even number of outputs.
        low: Lowest frequency in radians a unit.
        high: Highest frequency in radians a unit.
    """

    def __init__(self, width: int, low: float = 0.1, high: float = 20.0) -> None:
        super().__init__()
        frequencies = torch.exp(torch.linspace(math.log(low), math.log(high), width // 2))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.frequencies: Tensor

    def forward(self, position: Tensor) -> Tensor:
        """Embed `(B,)` positions as `(B, width)`."""
        angle = position[:, None] * self.frequencies
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


__all__ = ["Sinusoidal"]
