"""The encoder by attention over everything: all cameras, states, goals and history steps."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from poise.nn.attention import check_heads
from poise.nn.encoders.cnn import CNN
from poise.nn.encoders.features import images_of, states_of
from poise.nn.encoders.joint import parts_of
from poise.nn.encoders.layers import self_attention
from poise.nn.encoders.vector import Vector
from poise.nn.spec import Encoder, EncoderSpec
from poise.typing import Observation, Tokens


@dataclass(frozen=True)
class Fusion(EncoderSpec):
    r"""A transformer over one token for every image token and every low-dimensional feature of every history step.

    Token k of step t enters as

    $$ h_{tk} = W_k\, e_{tk} + b_k + \mathrm{kind}_k + \mathrm{step}_t, $$

    with e what the encoders of images and states say of it and learned vectors of kind and step; then all attend to all
    (pre-norm, Vaswani et al. 2017, arXiv 1706.03762). Tokens are those of the oldest step first; within a step images
    come before states, either in the order of their names.

    Attributes:
        images: Encoder of the images.
        states: Encoder of each low-dimensional feature by itself.
        width: Units of a token.
        depth: Number of layers.
        heads: Attention heads.
        readouts: Number of learned tokens that gather the others and are returned in their place; 0 returns all.

    Raises:
        ValueError: A width that is no multiple of the heads; on `build`: no feature, and all that the two encoders
            refuse.
    """

    images: EncoderSpec = CNN()
    states: Vector = Vector()
    width: int = 128
    depth: int = 2
    heads: int = 4
    readouts: int = 0

    def __post_init__(self) -> None:
        check_heads("Fusion", self.width, self.heads)
        if self.readouts < 0:
            raise ValueError(f"Fusion got readouts={self.readouts}, expected 0 for all tokens, or how many to return")

    def build(self, shapes: Mapping[str, tuple[int, ...]], history: int) -> Encoder:
        """The module for the named features."""
        states = states_of(shapes)
        apart = [(spec, {name: states[name]}) for name, spec in self.states.apart(states).items()]
        return _Fusion(self, parts_of("Fusion", [(self.images, images_of(shapes)), *apart], history), history)


class _Fusion(Encoder):
    def __init__(self, spec: Fusion, parts: list[Encoder], history: int) -> None:
        super().__init__()
        self.history, self.parts, self.readouts = history, nn.ModuleList(parts), spec.readouts
        self.raw = frozenset().union(*(part.raw for part in parts))
        kinds = sum(part.tokens[0] // history for part in parts)
        self.tokens = (spec.readouts or history * kinds, spec.width)
        self.embed = nn.ModuleList(nn.Linear(part.tokens[1], spec.width) for part in parts)
        self.kind = nn.Parameter(0.02 * torch.randn(kinds, spec.width))
        self.step = nn.Parameter(0.02 * torch.randn(history, 1, spec.width))
        if spec.readouts:
            self.query = nn.Parameter(0.02 * torch.randn(spec.readouts, spec.width))
        self.attend = self_attention(spec.width, spec.depth, spec.heads)

    def forward(self, observation: Observation) -> Tokens:
        seen = [
            embed(part(observation)).unflatten(1, (self.history, -1))
            for embed, part in zip(self.embed, self.parts, strict=True)
        ]
        h = (torch.cat(seen, 2) + self.kind + self.step).flatten(1, 2)
        if not self.readouts:
            return self.attend(h)
        h = torch.cat([self.query.expand(h.shape[0], -1, -1), h], 1)
        return self.attend(h)[:, : self.readouts]


__all__ = ["Fusion"]
