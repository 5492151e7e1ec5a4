r"""A point robot with inertia among round obstacles, with several equally good ways through.

The action `u` is a commanded velocity, held for `DT` seconds. The robot follows it with a lag, integrated exactly:

$$ \dot p = v, \qquad \dot v = (u - v) / \tau. $$

A route is named by its h-signature (Bhattacharya, Kumar and Likhachev, 2010, "Search-based path planning with homotopy
class constraints", AAAI): draw a vertical ray up from the centre of each obstacle and note which rays the path crosses.
For the left-to-right paths of this task one bit an obstacle suffices. Bit `k` of the mode is 1 if the robot was above
obstacle `k` when its x last crossed the x of the obstacle's centre, and 0 if it was below or has not crossed it yet.
"""

from typing import Any, Final, final

import numpy as np
from gymnasium.spaces import Box, Dict
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.linalg import norm
from numpy.typing import ArrayLike, NDArray

from poise.envs.drawing import draw_frame
from poise.envs.maps import GOAL_RADIUS, THREE_DISCS, Map, Maps
from poise.envs.shortest import shortest
from poise.envs.slots import begin_streams, check_arguments, reset_rows, velocities

DT: Final = 0.1  # s, one control step
TAU: Final = 0.2  # s, lag of the robot behind its command
SUBSTEPS: Final = 8  # collision checks in a control step

Floats = NDArray[np.float64]
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


