"""A task: a Gymnasium environment, and how its observations and actions translate to those of a policy."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

Adapter = Callable[[Any], dict[str, NDArray[Any]]]


def as_named(observation: Any) -> dict[str, NDArray[Any]]:
    """Observations of a dictionary space as they are; those of a box under the name `state`."""
    if isinstance(observation, Mapping):
        return {name: np.asarray(values) for name, values in observation.items()}
    return {"state": np.asarray(observation)}


def as_given(actions: NDArray[Any]) -> NDArray[Any]:
    """Actions as they are."""
    return actions


@dataclass(frozen=True)
class Task:
    """Where a policy is tried.

    Attributes:
        environment: Gymnasium id; `module:id` imports the module first, which registers it.
        arguments: Keyword arguments of the environment.
        observe: Batched observation of the environment -> features of the policy.
        act: Batched actions of the policy -> those of the environment, which are then clipped to its space.
        extra: The extra of this package that provides the environment, for messages.
        slots: Environments stepped side by side.
        restart: First row of a recorded episode -> options of the environment's reset that start there again; None
            where the environment cannot. Recorded actions are replayed from there.
    """

    environment: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    observe: Adapter = as_named
    act: Callable[[NDArray[Any]], NDArray[Any]] = as_given
    extra: str | None = None
    slots: int = 50
    restart: Callable[[Mapping[str, NDArray[Any]]], dict[str, Any]] | None = None

    def make(self, slots: int, render: bool = False) -> VectorEnv:
        """The vector environment, which does not reset by itself.

        Raises:
            ImportError: The package that provides it is missing.
            ValueError: No environment of that id.
        """
        module, _, name = self.environment.rpartition(":")
        arguments = {**self.arguments, **({"render_mode": "rgb_array"} if render else {})}
        remedy = f": pip install 'poise[{self.extra}]'" if self.extra else ""
        try:
            if module:
                importlib.import_module(module)
            spec = gymnasium.spec(name)
            # Only environments that are made of single ones take the mode; vector ones of our own have it built in.
            single = {"vector_kwargs": {"autoreset_mode": AutoresetMode.DISABLED}} if spec.entry_point else {}
            return gymnasium.make_vec(name, num_envs=slots, **single, **arguments)
        except ImportError as error:
            raise ImportError(
                f"The environment {self.environment!r} needs a package that is missing ({error}){remedy}"
            ) from error
        except (gymnasium.error.UnregisteredEnv, gymnasium.error.NameNotFound) as error:
            raise ValueError(
                f"got the environment {self.environment!r}, expected an id that Gymnasium knows ({error}): "
                f"write module:id to import the module that registers it"
            ) from error


__all__ = ["Adapter", "Task", "as_given", "as_named"]
