r"""Attention of a plan to itself and to observation tokens (Vaswani et al. 2017, arXiv 1706.03762).

$$ \mathrm{softmax}\big(Q K^\top / \sqrt{d}\big) V, \qquad d = \text{width} / \text{heads}. $$

Keys and values of observation tokens do not depend on the noise, so they are computed once a plan.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from poise.typing import Tokens


class Memory(NamedTuple):
    """What is attended to.

    Attributes:
        keys: `(B, heads, N, width / heads)`.
        values: `(B, heads, N, width / heads)`.
    """

    keys: Tensor
    values: Tensor

    def then(self, other: "Memory") -> "Memory":
        """This memory followed by another one."""
        return Memory(torch.cat([self.keys, other.keys], dim=2), torch.cat([self.values, other.values], dim=2))


class Attention(nn.Module, ABC):
    """Attention of sequences `(B, L, width)` to a memory."""

    @abstractmethod
    def memory(self, tokens: Tokens) -> Memory:
        """Keys and values of `(B, N, width)`."""

    @abstractmethod
    def forward(self, h: Tensor, memory: Memory | None = None, mask: Tensor | None = None) -> Tensor:
        """What `h` reads from the memory, or from itself without one; the mask `(L, N)` is true where it may look."""


def check_heads(name: str, width: int, heads: int) -> None:
    """Refuse a width that does not divide among the heads.

    Raises:
        ValueError: Says whose they are, the width and the heads.
    """
    if heads < 1 or width < 1 or width % heads:
        raise ValueError(
            f"{name} got width={width} and heads={heads}, expected at least one head and a width that is a multiple "
            "of the heads: change the one or the other"
        )


class MultiHead(Attention):
    """Scaled dot products over several heads; the tensors are those of `nn.MultiheadAttention`.

    Args:
        width: Width of the sequences.
        heads: Heads; divides the width.
        dropout: Probability with which training hides an attention weight.

    Raises:
        ValueError: A width that the heads do not divide, or less than one head.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        check_heads("Attention", width, heads)
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def _project(self, h: Tensor, first: int, last: int) -> tuple[Tensor, ...]:
        """Queries (0), keys (1) and values (2) from `first` up to `last`, each `(B, heads, L, width / heads)`."""
        rows = slice(first * h.shape[-1], last * h.shape[-1])
        projected = functional.linear(h, self.in_proj_weight[rows], self.in_proj_bias[rows])
        return projected.unflatten(-1, (last - first, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def memory(self, tokens: Tokens) -> Memory:
        """Keys and values of `(B, N, width)`."""
        return Memory(*self._project(tokens, 1, 3))

    def forward(self, h: Tensor, memory: Memory | None = None, mask: Tensor | None = None) -> Tensor:
        """What `h` reads, `(B, L, width)`."""
        if memory is None:
            queries, keys, values = self._project(h, 0, 3)
        else:
            (queries,), (keys, values) = self._project(h, 0, 1), memory
        dropout = self.dropout if self.training else 0.0
        read = functional.scaled_dot_product_attention(queries, keys, values, mask, dropout)
        return self.out_proj(read.transpose(1, 2).flatten(2))


class Attend(nn.Module):
    r"""$h + \mathrm{attention}(\mathrm{LN}(h), \mathrm{LN}(W \text{tokens} + p))$; tokens are told apart by $p$.

    Args:
        attention: Attention of the width; starts as zero, so that the network begins as if there were none.
        width: Width of `h`.
        tokens: `(N, D)` of the observation.
    """

    def __init__(self, attention: Attention, width: int, tokens: tuple[int, int]) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), attention
        self.embed, self.positions = nn.Linear(tokens[1], width), nn.Parameter(0.02 * torch.randn(tokens[0], width))
        self.embed_norm = nn.LayerNorm(width)
        self.gain = nn.Parameter(torch.zeros(width))

    def prepare(self, tokens: Tokens) -> Memory:
        """Keys and values of the tokens."""
        return self.attention.memory(self.embed_norm(self.embed(tokens) + self.positions))

    def forward(self, h: Tensor, memory: Memory) -> Tensor:
        """`h` of shape `(B, L, width)` and what it reads."""
        return torch.addcmul(h, self.gain, self.attention(self.norm(h), memory))


class Unattended(nn.Module):
    """In place of `Attend` where a conditioning does not attend: the identity."""

    def prepare(self, tokens: Tokens) -> None:
        """Nothing."""

    def forward(self, h: Tensor, memory: None) -> Tensor:
        """`h`."""
        return h


__all__ = ["Attend", "Attention", "Memory", "MultiHead", "Unattended", "check_heads"]
