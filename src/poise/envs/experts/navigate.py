r"""A scripted expert for `Navigate` that takes every natural route equally often, and demonstrations by it.

Obstacles whose extents in x overlap form a column; a route goes through one gap of every column. Between the gaps the
path is a cubic Hermite curve `y(x)` that is level at its knots,

$$ y(r) = y_0 + (y_1 - y_0) (3 r^2 - 2 r^3), \qquad r = (x - x_0) / (x_1 - x_0). $$

The robot follows its command with the lag `tau`, so the expert reads the path a time `tau` ahead of the robot, which
undoes the lag to first order, and adds a pull back to the path:

$$ u = c(s + c \tau)\, T(s + c \tau) + k\, (P(s) - p), $$

with `P(s)` the path at arc length `s`, `T` its unit tangent, `c` the cruising speed, reduced near the goal, `k` a gain
and `p` the position of the robot.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from poise.envs.maps import Map
from poise.envs.navigate import Navigate
from poise.envs.point import DT, TAU, Observation

SPEED: Final = 0.58  # m/s, the mean cruising speed
SPEED_SPREAD: Final = 0.1  # relative, half the range of cruising speeds
GAIN: Final = 3.0  # 1/s, pull back to the path
BRAKING: Final = 0.2  # m before the goal where the robot begins to slow down
SLOWEST: Final = 0.3  # of the cruising speed, at the goal
CLEARANCE: Final = 0.09  # m between robot and disc below which a gap is too narrow
ROOM: Final = 0.16  # m between robot and disc where the wall leaves more than that
DETOUR: Final = 1.2  # natural routes are at most this much longer than the shortest
SEARCH: Final = 0.15  # m of path ahead in which the robot looks for its place
PIECE: Final = 32  # points of the path between two knots
CORRELATION: Final = 0.2  # s, of the noise in demonstrations

Floats = NDArray[np.float64]


@final
@dataclass(frozen=True)
class Route:
    """One way through a map.

    Attributes:
        mode: its code in the infos of `Navigate`.
        knots: points (x, y) in metres that the path passes level, two for every column of obstacles.
    """

    mode: int
    knots: tuple[tuple[float, float], ...]


def routes(map: Map) -> tuple[Route, ...]:
    """List the natural routes of a map from left to right: those at most 20 % longer than the shortest.

    Args:
        map: the map.

    Returns:
        The routes, by ascending mode.
    """
    ends = [((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) for box in (map.start, map.goal)]
    found = []
    for gaps in product(*(_gaps(map, column) for column in _columns(map))):
        knots = tuple(knot for _, pair in gaps for knot in pair)
        length = np.hypot(*np.diff([ends[0], *knots, ends[1]], axis=0).T).sum()
        found.append((length, Route(sum(bits for bits, _ in gaps), knots)))
    if not found:
        raise ValueError(
            f"The map has no route: some column of its {len(map.obstacles)} obstacles has no gap that leaves the robot "
            f"{CLEARANCE} m on either side. Make a disc smaller or move it."
        )
    shortest = min(length for length, _ in found)
    natural = [route for length, route in found if length <= DETOUR * shortest]
    return tuple(sorted(natural, key=lambda route: route.mode))


@final
class NavigateExpert:
    """Drives every robot of a `Navigate` along a natural route of its own.

    Call `reset` at the start of episodes and the expert itself once a control step.
    """

    def __init__(self, map: Map, generator: np.random.Generator) -> None:
        """Plan for a map.

        Args:
            map: the map that the robots are on.
            generator: draws routes and speeds.
        """
        self.routes = routes(map)
        self._generator = generator
        self._mode = np.zeros(0, np.int64)

    @property
    def mode(self) -> NDArray[np.int64]:
        """The routes chosen (N,), in the code of the infos of `Navigate`."""
        return self._mode.copy()

    def reset(self, observation: Observation, mask: NDArray[np.bool_] | None = None) -> None:
        """Choose routes, uniformly, and speeds for new episodes.

        Args:
            observation: the first of the episodes, as `Navigate.reset` returned it.
            mask: environments (N,) that begin an episode; all without it.
        """
        count = len(observation["position"])
        if mask is None or len(self._mode) != count:
            if mask is not None and not mask.all():
                raise ValueError(f"The expert drives {len(self._mode)} robots, got {count}; reset all of them first.")
            mask = np.ones(count, bool)
            pieces = len(self.routes[0].knots) + 1
            self._mode, self._place = np.zeros((2, count), np.int64)
            self._speed = np.zeros(count)
            self._path = np.zeros((count, pieces * PIECE + 1, 2))
        rows = np.flatnonzero(mask)
        choice = self._generator.integers(len(self.routes), size=len(rows))
        self._mode[rows] = np.array([route.mode for route in self.routes])[choice]
        self._speed[rows] = SPEED * (1 + SPEED_SPREAD * self._generator.uniform(-1, 1, len(rows)))
        knots = np.array([route.knots for route in self.routes]).reshape(len(self.routes), -1, 2)[choice]
        ends = observation["position"][rows, None], observation["goal"][rows, None]
        self._path[rows] = curve(np.concatenate([ends[0], knots, ends[1]], axis=1).astype(np.float64))
        self._place[rows] = 0
        pieces = np.linalg.norm(np.diff(self._path, axis=1), axis=-1)
        self._length = np.pad(np.cumsum(pieces, axis=1), ((0, 0), (1, 0)))

    def __call__(self, observation: Observation) -> NDArray[np.float32]:
        """Command the robots.

        Args:
            observation: the current one; only `position` is read.

        Returns:
            Velocities in m/s (N, 2), within [-1, 1].
        """
        position = observation["position"].astype(np.float64)
        if len(position) != len(self._mode):
            raise ValueError(f"The expert drives {len(self._mode)} robots, got {len(position)}; call reset first.")
        rows = np.arange(len(position))
        ahead = self._length - self._length[rows, self._place][:, None]
        distance = np.linalg.norm(self._path - position[:, None], axis=-1)
        self._place = np.where((ahead >= 0) & (ahead <= SEARCH), distance, np.inf).argmin(axis=1)

        place = self._length[rows, self._place]
        reached = place + self._speed * TAU
        lead = np.minimum((self._length <= reached[:, None]).sum(axis=1), self._path.shape[1] - 1)
        tangent = self._path[rows, lead] - self._path[rows, lead - 1]
        tangent /= np.maximum(np.linalg.norm(tangent, axis=-1, keepdims=True), np.finfo(np.float64).tiny)
        left = np.clip((self._length[:, -1] - reached) / BRAKING, SLOWEST, 1.0)
        left[self._place == self._path.shape[1] - 1] = 0.0  # past the goal the pull alone brings the robot back
        command = (self._speed * left)[:, None] * tangent + GAIN * (self._path[rows, self._place] - position)
        return np.clip(command, -1.0, 1.0).astype(np.float32)


@final
class RouteExpert:
    """`NavigateExpert` for the one robot of an environment, on whatever map that is; an `Expert`."""

    stage: str = "drive"

    def reset(self, env: Navigate, seed: int) -> None:
        """Choose a route and a speed; see `Expert.reset`."""
        generator = np.random.default_rng([seed, 2])  # another stream than that of the environment
        self._driver, self._begun = NavigateExpert(env.map, generator), False

    def act(self, observation: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """The velocity to command; see `Expert.act`."""
        batch = {name: values[None] for name, values in observation.items()}
        if not self._begun:
            self._driver.reset(batch)
            self._begun = True
        return self._driver(batch)[0]


def demonstrate(map: Map, episodes: int, seed: int, noise: float) -> dict[str, NDArray]:
    r"""Collect demonstrations whose data cover recoveries: noise disturbs the robot, not the labels.

    The idea is DART (Laskey et al., 2017, arXiv 1703.09327): the robot executes the expert's action plus noise, the
    data record the clean action. The noise is correlated over about 0.2 s, as disturbances are, with deviation `noise`:

    $$ e_{k+1} = \rho e_k + \sqrt{1 - \rho^2}\, \epsilon_k, \qquad \rho = e^{-\Delta t / 0.2 s}. $$

    Args:
        map: the map.
        episodes: number of episodes driven; only the successful ones are kept.
        seed: of starts, goals, routes, speeds and noise.
        noise: standard deviation in m/s of the noise on each component of the executed velocity.

    Returns:
        Flat float32 arrays `position`, `velocity`, `goal` (T, 2), `obstacles` (T, K, 3) and `action` (T, 2), with T the
        steps of all episodes kept, one after another; int64 `episode_ends` (E,), the exclusive end of every episode in
        them; int64 `mode` (E,), the route as `Navigate` found it; and `success_rate` (), the share of episodes kept.
    """
    if episodes < 1 or noise < 0:
        raise ValueError(f"Got {episodes=} and {noise=}; expected at least 1 episode and noise >= 0 m/s.")
    sequence = np.random.SeedSequence(seed)
    generator = np.random.default_rng(sequence.spawn(1)[0])
    env = Navigate(episodes, map)
    expert = NavigateExpert(map, generator)
    observation, infos = env.reset(seed=sequence.generate_state(episodes).tolist())
    expert.reset(observation)
    rho = np.exp(-DT / CORRELATION)
    disturbance = noise * generator.standard_normal((episodes, 2))
    steps, done = [], np.zeros(episodes, bool)
    while not done.all():
        action = expert(observation)
        steps.append({**observation, "action": action, "recorded": ~done})
        observation, _, terminated, truncated, infos = env.step(action + disturbance)
        done = terminated | truncated
        fresh = generator.standard_normal((episodes, 2))
        disturbance = rho * disturbance + np.sqrt(1 - rho**2) * noise * fresh

    success = infos["is_success"]
    data = {name: np.stack([step[name] for step in steps], axis=1)[success] for name in steps[0]}
    recorded = data.pop("recorded")
    return {
        **{name: values[recorded] for name, values in data.items()},
        "episode_ends": recorded.sum(axis=1).cumsum().astype(np.int64),
        "mode": infos["mode"][success],
        "success_rate": np.asarray(success.mean()),
    }


def _columns(map: Map) -> list[list[int]]:
    """Indices of the obstacles, grouped where their extents in x overlap, from left to right."""
    columns: list[list[int]] = []
    right = -np.inf
    for k in sorted(range(len(map.obstacles)), key=lambda k: map.obstacles[k][0] - map.obstacles[k][2]):
        x, _, radius = map.obstacles[k]
        if x - radius > right:
            columns.append([])
        columns[-1].append(k)
        right = max(right, x + radius)
    return columns


def _gaps(map: Map, column: list[int]) -> list[tuple[int, tuple[tuple[float, float], tuple[float, float]]]]:
    """The bits of the mode and the two knots of every gap of a column that is wide enough."""
    discs = sorted((map.obstacles[k][1], map.obstacles[k][2], k) for k in column)
    lows = [-map.half_height, *(y + radius for y, radius, _ in discs)]
    highs = [*(y - radius for y, radius, _ in discs), map.half_height]
    x_min = min(map.obstacles[k][0] - map.obstacles[k][2] for k in column)
    x_max = max(map.obstacles[k][0] + map.obstacles[k][2] for k in column)
    gaps = []
    for place, (low, high) in enumerate(zip(lows, highs, strict=True)):
        y = (low + high) / 2
        if (high - low) / 2 < map.robot_radius + CLEARANCE:
            continue
        if place == 0:
            y = max(y, high - map.robot_radius - ROOM)
        if place == len(discs):
            y = min(y, low + map.robot_radius + ROOM)
        bits = sum(1 << k for _, _, k in discs[:place])
        quarter = (x_max - x_min) / 4
        gaps.append((bits, ((x_min + quarter, y), (x_max - quarter, y))))
    return gaps


def curve(knots: Floats) -> Floats:
    """The path (N, P, 2) through knots (N, K, 2), level at each of them."""
    r = np.linspace(0.0, 1.0, PIECE, endpoint=False)
    rise = np.stack([r, 3 * r**2 - 2 * r**3], axis=-1)
    points = knots[:, :-1, None] + np.diff(knots, axis=1)[:, :, None] * rise
    return np.concatenate([points.reshape(len(knots), -1, 2), knots[:, -1:]], axis=1)


__all__ = ["NavigateExpert", "Route", "RouteExpert", "curve", "demonstrate", "routes"]
