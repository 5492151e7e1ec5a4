r"""A point robot that crosses an arena among moving discs.

The robot is that of `Navigate`. Discs move at constant velocities, pass through each other and bounce off the walls, so
that where they will be follows from where they are. A coordinate of a centre that would be at `q` without walls is at

$$ x(q) = l - |(q + l) \bmod 4 l - 2 l|, $$

between `-l` and `l`, the walls less the radius of the disc.
"""

from typing import Any, Final, final

import numpy as np
from gymnasium.spaces import Box, Dict
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.linalg import norm
from numpy.typing import ArrayLike, NDArray

from poise.envs.drawing import draw_frame
from poise.envs.maps import GOAL_RADIUS, Map
from poise.envs.navigate import DT, SUBSTEPS, advance, approach
from poise.envs.slots import begin_streams, check_arguments, reset_rows, velocities

ARENA: Final = Map(obstacles=())
DISCS: Final = 6
RADII: Final = 0.07, 0.12  # m
SPEEDS: Final = 0.15, 0.40  # m/s
FAR: Final = 0.30  # m between robot and discs at the start
_HALF: Final = np.array([ARENA.half_width, ARENA.half_height])

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Observation = dict[str, NDArray[np.float32]]


def bounce(centre: Floats, velocity: Floats, radius: Floats, duration: float | Floats) -> tuple[Floats, Floats]:
    """Move discs for `duration` seconds, exactly; centres and velocities (..., 2) in m and m/s, radii (...) in m.

    Returns:
        Centres and velocities after `duration`, which broadcasts against (..., 2).
    """
    limit = _HALF - np.asarray(radius)[..., None]
    phase = (centre + velocity * duration + limit) % (4 * limit)
    return limit - np.abs(phase - 2 * limit), np.where(phase > 2 * limit, -velocity, velocity)


