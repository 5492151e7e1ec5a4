r"""Point robots among round obstacles, with several equally good ways through.

A route is named by its h-signature (Bhattacharya, Kumar and Likhachev, 2010, "Search-based path planning with homotopy
class constraints", AAAI): draw a vertical ray up from the centre of each obstacle and note which rays the path crosses.
For the left-to-right paths of this task one bit an obstacle suffices. Bit `k` of the mode is 1 if the robot was above
obstacle `k` when its x last crossed the x of the obstacle's centre, and 0 if it was below or has not crossed it yet.
"""

from typing import Any, final

import numpy as np
from gymnasium.spaces import Box
from numpy.linalg import norm

from poise.envs.maps import THREE_DISCS, Map, Maps
from poise.envs.point import SUBSTEPS, Bools, Floats, Integers, PointRobots, approach
from poise.envs.shortest import shortest


@final
class Navigate(PointRobots):
    """Drive point robots from the left of a map to a goal on the right, at 10 Hz.

    Actions are commanded velocities in m/s (N, 2), clipped to [-1, 1]. Observations are `position`, `velocity`, `goal`
    (N, 2) and `obstacles` (N, K, 3). Being within 0.06 m of the goal at the end of a step is success and terminates;
    so does touching an obstacle or a wall, where the robot stops; `max_episode_steps` truncates. The reward of a step
    is `clip(1 - distance / initial distance, 0, 1)`, and exactly 1 on success. Infos hold `is_success` (N,),
    `collision` (N,), `mode` (N,), the route as the module describes it, and among `measures` `path_over_shortest` (N,):
    once an episode is over, the way that was gone and the shortest that is left, over the shortest from the start.

    Nothing is reset by itself. A finished environment stays as it is, and repeats its last observation, reward and
    flags, until `reset(options={"reset_mask": mask})` names it. Every environment owns its random stream: seed `s`
    gives the same episode in any slot of any number of environments, and a reset without a seed continues the stream.
    """

    def __init__(
        self, num_envs: int = 1, map: Maps = THREE_DISCS, max_episode_steps: int = 80, render_mode: str | None = None
    ) -> None:
        """Make `num_envs` robots, each alone on a map of its own.

        Args:
            num_envs: number of environments N.
            map: the world, the same for all; or maps such as `RandomMaps`, of which every seed has its own.
            max_episode_steps: control steps (of 0.1 s) after which an episode is truncated.
            render_mode: `"rgb_array"`, or None.
        """
        low, high = [-map.half_width, -map.half_height, 0], [map.half_width, map.half_height, np.inf]
        lows, highs = (np.tile(np.array(row, np.float32), (map.discs, 1)) for row in (low, high))
        super().__init__(num_envs, map, Box(lows, highs), max_episode_steps, render_mode)
        self._discs = np.zeros((num_envs, map.discs, 3))
        self._above = np.zeros((num_envs, map.discs), bool)
        self._ratio = np.zeros(num_envs)

    @property
    def map(self) -> Map:
        """The map of the first slot: that of all, where there is one."""
        return self._maps[0]

    def _furnish(self, i: int, generator: np.random.Generator) -> None:
        self._discs[i] = np.reshape(self._maps[i].obstacles, (-1, 3))
        self._above[i], self._ratio[i] = False, 0.0

    def _gaps(self, path: Floats, times: Floats) -> Floats:
        distances = approach(path[:, :, None] - self._discs[:, None, :, :2])
        return distances - (self._discs[:, None, :, 2] + self._world.robot_radius)

    def _note(self, active: Bools, path: Floats, travelled: Integers, gaps: Floats) -> None:
        """Update the bits of the mode; where an episode is over, compare its way with the shortest."""
        right = path[..., None, 0] >= self._discs[:, None, :, 0]
        above = path[..., None, 1] > self._discs[:, None, :, 1]
        crossed = (right[:, 1:] != right[:, :-1]) & (np.arange(SUBSTEPS) < travelled[:, None])[..., None]
        for k in range(SUBSTEPS):
            self._above = np.where(crossed[:, k], above[:, k + 1], self._above)
        for i in np.flatnonzero(active & ~self._active).tolist():
            self._ratio[i] = self._path_over_shortest(i)

    def _path_over_shortest(self, i: int) -> float:
        trail, map, goal = self._trail[i, : self._steps[i] + 1], self._maps[i], self._goal[i]
        gone = norm(np.diff(trail, axis=0), axis=-1).sum()
        return (gone + shortest(map, trail[-1], goal)) / shortest(map, trail[0], goal)

    def _obstacles(self) -> Floats:
        return self._discs

    def _moving(self) -> Floats:
        return np.zeros((self.num_envs, 0, 3))

    def _told(self) -> dict[str, Any]:
        mode = self._above @ (1 << np.arange(self._world.discs))
        return {"mode": mode.astype(np.int64), "measures": {"path_over_shortest": self._ratio.copy()}}


__all__ = ["Navigate"]
