"""The encoder of images and states side by side: one token a history step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from poise.nn.encoders.cnn import CNN
from poise.nn.encoders.features import images_of, states_of
from poise.nn.encoders.vector import Vector
from poise.nn.spec import Encoder, EncoderSpec
from poise.typing import Observation, Tokens


@dataclass(frozen=True)
class Joint(EncoderSpec):
    """All that is seen and measured at a history step, concatenated into one token.

    With the defaults this is the encoder of Diffusion Policy (Chi et al. 2023, arXiv 2303.04137): what the cameras
    show, in the order of their names, then low-dimensional features as they are. A kind that is not there is left out.

    Attributes:
        images: Encoder of the images.
        states: Encoder of the low-dimensional features.

    Raises:
        ValueError: On `build`: no feature, an encoder whose tokens are not so many a history step, and all that the two
            encoders refuse.
    """

    images: EncoderSpec = CNN()
    states: Vector = Vector()

    def build(self, shapes: Mapping[str, tuple[int, ...]], history: int) -> Encoder:
        """The module for the named features."""
        states = states_of(shapes)
        self.states.check(states)
        return _Joint(parts_of("Joint", [(self.images, images_of(shapes)), (self.states, states)], history), history)


def parts_of(
    encoder: str, parts: Sequence[tuple[EncoderSpec, Mapping[str, tuple[int, ...]]]], history: int
) -> list[Encoder]:
    """The modules of those specs that have features.

    Raises:
        ValueError: No features at all, or tokens that do not divide among the history steps.
    """
    built = [spec.build(shapes, history) for spec, shapes in parts if shapes]
    if not built:
        raise ValueError(
            f"{encoder} got no features, expected images (height, width, channels) or low-dimensional ones"
        )
    for part in built:
        if part.tokens[0] % history:
            raise ValueError(
                f"{encoder} got an encoder of {part.tokens[0]} tokens for {history} history steps, "
                "expected as many for each step"
            )
    return built


class _Joint(Encoder):
    def __init__(self, parts: list[Encoder], history: int) -> None:
        super().__init__()
        self.history, self.parts = history, nn.ModuleList(parts)
        self.tokens = (history, sum(count // history * width for count, width in (part.tokens for part in parts)))
        self.raw = frozenset().union(*(part.raw for part in parts))

    def forward(self, observation: Observation) -> Tokens:
        return torch.cat([part(observation).unflatten(1, (self.history, -1)).flatten(2) for part in self.parts], -1)


__all__ = ["Joint", "parts_of"]
