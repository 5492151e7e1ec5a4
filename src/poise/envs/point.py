r"""Point robots with inertia that drive to goals: their motion, and what an episode of theirs is.

The action `u` is a commanded velocity, held for `DT` seconds. The robot follows it with a lag, integrated exactly:

$$ \dot p = v, \qquad \dot v = (u - v) / \tau. $$
"""

from abc import ABC, abstractmethod
from typing import Any, Final

import numpy as np
from gymnasium.spaces import Box, Dict
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.linalg import norm
from numpy.typing import ArrayLike, NDArray

from poise.envs.drawing import draw_frame
from poise.envs.maps import GOAL_RADIUS, Maps
from poise.envs.slots import begin_streams, check_arguments, reset_rows, velocities

DT: Final = 0.1  # s, one control step
TAU: Final = 0.2  # s, lag of the robot behind its command
SUBSTEPS: Final = 8  # collision checks in a control step

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Bools = NDArray[np.bool_]
Observation = dict[str, NDArray[np.float32]]


def advance(position: Floats, velocity: Floats, command: Floats, duration: float | Floats) -> tuple[Floats, Floats]:
    r"""Move the robot for `duration` seconds under a constant command, exactly; arrays (..., 2) in m and m/s.

    $$ v(t) = u + (v_0 - u) e^{-t/\tau}, \qquad p(t) = p_0 + u t + (v_0 - u) \tau (1 - e^{-t/\tau}) $$

    Returns:
        Position and velocity after `duration`, which broadcasts against the other arguments.
    """
    decay: Any = np.exp(-np.asarray(duration) / TAU)
    lag = velocity - command
    return position + command * duration + lag * TAU * (1 - decay), command + lag * decay


def approach(relative: Floats) -> Floats:
    """Least distance from the origin along every straight piece of paths, (..., S + 1, K, 2) -> (..., S, K)."""
    begin, piece = relative[..., :-1, :, :], np.diff(relative, axis=-3)
    squared = np.maximum((piece * piece).sum(axis=-1), np.finfo(np.float64).tiny)
    along = np.clip(-(begin * piece).sum(axis=-1) / squared, 0.0, 1.0)
    return norm(begin + along[..., None] * piece, axis=-1)


