"""Action spaces: what the numbers of a plan are measured from. To add one, write `encode`, its inverse and `check`.

All of them are shifts and rotations of a plan, which keep volumes: `log_prob` relies on it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from poise.rotations import matrix_to_sixd, sixd_to_matrix
from poise.typing import Actions, Observation

_POSE = 9  # a position and the first two columns of a rotation


@dataclass(frozen=True)
class ActionSpace(ABC):
    """A map between the actions of the data and those that a policy learns, given the observation of the plan."""

    @abstractmethod
    def encode(self, actions: Actions, observation: Observation) -> Actions:
        """Actions of the data to learned ones."""

    @abstractmethod
    def decode(self, actions: Actions, observation: Observation) -> Actions:
        """Learned actions to those of the data."""

    @abstractmethod
    def check(self, observations: Mapping[str, tuple[int, ...]], action: int) -> None:
        """Raise unless the space fits a policy.

        Args:
            observations: Name -> shape at one time step of every feature that is always there.
            action: Number of action dimensions.

        Raises:
            ValueError: Names the feature that is missing or of a wrong shape, or the dimension that does not exist.
        """


@dataclass(frozen=True)
class Absolute(ActionSpace):
    """Actions as they are."""

    def encode(self, actions: Actions, observation: Observation) -> Actions:
        """Unchanged."""
        return actions

    def decode(self, actions: Actions, observation: Observation) -> Actions:
        """Unchanged."""
        return actions

    def check(self, observations: Mapping[str, tuple[int, ...]], action: int) -> None:
        """Nothing can be wrong."""


@dataclass(frozen=True)
class Relative(ActionSpace):
    r"""Every action of a plan measured from one feature at the time of planning, such as the position of the tool.

    $$ r_k = a_k - o. $$

    Attributes:
        feature: Name of an observed feature in the units of an action, a number for every relative dimension.
        dimensions: The dimensions of an action that are relative; others, such as a gripper's, stay absolute. None
            means all.
    """

    feature: str
    dimensions: tuple[int, ...] | None = None

    def encode(self, actions: Actions, observation: Observation) -> Actions:
        """Minus the newest value of the feature."""
        return _on(self.dimensions, actions, lambda a: a - observation[self.feature][:, -1:])

    def decode(self, actions: Actions, observation: Observation) -> Actions:
        """Plus the newest value of the feature."""
        return _on(self.dimensions, actions, lambda r: r + observation[self.feature][:, -1:])

    def check(self, observations: Mapping[str, tuple[int, ...]], action: int) -> None:
        """The feature must be there, with a number for every relative dimension."""
        _check(self, self.feature, self.dimensions, observations, action)


@dataclass(frozen=True)
class Delta(ActionSpace):
    r"""Every action of a plan measured from the one before it, and the first from a feature.

    $$ d_k = a_k - a_{k-1}, \qquad a_{-1} = o. $$

    Errors of the learned differences add up along a plan; `Relative` has no such drift (compare Chi et al. 2024, arXiv
    2402.10329). What it is for: robots that take increments, and demonstrations recorded as such.

    Attributes:
        feature: Name of an observed feature in the units of an action, a number for every relative dimension.
        dimensions: The dimensions of an action that are differences; others stay absolute. None means all.
    """

    feature: str
    dimensions: tuple[int, ...] | None = None

    def encode(self, actions: Actions, observation: Observation) -> Actions:
        """Differences of neighbours, the first from the newest value of the feature."""
        return _on(self.dimensions, actions, lambda a: a.diff(dim=1, prepend=observation[self.feature][:, -1:]))

    def decode(self, actions: Actions, observation: Observation) -> Actions:
        """Running sums from the newest value of the feature."""
        return _on(self.dimensions, actions, lambda d: d.cumsum(1) + observation[self.feature][:, -1:])

    def check(self, observations: Mapping[str, tuple[int, ...]], action: int) -> None:
        """The feature must be there, with a number for every dimension of differences."""
        _check(self, self.feature, self.dimensions, observations, action)


@dataclass(frozen=True)
class RelativePose(ActionSpace):
    r"""Every pose of a plan in the frame of the tool at the time of planning (Chi et al. 2024, arXiv 2402.10329).

    $$ p' = R_o^\top (p - p_o), \qquad R' = R_o^\top R. $$

    A plan then does not depend on where the base of the robot stands. A pose is nine numbers: a position, and a
    rotation as `sixd` of `poise.rotations`. What is decoded is a rotation, whatever was learned.

    Attributes:
        feature: Name of the observed pose of the tool, of shape (9,).
        dimensions: The nine dimensions of an action that are the pose; others, such as a gripper's, stay absolute.
            None means all.
    """

    feature: str
    dimensions: tuple[int, ...] | None = None

    def encode(self, actions: Actions, observation: Observation) -> Actions:
        """Into the frame of the newest pose."""
        place, turn = _pose(observation[self.feature][:, -1:])

        def into(pose: Tensor) -> Tensor:
            columns = torch.stack([pose[..., :3] - place, pose[..., 3:6], pose[..., 6:]], -1)
            return (turn.mT @ columns).mT.flatten(-2)

        return _on(self.dimensions, actions, into)

    def decode(self, actions: Actions, observation: Observation) -> Actions:
        """Out of the frame of the newest pose."""
        place, turn = _pose(observation[self.feature][:, -1:])

        def out(pose: Tensor) -> Tensor:
            position, rotation = _pose(pose)
            moved = (turn @ position[..., None]).squeeze(-1) + place
            return torch.cat([moved, matrix_to_sixd(turn @ rotation)], -1)

        return _on(self.dimensions, actions, out)

    def check(self, observations: Mapping[str, tuple[int, ...]], action: int) -> None:
        """The feature must be there, and it and the chosen dimensions must be nine numbers."""
        count = action if self.dimensions is None else len(self.dimensions)
        if count != _POSE:
            raise ValueError(
                f"RelativePose got {count} dimensions of an action, expected nine, position and sixd rotation: choose "
                "them by dimensions=, and convert other rotations by poise.rotations"
            )
        _check(self, self.feature, self.dimensions, observations, action)


def _on(dimensions: tuple[int, ...] | None, actions: Actions, change: Callable[[Tensor], Tensor]) -> Actions:
    """The actions with some of their dimensions changed."""
    if dimensions is None:
        return change(actions)
    chosen, result = list(dimensions), actions.clone()
    result[..., chosen] = change(actions[..., chosen])
    return result


def _pose(pose: Tensor) -> tuple[Tensor, Tensor]:
    return pose[..., :3], sixd_to_matrix(pose[..., 3:])


def _check(
    space: ActionSpace,
    feature: str,
    dimensions: tuple[int, ...] | None,
    observations: Mapping[str, tuple[int, ...]],
    action: int,
) -> None:
    name = type(space).__name__
    if dimensions is not None and (len(set(dimensions)) < len(dimensions) or not set(dimensions) <= set(range(action))):
        raise ValueError(f"{name} got dimensions={dimensions}, expected different ones of 0 to {action - 1}")
    if feature not in observations:
        raise ValueError(
            f"{name} actions are measured from the feature {feature!r}, but the features that are always observed are "
            f"{sorted(observations)}: observe it, name the one that holds the robot's state, or use Absolute()"
        )
    expected = (action if dimensions is None else len(dimensions),)
    if tuple(observations[feature]) != expected:
        raise ValueError(
            f"{name} got the feature {feature!r} of shape {tuple(observations[feature])}, expected {expected}, a "
            "number for every relative dimension of the action: add a feature of just these, or choose by dimensions="
        )


__all__ = ["Absolute", "ActionSpace", "Delta", "Relative", "RelativePose"]
