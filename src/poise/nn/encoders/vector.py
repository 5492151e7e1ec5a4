"""The encoder of low-dimensional observations: one token a history step."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from poise.nn.encoders.features import only_states
from poise.nn.spec import Encoder, EncoderSpec
from poise.rotations import axis_angle_to_sixd, matrix_to_sixd, quaternion_to_sixd
from poise.typing import Observation, Tokens


@dataclass(frozen=True)
class Vector(EncoderSpec):
    r"""Proprioception and other low-dimensional state: features concatenated in the order of their names.

    Angles and rotations are read as the data hold them (see `Encoder.raw`) and become numbers without a jump:

    $$ \theta \mapsto (\sin\theta, \cos\theta), \qquad R \mapsto (R_{\cdot 1}, R_{\cdot 2}), $$

    a rotation its first two columns (Zhou et al. 2019, arXiv 1812.07035), so that equal poses give equal tokens.

    Attributes:
        width: Units of a token; None hands the concatenated features on as they are.
        angles: Features that are angles in radians, of any shape.
        rotations: Features that are rotations, by their shape: quaternions (4,) as x, y, z, w; axis-angles (3,) in
            radians; matrices (3, 3); or two columns (6,). A quaternion of zeros, one that is hidden, gives zeros.

    Raises:
        ValueError: A width below 1; on `build`: an image, a name that is no feature, one that is both an angle and a
            rotation, or a rotation of another shape.
    """

    width: int | None = None
    angles: tuple[str, ...] = ()
    rotations: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.width is not None and self.width < 1:
            raise ValueError(
                f"Vector got width={self.width}, expected at least 1, or None for the features as they are"
            )

    def build(self, shapes: Mapping[str, tuple[int, ...]], history: int) -> Encoder:
        """The module for the named features."""
        states = only_states("Vector", shapes)
        self.check(states)
        return _Vector(self, states, history)

    def apart(self, shapes: Mapping[str, tuple[int, ...]]) -> "dict[str, Vector]":
        """One spec for each feature alone.

        Raises:
            ValueError: As `build`.
        """
        self.check(shapes)
        return {
            name: replace(
                self,
                angles=tuple(n for n in self.angles if n == name),
                rotations=tuple(n for n in self.rotations if n == name),
            )
            for name in shapes
        }

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse names of angles and rotations that do not fit the features.

        Raises:
            ValueError: Says which name, and what it must be.
        """
        unknown = sorted({*self.angles, *self.rotations} - set(shapes))
        both = sorted(set(self.angles) & set(self.rotations))
        if unknown or both:
            raise ValueError(
                f"Vector got the names {unknown} among angles and rotations that are no features and {both} in both, "
                f"expected each at most once, among {sorted(shapes)}"
            )
        for name in self.rotations:
            if shapes[name] not in _SIXD:
                raise ValueError(
                    f"Vector got the rotation {name!r} of shape {shapes[name]}, expected a quaternion (4,), "
                    "an axis-angle (3,), a matrix (3, 3) or its first two columns (6,)"
                )


def _visible_quaternion(quaternion: Tensor) -> Tensor:
    visible = (quaternion != 0).any(-1, keepdim=True)
    return quaternion_to_sixd(torch.where(visible, quaternion, 1.0)) * visible


def _same(sixd: Tensor) -> Tensor:
    return sixd


_SIXD = {(4,): _visible_quaternion, (3,): axis_angle_to_sixd, (3, 3): matrix_to_sixd, (6,): _same}


def _waves(angles: Tensor) -> Tensor:
    return torch.cat([angles.sin(), angles.cos()], -1)


class _Vector(Encoder):
    def __init__(self, spec: Vector, shapes: Mapping[str, tuple[int, ...]], history: int) -> None:
        super().__init__()
        self.names, self.raw = list(shapes), frozenset((*spec.angles, *spec.rotations))
        self.read = dict.fromkeys(spec.angles, _waves) | {name: _SIXD[shapes[name]] for name in spec.rotations}
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        sizes |= {name: 2 * sizes[name] for name in spec.angles} | dict.fromkeys(spec.rotations, 6)
        features = sum(sizes.values())
        self.tokens = (history, spec.width or features)
        self.project = (
            nn.Identity()
            if spec.width is None
            else nn.Sequential(nn.Linear(features, spec.width), nn.SiLU(), nn.Linear(spec.width, spec.width))
        )

    def forward(self, observation: Observation) -> Tokens:
        return self.project(torch.cat([self._numbers(name, observation[name]) for name in self.names], dim=-1))

    def _numbers(self, name: str, values: Tensor) -> Tensor:
        return (self.read[name](values) if name in self.read else values).flatten(2)


__all__ = ["Vector"]
