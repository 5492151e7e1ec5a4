"""What every scripted expert of an application is."""

from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray


class Expert(Protocol):
    """Drives one environment, an episode at a time, and is made without arguments.

    Attributes:
        stage: What it is about, such as "grasp": where an episode fails, this says how far it came.
    """

    stage: str

    def reset(self, env: Any, seed: int) -> None:
        """Begin an episode.

        Args:
            env: The environment, unwrapped and already reset, which the expert may look into; one that is a vector
                environment of its own has a single slot.
            seed: Of all that the expert chooses at random.
        """
        ...

    def act(self, observation: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """The action of this control step, in the units of the environment.

        Args:
            observation: Of the environment, without a leading axis for its slots.
        """
        ...


__all__ = ["Expert"]
