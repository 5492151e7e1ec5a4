"""An expert for `Maze` that takes either natural way equally often and cuts its corners."""

from collections.abc import Mapping
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from poise.envs.maze import Maze

SPEED: Final = 1.2  # m/s
LEAD: Final = 0.5  # m along the way that the ball is steered ahead to
SEARCH: Final = 0.7  # m along the way in which the ball looks for its place
SPACING: Final = 0.05  # m between points of the way


@final
class MazeExpert:
    """Pursues a point that runs ahead along the centres of the cells of a way (Coulter, 1992, "pure pursuit")."""

    stage: str = "drive"

    def reset(self, env: Maze, seed: int) -> None:
        """Choose a way; see `Expert.reset`."""
        generator = np.random.default_rng([seed, 2])  # another stream than that of the environment
        way = env.ways[generator.integers(len(env.ways))]
        self._inner, self._path, self._place = [env.centre(cell) for cell in way[1:-1]], np.zeros((0, 2)), 0

    def act(self, observation: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """The velocity to follow; see `Expert.act`."""
        position = observation["position"].astype(np.float64)
        if not len(self._path):
            self._path = _dense(np.array([position, *self._inner, observation["goal"]]))
        near = self._path[self._place : self._place + round(SEARCH / SPACING)]
        self._place += int(np.linalg.norm(near - position, axis=-1).argmin())
        target = self._path[min(self._place + round(LEAD / SPACING), len(self._path) - 1)]
        offset = target - position
        return (SPEED * offset / max(float(np.linalg.norm(offset)), 1e-9)).astype(np.float32)


def _dense(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points along a line through corners (C, 2), evenly spaced."""
    length = np.concatenate([[0.0], np.linalg.norm(np.diff(corners, axis=0), axis=-1).cumsum()])
    at = np.linspace(0.0, length[-1], round(length[-1] / SPACING) + 1)
    return np.stack([np.interp(at, length, corners[:, k]) for k in range(2)], axis=-1)


__all__ = ["MazeExpert"]
