"""What an episode of the single environments of our own is: when it is over, and that it stays so."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box, Dict
from numpy.typing import ArrayLike, NDArray

Observation = dict[str, NDArray[Any]]


class Episodic(gymnasium.Env[Any, NDArray[np.float32]], ABC):
    """One environment, which observes numbers and pictures; what happens in it a subclass says.

    An episode that is over stays as it is, and repeats its last step, until it is reset. Seed `s` gives the same
    episode whatever came before it; a reset without a seed continues the stream.

    Args:
        numbers: Name of an observation -> its shape.
        cameras: Name of a camera that is observed -> height and width of its pictures in pixels.
        size: Number of components of an action.
        limit: Of each of them; what is beyond is clipped.
        max_steps: Control steps after which an episode is truncated.
        render_mode: `"rgb_array"`, or None.

    Raises:
        ValueError: No step, or another render mode.
    """

    def __init__(
        self,
        numbers: Mapping[str, tuple[int, ...]],
        cameras: Mapping[str, int],
        size: int,
        limit: float,
        max_steps: int,
        render_mode: str | None,
    ) -> None:
        if max_steps < 1 or render_mode not in (None, "rgb_array"):
            raise ValueError(
                f"{type(self).__name__} got {max_steps=} and {render_mode=}, expected at least 1 step, and 'rgb_array' "
                "or None"
            )
        spaces: dict[str, Any] = {name: Box(-np.inf, np.inf, shape) for name, shape in numbers.items()}
        spaces |= {name: Box(0, 255, (side, side, 3), np.uint8) for name, side in cameras.items()}
        self.observation_space, self.action_space = Dict(spaces), Box(-limit, limit, (size,))
        self.max_steps, self.render_mode, self._limit = max_steps, render_mode, limit
        self._steps, self._last = 0, None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode; `options` are not used."""
        super().reset(seed=seed)
        self._steps = 0
        seen, infos = self._begin(seed)
        self._last = seen, 0.0, False, False, infos
        return dict(seen), dict(infos)

    def step(self, action: ArrayLike) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One control step; `action` is clipped to its space.

        Raises:
            ResetNeeded: Before the first reset.
        """
        if self._last is None:
            raise ResetNeeded("step() was called before reset(): call reset() first.")
        if not (self._last[2] or self._last[3]):
            self._steps += 1
            clipped = np.clip(np.asarray(action, np.float64), -self._limit, self._limit)
            seen, reward, over, infos = self._advance(clipped)
            self._last = seen, reward, over, not over and self._steps >= self.max_steps, infos
        seen, reward, terminated, truncated, infos = self._last
        return dict(seen), reward, terminated, truncated, dict(infos)

    @abstractmethod
    def _begin(self, seed: int | None) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode, drawn by `np_random`; observation and infos."""

    @abstractmethod
    def _advance(self, action: NDArray[np.float64]) -> tuple[Observation, float, bool, dict[str, Any]]:
        """Step number `_steps`; observation, reward, whether the task is over, and infos."""


__all__ = ["Episodic"]