class PointRobots(VectorEnv[Observation, NDArray[np.float32], NDArray[Any]], ABC):
    """Point robots, each alone in its own arena; what stands or moves in it a subclass says.

    Args:
        num_envs: number of environments N.
        map: the arena, the same for all, or maps of which every seed has its own.
        obstacles: space of the observed obstacles of one environment.
        max_episode_steps: control steps (of 0.1 s) after which an episode is truncated.
        render_mode: `"rgb_array"`, or None.
    """

    metadata = {
        "autoreset_mode": AutoresetMode.DISABLED,
        "render_modes": ["rgb_array"],
        "render_fps": round(1 / DT),
    }

    def __init__(
        self, num_envs: int, map: Maps, obstacles: Box, max_episode_steps: int, render_mode: str | None
    ) -> None:
        check_arguments(num_envs, max_episode_steps, render_mode)
        self.num_envs, self.max_episode_steps = num_envs, max_episode_steps
        self.render_mode, self._world = render_mode, map
        self._maps = [map.draw(np.random.default_rng(0))] * num_envs
        self._half: Floats = np.array([map.half_width, map.half_height])
        arena, unit = self._half.astype(np.float32), Box(-1, 1, (2,))
        place = Box(-arena, arena)
        self.single_observation_space = Dict(position=place, velocity=unit, goal=place, obstacles=obstacles)
        self.single_action_space = unit
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(unit, num_envs)
        self._generators: dict[int, np.random.Generator] = {}
        self._position, self._velocity, self._goal = np.zeros((3, num_envs, 2))
        self._initial_distance, self._reward = np.zeros((2, num_envs))
        self._success, self._collision, self._truncated = np.zeros((3, num_envs), bool)
        self._steps = np.zeros(num_envs, np.int64)
        self._trail = np.zeros((num_envs, max_episode_steps + 1, 2))

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start new episodes.

        Args:
            seed: an int `s` seeds environment `i` with `s + i`; a list has one seed, or None, for each environment;
                None goes on with every environment's own stream.
            options: `reset_mask`, a boolean array (N,), resets only those environments; `position` and `goal`, (2,) in
                m, are where robots and goals stand instead of where the stream puts them.

        Returns:
            Observations and infos of all environments, also of those that were not reset.
        """
        rows = reset_rows(options, self.num_envs)
        begin_streams(self._generators, seed, rows, self.num_envs)
        for i in rows:
            self._maps[i] = self._world.draw(self._generators[i])
            low, high = np.reshape([self._maps[i].start, self._maps[i].goal], (2, 2, 2)).swapaxes(0, 1)
            self._position[i], self._goal[i] = low + (high - low) * self._generators[i].random((2, 2))
        for name, places in (("position", self._position), ("goal", self._goal)):
            places[rows] = (options or {}).get(name, places[rows])
        flags = self._success, self._collision, self._truncated
        for array in (self._velocity, self._reward, self._steps, *flags):
            array[rows] = 0
        self._initial_distance[rows] = norm(self._goal[rows] - self._position[rows], axis=-1)
        self._trail[rows, 0] = self._position[rows]
        for i in rows:
            self._furnish(i, self._generators[i])
        return self._observe(), self._infos()

    def step(self, actions: ArrayLike) -> tuple[Observation, Floats, Bools, Bools, dict[str, Any]]:
        """Hold the commanded velocities, `actions` in m/s (N, 2), for 0.1 s.

        Returns:
            Observations, rewards (N,), terminations (N,), truncations (N,) and infos.
        """
        command = velocities(actions, self._initial_distance > 0)[:, None]
        active = self._active
        times = DT * np.arange(SUBSTEPS + 1)[:, None] / SUBSTEPS
        path, velocity = advance(self._position[:, None], self._velocity[:, None], command, times)
        gaps = self._gaps(path, times)
        walls = (np.abs(path[:, 1:]) > self._half - self._world.robot_radius).any(axis=-1)
        hits: Any = (gaps < 0).any(axis=-1) | walls
        collided: Bools = hits.any(axis=1)
        travelled = np.where(active, np.where(collided, hits.argmax(axis=1), SUBSTEPS), 0)

        rows = np.arange(self.num_envs)
        self._position = np.where(active[:, None], path[rows, travelled], self._position)
        self._velocity = np.where(active[:, None], velocity[:, -1] * ~collided[:, None], self._velocity)
        self._steps += active
        self._trail[rows, self._steps] = self._position
        self._judge(active, collided)
        self._note(active, path, travelled, gaps)
        terminated = self._success | self._collision
        return self._observe(), self._reward.copy(), terminated, self._truncated.copy(), self._infos()

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """Draw every environment: N images (256, W, 3), or None without a render mode."""
        if self.render_mode is None:
            return None
        rows = zip(self._maps, self._position, self._goal, self._trail, self._steps, self._moving(), strict=True)
        return tuple(
            draw_frame(map, place, goal, trail[: steps + 1], discs=discs)
            for map, place, goal, trail, steps, discs in rows
        )

    @property
    def _active(self) -> Bools:
        """Environments whose episode goes on, (N,)."""
        return ~(self._success | self._collision | self._truncated)

    def _judge(self, active: Bools, collided: Bools) -> None:
        """Set flags and rewards of the environments that were still `active` in this step."""
        distance = norm(self._goal - self._position, axis=-1)
        success = active & ~collided & (distance < GOAL_RADIUS)
        self._success |= success
        self._collision |= active & collided
        self._truncated |= active & ~success & ~collided & (self._steps >= self.max_episode_steps)
        progress = np.where(success, 1.0, np.clip(1 - distance / self._initial_distance, 0.0, 1.0))
        self._reward = np.where(active, progress, self._reward)

    def _observe(self) -> Observation:
        state = {"position": self._position, "velocity": self._velocity, "goal": self._goal}
        return {name: value.astype(np.float32) for name, value in (state | {"obstacles": self._obstacles()}).items()}

    def _infos(self) -> dict[str, Any]:
        return {"is_success": self._success.copy(), "collision": self._collision.copy(), **self._told()}

    @abstractmethod
    def _furnish(self, i: int, generator: np.random.Generator) -> None:
        """Begin the episode of slot `i`, whose robot and goal stand already."""

    @abstractmethod
    def _gaps(self, path: Floats, times: Floats) -> Floats:
        """Least gaps (N, S, K) between robots and obstacles on every piece of `path` (N, S + 1, 2); `times` (S + 1, 1).

        Below 0 is a collision.
        """

    @abstractmethod
    def _note(self, active: Bools, path: Floats, travelled: Integers, gaps: Floats) -> None:
        """Note what a judged step did: `active` robots went the first `travelled` (N,) pieces of `path`."""

    @abstractmethod
    def _obstacles(self) -> Floats:
        """What is observed of obstacles."""

    @abstractmethod
    def _moving(self) -> Floats:
        """Discs (x, y, radius) that the maps do not show, (N, K, 3)."""

    @abstractmethod
    def _told(self) -> dict[str, Any]:
        """What infos hold besides flags, in arrays of their own."""


__all__ = ["DT", "SUBSTEPS", "TAU", "PointRobots", "advance", "approach"]