@final
class Avoid(VectorEnv[Observation, NDArray[np.float32], NDArray[Any]]):
    """Drive point robots past moving discs from the left of an arena to a goal on the right, at 10 Hz.

    Actions are commanded velocities in m/s (N, 2), clipped to [-1, 1]. Observations are `position`, `velocity`, `goal`
    (N, 2) and `obstacles` (N, 6, 5): the centre of each disc from that of the robot in m, its velocity in m/s and its
    radius in m. The nearest disc comes first: discs have no names, and with an order that depends on them alone a
    policy need not learn that the 720 orders of one scene ask for the same action.

    Being within 0.06 m of the goal at the end of a step is success and terminates; so does touching a disc or a wall;
    `max_episode_steps` truncates. The reward is that of `Navigate`. Infos hold `is_success` (N,), `collision` (N,) and
    among `measures` `clearance` (N,), the least gap between robot and discs so far in m, 0 after a collision.

    Nothing is reset by itself; seeds, partial resets and finished environments are as in `Navigate`.
    """

    metadata = {
        "autoreset_mode": AutoresetMode.DISABLED,
        "render_modes": ["rgb_array"],
        "render_fps": round(1 / DT),
    }

    def __init__(self, num_envs: int = 1, max_episode_steps: int = 120, render_mode: str | None = None) -> None:
        """Make `num_envs` robots, each alone in its own arena.

        Args:
            num_envs: number of environments N.
            max_episode_steps: control steps (of 0.1 s) after which an episode is truncated.
            render_mode: `"rgb_array"`, or None.
        """
        check_arguments(num_envs, max_episode_steps, render_mode)
        self.num_envs, self.max_episode_steps, self.render_mode = num_envs, max_episode_steps, render_mode
        arena, unit = _HALF.astype(np.float32), Box(-1, 1, (2,))
        far = np.tile(np.array([*2 * arena, 1, 1, 1], np.float32), (DISCS, 1))
        place = Box(-arena, arena)
        self.single_observation_space = Dict(position=place, velocity=unit, goal=place, obstacles=Box(-far, far))
        self.single_action_space = unit
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(unit, num_envs)
        self._generators: dict[int, np.random.Generator] = {}
        self._position, self._velocity, self._goal = np.zeros((3, num_envs, 2))
        self._discs, self._motion = np.zeros((2, num_envs, DISCS, 2))
        self._radius = np.zeros((num_envs, DISCS))
        self._initial_distance, self._reward, self._clearance = np.zeros((3, num_envs))
        self._success, self._collision, self._truncated = np.zeros((3, num_envs), bool)
        self._steps = np.zeros(num_envs, np.int64)
        self._trail = np.zeros((num_envs, max_episode_steps + 1, 2))

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start new episodes.

        Args:
            seed: as in `Navigate.reset`.
            options: `reset_mask`, a boolean array (N,), resets only those environments.

        Returns:
            Observations and infos of all environments, also of those that were not reset.
        """
        rows = reset_rows(options, self.num_envs)
        begin_streams(self._generators, seed, rows, self.num_envs)
        for i in rows:
            self._place(i, self._generators[i])
        for array in (self._velocity, self._reward, self._steps, self._success, self._collision, self._truncated):
            array[rows] = 0
        self._initial_distance[rows] = norm(self._goal[rows] - self._position[rows], axis=-1)
        self._trail[rows, 0] = self._position[rows]
        gaps = norm(self._discs - self._position[:, None], axis=-1) - self._radius - ARENA.robot_radius
        self._clearance[rows] = gaps[rows].min(axis=1)
        return self._observe(), self._infos()

    def step(self, actions: ArrayLike) -> tuple[Observation, Floats, Bools, Bools, dict[str, Any]]:
        """Hold the commanded velocities, `actions` in m/s (N, 2), for 0.1 s.

        Returns:
            Observations, rewards (N,), terminations (N,), truncations (N,) and infos.
        """
        command = velocities(actions, self._initial_distance > 0)[:, None]
        active = ~(self._success | self._collision | self._truncated)
        times = DT * np.arange(SUBSTEPS + 1)[:, None] / SUBSTEPS
        path, velocity = advance(self._position[:, None], self._velocity[:, None], command, times)
        discs, motion = bounce(self._discs[:, None], self._motion[:, None], self._radius[:, None], times[:, None])
        gaps = approach(path[:, :, None] - discs) - self._radius[:, None] - ARENA.robot_radius
        walls = (np.abs(path[:, 1:]) > _HALF - ARENA.robot_radius).any(axis=-1)
        hits: Any = (gaps < 0).any(axis=-1) | walls
        collided: Bools = hits.any(axis=1)
        travelled = np.where(collided, hits.argmax(axis=1), SUBSTEPS)
        self._clearance = np.where(active, np.clip(gaps.min(axis=(1, 2)), 0.0, self._clearance), self._clearance)

        rows = np.arange(self.num_envs)
        self._position = np.where(active[:, None], path[rows, travelled], self._position)
        self._velocity = np.where(active[:, None], velocity[:, -1] * ~collided[:, None], self._velocity)
        self._discs = np.where(active[:, None, None], discs[rows, travelled], self._discs)
        self._motion = np.where(active[:, None, None], motion[rows, travelled], self._motion)
        self._steps += active
        self._trail[rows, self._steps] = self._position
        self._judge(active, collided)
        terminated = self._success | self._collision
        return self._observe(), self._reward.copy(), terminated, self._truncated.copy(), self._infos()

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """Draw every environment: N images (256, W, 3), or None without a render mode."""
        if self.render_mode is None:
            return None
        discs = np.concatenate([self._discs, self._radius[..., None]], axis=-1)
        rows = zip(self._position, self._goal, self._trail, self._steps, discs, strict=True)
        return tuple(
            draw_frame(ARENA, place, goal, trail[: steps + 1], discs=moving)
            for place, goal, trail, steps, moving in rows
        )

    def _place(self, i: int, generator: np.random.Generator) -> None:
        """Draw start, goal and discs of a slot, discs away from the start."""
        boxes = np.reshape([ARENA.start, ARENA.goal], (2, 2, 2))
        low, high = boxes[:, 0], boxes[:, 1]
        self._position[i], self._goal[i] = low + (high - low) * generator.random((2, 2))
        self._radius[i] = generator.uniform(*RADII, DISCS)
        for k, radius in enumerate(self._radius[i]):
            gap = -np.inf
            while gap < FAR:
                self._discs[i, k] = (_HALF - radius) * generator.uniform(-1, 1, 2)
                gap = norm(self._discs[i, k] - self._position[i]) - radius - ARENA.robot_radius
        angle = generator.uniform(-np.pi, np.pi, DISCS)
        speed = generator.uniform(*SPEEDS, DISCS)
        self._motion[i] = (speed * [np.cos(angle), np.sin(angle)]).T

    def _judge(self, active: Bools, collided: Bools) -> None:
        distance = norm(self._goal - self._position, axis=-1)
        success = active & ~collided & (distance < GOAL_RADIUS)
        self._success |= success
        self._collision |= active & collided
        self._truncated |= active & ~success & ~collided & (self._steps >= self.max_episode_steps)
        progress = np.where(success, 1.0, np.clip(1 - distance / self._initial_distance, 0.0, 1.0))
        self._reward = np.where(active, progress, self._reward)

    def _observe(self) -> Observation:
        offset = self._discs - self._position[:, None]
        order = (norm(offset, axis=-1) - self._radius).argsort(axis=1, kind="stable")[..., None]
        discs = np.concatenate([offset, self._motion, self._radius[..., None]], axis=-1)
        state = {"position": self._position, "velocity": self._velocity, "goal": self._goal}
        state["obstacles"] = np.take_along_axis(discs, order, axis=1)
        return {name: value.astype(np.float32) for name, value in state.items()}

    def _infos(self) -> dict[str, Any]:
        flags = {"is_success": self._success.copy(), "collision": self._collision.copy()}
        return {**flags, "measures": {"clearance": self._clearance.copy()}}


__all__ = ["ARENA", "Avoid", "bounce"]
