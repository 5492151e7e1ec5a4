"""Action spaces: what the numbers of a plan are measured from. To add one, write `encode` and its inverse `decode`."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from poise.typing import Actions, Observation


@dataclass(frozen=True)
class ActionSpace(ABC):
    """A map between the actions of the data and those that a policy learns, given the observation of the plan."""

    @abstractmethod
    def encode(self, actions: Actions, observation: Observation) -> Actions:
        """Actions of the data to learned ones."""

    @abstractmethod
    def decode(self, actions: Actions, observation: Observation) -> Actions:
        """Learned actions to those of the data."""


@dataclass(frozen=True)
class Absolute(ActionSpace):
    """Actions as they are."""

    def encode(self, actions: Actions, observation: Observation) -> Actions:
        """Unchanged."""
        return actions

    def decode(self, actions: Actions, observation: Observation) -> Actions:
        """Unchanged."""
        return actions


@dataclass(frozen=True)
class Relative(ActionSpace):
    """Every action of a plan measured from one feature at the time of planning, such as the position of the tool.

    Attributes:
        feature: Name of an observed feature with the shape and the units of an action.
    """

    feature: str

    def encode(self, actions: Actions, observation: Observation) -> Actions:
        """Minus the newest value of the feature."""
        return actions - observation[self.feature][:, -1:]

    def decode(self, actions: Actions, observation: Observation) -> Actions:
        """Plus the newest value of the feature."""
        return actions + observation[self.feature][:, -1:]


__all__ = ["Absolute", "ActionSpace", "Relative"]
