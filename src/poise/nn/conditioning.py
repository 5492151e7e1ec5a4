"""Conditioning: through which doors the observation tokens `(B, N, D)` enter a network.

A network has up to three doors: the entrance, beside the noisy plan; the modulation, beside the noise level; and
attention, after each block. A conditioning says which of them stand open. Networks ask for the doors, never for the
class, and refuse a door that they do not have.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from poise.nn.attention import Attend, Attention, MultiHead, Unattended


class Doors(NamedTuple):
    """What stands open.

    Attributes:
        entrance: The flattened tokens stand beside every step of the noisy plan.
        modulation: The flattened tokens join the embedded noise level.
        scale: The modulation scales and shifts; False leaves the shift alone.
        attention: Width -> the attention of the plan to the tokens; None keeps this door shut.
    """

    entrance: bool = False
    modulation: bool = False
    scale: bool = True
    attention: Callable[[int], Attention] | None = None


@dataclass(frozen=True)
class Conditioning(ABC):
    """Through which doors the observation enters."""

    @property
    @abstractmethod
    def doors(self) -> Doors:
        """The open doors."""


@dataclass(frozen=True)
class Concatenate(Conditioning):
    r"""The flattened tokens c beside every step of the noisy plan: $W[x, c] = W_x x + W_c c$."""

    @property
    def doors(self) -> Doors:
        """The entrance."""
        return Doors(entrance=True)


@dataclass(frozen=True)
class FiLM(Conditioning):
    r"""Scale and bias of every block: $h \leftarrow \gamma(\lambda, c) \odot h + \beta(\lambda, c)$.

    Feature-wise linear modulation (Perez et al. 2018, arXiv 1709.07871); on normalised features, as in `MLP` and `DiT`,
    it is the adaptive layer norm of Peebles and Xie 2022 (arXiv 2212.09748).

    Attributes:
        scale: False adds the bias alone.
    """

    scale: bool = True

    @property
    def doors(self) -> Doors:
        """The modulation."""
        return Doors(modulation=True, scale=self.scale)


@dataclass(frozen=True)
class CrossAttention(Conditioning):
    r"""Every step of the plan attends to the tokens: $h \leftarrow h + \mathrm{softmax}(QK^\top/\sqrt d)V$.

    Vaswani et al. 2017 (arXiv 1706.03762). Keys and values are computed once a plan.

    Attributes:
        heads: Heads; divides the width of the network.

    Raises:
        ValueError: Less than one head.
    """

    heads: int = 4

    def __post_init__(self) -> None:
        if self.heads < 1:
            raise ValueError(f"CrossAttention got heads={self.heads}, expected at least 1")

    @property
    def doors(self) -> Doors:
        """Attention."""
        return Doors(attention=partial(MultiHead, heads=self.heads))


@dataclass(frozen=True)
class Joined(Conditioning):
    """Several conditionings at once.

    Attributes:
        parts: Conditionings that open different doors.

    Raises:
        ValueError: No part, or two that open the same door.
    """

    parts: tuple[Conditioning, ...]

    def __post_init__(self) -> None:
        opened = [door for part in self.parts for door in _opened(part.doors)]
        if not opened or len(opened) > len(set(opened)):
            raise ValueError(
                f"Joined got parts that open the doors {opened}, expected at least one door, and each once: "
                "name every conditioning once"
            )

    @property
    def doors(self) -> Doors:
        """Every door that a part opens; the modulation scales unless a part says no."""
        doors = [part.doors for part in self.parts]
        return Doors(
            entrance=any(d.entrance for d in doors),
            modulation=any(d.modulation for d in doors),
            scale=all(d.scale for d in doors),
            attention=next((d.attention for d in doors if d.attention), None),
        )


class Shut(nn.Module):
    """In place of a layer behind a door that is shut: adds nothing."""

    def forward(self, observation: Tensor) -> Tensor:
        """Zeros `(B, 1)`."""
        # Not len, which would fix the batch of an exported network.
        return observation.new_zeros(observation.shape[0], 1)


def beside(entered: bool, observation: int, width: int) -> nn.Module:
    """What the flattened tokens `(B, observation)` add behind a door: `(B, width)`, or zero where it is shut."""
    return nn.Linear(observation, width, bias=False) if entered else Shut()


def attend(doors: Doors, width: int, tokens: tuple[int, int]) -> Attend | Unattended:
    """The attention of `(B, L, width)` to tokens `(N, D)`, or the identity where that door is shut."""
    return Attend(doors.attention(width), width, tokens) if doors.attention else Unattended()


def modulated(h: Tensor, shift: Tensor, scale: Tensor | None = None) -> Tensor:
    r"""$(1 + s) \odot h + b$, or $h + b$ without a scale."""
    return h + shift if scale is None else torch.addcmul(shift, 1 + scale, h)


def _opened(doors: Doors) -> list[str]:
    return [name for name in ("entrance", "modulation", "attention") if getattr(doors, name)]


__all__ = [
    "Concatenate",
    "Conditioning",
    "CrossAttention",
    "Doors",
    "FiLM",
    "Joined",
    "Shut",
    "attend",
    "beside",
    "modulated",
]
