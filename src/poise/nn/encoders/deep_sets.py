"""The encoder of sets: obstacles, objects or other agents that have no names and no order."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from poise.nn.encoders.features import only_states
from poise.nn.encoders.vector import Vector
from poise.nn.spec import Encoder, EncoderSpec
from poise.typing import Observation, Tokens


@dataclass(frozen=True)
class DeepSets(EncoderSpec):
    r"""Features that are sets of elements `(K, F)`, every element read by the same weights.

    Beside what is measured otherwise, the state `s`, one network looks at one element after the other, and the largest
    and the mean of what it finds are handed on, one token a history step (Zaheer et al. 2017, "Deep Sets",
    arXiv 1703.06114; Qi et al. 2017, "PointNet", arXiv 1612.00593):

    $$ \Big[s,\; \max_k \phi(s, e_k),\; \frac{1}{K} \sum_k \phi(s, e_k)\Big], $$

    so that the order of the elements does not matter, and what is learned of one holds for all. The constants of their
    normalisation are shared, too (see `Encoder.alike`).

    Attributes:
        sets: Features that are sets, each of shape `(K, F)`.
        width: Units of phi, which has two hidden layers.
        states: How the other features are read.

    Raises:
        ValueError: A width below 1, or no set; on `build`: an image, a name that is no feature, or a set of another
            shape.
    """

    sets: tuple[str, ...]
    width: int = 128
    states: Vector = Vector()

    def __post_init__(self) -> None:
        if self.width < 1 or not self.sets:
            raise ValueError(
                f"DeepSets got sets={self.sets} and width={self.width}, expected names of features, and a width of at "
                "least 1: without sets take Vector"
            )

    def build(self, shapes: Mapping[str, tuple[int, ...]], history: int) -> Encoder:
        """The module for the named features."""
        found = only_states("DeepSets", shapes)
        sets = {name: found.pop(name, ()) for name in self.sets}
        if wrong := {name: shape for name, shape in sets.items() if len(shape) != 2}:
            raise ValueError(
                f"DeepSets got the sets {wrong}, expected each to be a feature of shape (elements, numbers), "
                f"among {dict(shapes)}"
            )
        return _DeepSets(self, sets, found, history)


class _DeepSets(Encoder):
    def __init__(
        self, spec: DeepSets, sets: Mapping[str, tuple[int, ...]], others: Mapping[str, tuple[int, ...]], history: int
    ) -> None:
        super().__init__()
        self.states = spec.states.build(others, history) if others else None
        state = self.states.tokens[1] if self.states else 0
        self.alike, self.raw = frozenset(sets), self.states.raw if self.states else frozenset()
        self.tokens = (history, state + 2 * spec.width * len(sets))
        self.phi = nn.ModuleDict({name: _phi(state + shape[1], spec.width) for name, shape in sets.items()})

    def forward(self, observation: Observation) -> Tokens:
        state = [self.states(observation)] if self.states else []
        found = [self._found(name, observation[name], state) for name in self.phi]
        return torch.cat([*state, *found], -1)

    def _found(self, name: str, elements: Tensor, state: list[Tensor]) -> Tensor:
        """What is handed on of one set, of elements (B, history, K, F)."""
        beside = [each[:, :, None].expand(-1, -1, elements.shape[2], -1) for each in state]
        found = self.phi[name](torch.cat([*beside, elements], -1))
        return torch.cat([found.amax(2), found.mean(2)], -1)


def _phi(features: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(features, width)]
    for _ in range(2):
        layers += [nn.SiLU(), nn.Linear(width, width)]
    return nn.Sequential(*layers)


__all__ = ["DeepSets"]
