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
        angle = position[:, None] * self.frequencies
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


__all__ = ["Sinusoidal"]
