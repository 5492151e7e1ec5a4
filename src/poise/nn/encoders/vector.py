"""The encoder of low-dimensional observations: one token a history step."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from poise.nn.spec import Encoder, EncoderSpec
from poise.typing import Observation, Tokens


@dataclass(frozen=True)
class Vector(EncoderSpec):
    """Proprioception and other low-dimensional state: features concatenated in the order of their names.

    Attributes:
        width: Units of a token; None hands the concatenated features on as they are.
    """

    width: int | None = None

    def build(self, shapes: Mapping[str, tuple[int, ...]], history: int) -> Encoder:
        """The module for the named features."""
        return _Vector(self, sorted(shapes), sum(math.prod(shape) for shape in shapes.values()), history)


class _Vector(Encoder):
    def __init__(self, spec: Vector, names: list[str], features: int, history: int) -> None:
        super().__init__()
        self.names, self.tokens = names, (history, spec.width or features)
        self.project = (
            nn.Identity()
            if spec.width is None
            else nn.Sequential(nn.Linear(features, spec.width), nn.SiLU(), nn.Linear(spec.width, spec.width))
        )

    def forward(self, observation: Observation) -> Tokens:
        return self.project(torch.cat([observation[name].flatten(2) for name in self.names], dim=-1))


__all__ = ["Vector"]