@final
class Navigate(VectorEnv[Observation, NDArray[np.float32], NDArray[Any]]):
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

    metadata = {
        "autoreset_mode": AutoresetMode.DISABLED,
        "render_modes": ["rgb_array"],
        "render_fps": round(1 / DT),
    }

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
        check_arguments(num_envs, max_episode_steps, render_mode)
        self.num_envs, self.max_episode_steps = num_envs, max_episode_steps
        self.render_mode, self._world = render_mode, map
        self._maps = [map.draw(np.random.default_rng(0))] * num_envs
        self._discs = np.zeros((num_envs, map.discs, 3))
        arena = np.array([map.half_width, map.half_height], np.float32)
        lows, highs = np.broadcast_to(
            np.array([[*-arena, 0], [*arena, np.inf]], np.float32)[:, None], (2, map.discs, 3)
        )
        place, velocity, obstacles = Box(-arena, arena), Box(-1, 1, (2,)), Box(lows, highs)
        self.single_observation_space = Dict(position=place, velocity=velocity, goal=place, obstacles=obstacles)
        self.single_action_space = velocity
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._generators: dict[int, np.random.Generator] = {}
        self._position, self._velocity, self._goal = np.zeros((3, num_envs, 2))
        self._initial_distance, self._reward, self._ratio = np.zeros((3, num_envs))
        self._success, self._collision, self._truncated = np.zeros((3, num_envs), bool)
        self._above = np.zeros((num_envs, map.discs), bool)
        self._steps = np.zeros(num_envs, np.int64)
        self._trail = np.zeros((num_envs, max_episode_steps + 1, 2))

    @property
    def map(self) -> Map:
        """The map of the first slot: that of all, where there is one."""
        return self._maps[0]

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
            self._discs[i] = np.reshape(self._maps[i].obstacles, (-1, 3))
        unit = np.array([self._generators[i].random((2, 2)) for i in rows])
        boxes = np.reshape([(self._maps[i].start, self._maps[i].goal) for i in rows], (-1, 2, 2, 2))
        low, high = boxes[:, :, 0], boxes[:, :, 1]
        drawn = dict(zip(("position", "goal"), (low + (high - low) * unit).swapaxes(0, 1), strict=True))
        self._position[rows], self._goal[rows] = ((options or {}).get(name, places) for name, places in drawn.items())
        self._initial_distance[rows] = norm(self._goal[rows] - self._position[rows], axis=-1)
        self._trail[rows, 0] = self._position[rows]
        flags = self._success, self._collision, self._truncated, self._above
        for array in (self._velocity, self._reward, self._ratio, self._steps, *flags):
            array[rows] = 0
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
        hits = self._hits(path)
        collided: Bools = np.any(hits, axis=1)
        travelled = np.where(collided, hits.argmax(axis=1), SUBSTEPS)
        self._note_crossings(path, np.where(active, travelled, 0))

        rows = np.arange(self.num_envs)
        self._position = np.where(active[:, None], path[rows, travelled], self._position)
        self._velocity = np.where(active[:, None], velocity[:, -1] * ~collided[:, None], self._velocity)
        self._steps += active
        self._trail[rows, self._steps] = self._position
        self._judge(active, collided)
        terminated = self._success | self._collision
        return self._observe(), self._reward.copy(), terminated, self._truncated.copy(), self._infos()

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """Draw every environment: N images (256, W, 3), or None without a render mode."""
        if self.render_mode is None:
            return None
        rows = zip(self._maps, self._position, self._goal, self._trail, self._steps, strict=True)
        return tuple(draw_frame(map, place, goal, trail[: steps + 1]) for map, place, goal, trail, steps in rows)

    def _hits(self, path: Floats) -> Bools:
        """Whether each straight piece of `path` (N, S + 1, 2) touches a disc or a wall, (N, S)."""
        distances = approach(path[:, :, None] - self._discs[:, None, :, :2])
        discs = distances < self._discs[:, None, :, 2] + self._world.robot_radius
        limit = np.array([self._world.half_width, self._world.half_height]) - self._world.robot_radius
        touched: Any = discs.any(axis=-1) | (np.abs(path[:, 1:]) > limit).any(axis=-1)
        return touched

    def _note_crossings(self, path: Floats, travelled: NDArray[np.int64]) -> None:
        """Update the bits of the mode along the first `travelled` (N,) pieces of `path`."""
        right = path[..., None, 0] >= self._discs[:, None, :, 0]
        above = path[..., None, 1] > self._discs[:, None, :, 1]
        crossed = (right[:, 1:] != right[:, :-1]) & (np.arange(SUBSTEPS) < travelled[:, None])[..., None]
        for k in range(SUBSTEPS):
            self._above = np.where(crossed[:, k], above[:, k + 1], self._above)

    def _judge(self, active: Bools, collided: Bools) -> None:
        """Set flags and rewards of the environments that were still `active` in this step."""
        distance = norm(self._goal - self._position, axis=-1)
        success = active & ~collided & (distance < GOAL_RADIUS)
        self._success |= success
        self._collision |= active & collided
        self._truncated |= active & ~success & ~collided & (self._steps >= self.max_episode_steps)
        progress = np.where(success, 1.0, np.clip(1 - distance / self._initial_distance, 0.0, 1.0))
        self._reward = np.where(active, progress, self._reward)
        for i in np.flatnonzero(active & (self._success | self._collision | self._truncated)).tolist():
            self._ratio[i] = self._path_over_shortest(i)

    def _path_over_shortest(self, i: int) -> float:
        trail, map, goal = self._trail[i, : self._steps[i] + 1], self._maps[i], self._goal[i]
        gone = norm(np.diff(trail, axis=0), axis=-1).sum()
        return (gone + shortest(map, trail[-1], goal)) / shortest(map, trail[0], goal)

    def _observe(self) -> Observation:
        state = {"position": self._position, "velocity": self._velocity, "goal": self._goal, "obstacles": self._discs}
        return {name: value.astype(np.float32) for name, value in state.items()}

    def _infos(self) -> dict[str, Any]:
        mode = self._above @ (1 << np.arange(self._world.discs))
        flags = {"is_success": self._success.copy(), "collision": self._collision.copy()}
        return {**flags, "mode": mode.astype(np.int64), "measures": {"path_over_shortest": self._ratio.copy()}}


__all__ = ["DT", "SUBSTEPS", "TAU", "Navigate", "advance", "approach"]
