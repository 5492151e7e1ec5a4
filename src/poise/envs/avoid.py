r"""A point robot that crosses an arena among moving discs.

The robot is that of `Navigate`. Discs move at constant velocities, pass through each other and bounce off the walls, so
that where they will be follows from where they are. A coordinate of a centre that would be at `q` without walls is at

$$ x(q) = l - |(q + l) \bmod 4 l - 2 l|, $$

between `-l` and `l`, the walls less the radius of the disc.
"""

from typing import Any, Final, final

import numpy as np
from gymnasium.spaces import Box
from numpy.linalg import norm

from poise.envs.maps import Map
from poise.envs.point import DT, SUBSTEPS, Bools, Floats, Integers, PointRobots, approach

ARENA: Final = Map(obstacles=())
DISCS: Final = 6
RADII: Final = 0.07, 0.12  # m
SPEEDS: Final = 0.15, 0.40  # m/s
FAR: Final = 0.30  # m between robot and discs at the start
_HALF: Final = np.array([ARENA.half_width, ARENA.half_height])


def bounce(centre: Floats, velocity: Floats, radius: Floats, duration: float | Floats) -> tuple[Floats, Floats]:
    """Move discs for `duration` seconds, exactly; centres and velocities (..., 2) in m and m/s, radii (...) in m.

    Returns:
        Centres and velocities after `duration`, which broadcasts against (..., 2).
    """
    limit = _HALF - np.asarray(radius)[..., None]
    phase = (centre + velocity * duration + limit) % (4 * limit)
    return limit - np.abs(phase - 2 * limit), np.where(phase > 2 * limit, -velocity, velocity)


@final
class Avoid(PointRobots):
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

    def __init__(self, num_envs: int = 1, max_episode_steps: int = 120, render_mode: str | None = None) -> None:
        """Make `num_envs` robots, each alone in its own arena.

        Args:
            num_envs: number of environments N.
            max_episode_steps: control steps (of 0.1 s) after which an episode is truncated.
            render_mode: `"rgb_array"`, or None.
        """
        far = np.tile(np.array([*2 * _HALF, 1, 1, 1], np.float32), (DISCS, 1))
        super().__init__(num_envs, ARENA, Box(-far, far), max_episode_steps, render_mode)
        self._discs, self._motion = np.zeros((2, num_envs, DISCS, 2))
        self._radius, self._clearance = np.zeros((num_envs, DISCS)), np.zeros(num_envs)

    def _furnish(self, i: int, generator: np.random.Generator) -> None:
        """Draw discs away from the start."""
        self._radius[i] = generator.uniform(*RADII, DISCS)
        for k, radius in enumerate(self._radius[i]):
            gap = -np.inf
            while gap < FAR:
                self._discs[i, k] = (_HALF - radius) * generator.uniform(-1, 1, 2)
                gap = norm(self._discs[i, k] - self._position[i]) - radius - ARENA.robot_radius
        gaps = norm(self._discs[i] - self._position[i], axis=-1) - self._radius[i] - ARENA.robot_radius
        self._clearance[i] = gaps.min()
        angle = generator.uniform(-np.pi, np.pi, DISCS)
        speed = generator.uniform(*SPEEDS, DISCS)
        self._motion[i] = (speed * [np.cos(angle), np.sin(angle)]).T

    def _gaps(self, path: Floats, times: Floats) -> Floats:
        discs, _ = bounce(self._discs[:, None], self._motion[:, None], self._radius[:, None], times[:, None])
        return approach(path[:, :, None] - discs) - self._radius[:, None] - ARENA.robot_radius

    def _note(self, active: Bools, path: Floats, travelled: Integers, gaps: Floats) -> None:
        """Move the discs for as long as the robot went, and keep the least gap."""
        least: Floats = np.clip(gaps.min(axis=(1, 2)), 0.0, self._clearance)
        self._clearance = np.where(active, least, self._clearance)
        times: Floats = (DT * travelled / SUBSTEPS)[active, None, None]
        state = self._discs[active], self._motion[active], self._radius[active]
        self._discs[active], self._motion[active] = bounce(*state, times)

    def _obstacles(self) -> Floats:
        offset = self._discs - self._position[:, None]
        order = (norm(offset, axis=-1) - self._radius).argsort(axis=1, kind="stable")[..., None]
        discs = np.concatenate([offset, self._motion, self._radius[..., None]], axis=-1)
        return np.take_along_axis(discs, order, axis=1)

    def _moving(self) -> Floats:
        return np.concatenate([self._discs, self._radius[..., None]], axis=-1)

    def _told(self) -> dict[str, Any]:
        return {"measures": {"clearance": self._clearance.copy()}}


__all__ = ["ARENA", "Avoid", "bounce"]
