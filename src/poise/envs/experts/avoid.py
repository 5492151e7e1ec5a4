r"""An expert for `Avoid` that foresees where the discs will be, and a potential field that does not.

The expert plans anew at every step, by the dynamic-window idea (Fox, Burgard and Thrun, 1997, "The dynamic window
approach to collision avoidance") with two motions a plan: a velocity for 0.8 s, then another one or straight on to the
goal. All pairs are rolled out among discs that move on and bounce; a pair costs

$$ J = \overline{|p - g|} + w_c\, \overline{e^{-c / c_0}} + w_u |u_1 - v|^2 + \infty [c < c_{min}], $$

means over the horizon, until the goal `g` is reached, of the distance from it and of how narrow the clearance `c` is,
and how far the first velocity is from the present one. It commands the mean of the first velocities near that of the
cheapest pair, weighted by `exp(-J / \lambda)`, so that commands change smoothly. It has no memory and draws no random
numbers: what it does is a function of what is observed.
"""

from collections.abc import Mapping
from typing import Any, Final, final

import numpy as np
from numpy.linalg import norm
from numpy.typing import NDArray

from poise.envs.avoid import ARENA, Avoid, bounce
from poise.envs.point import advance, approach

SPEED: Final = 0.6  # m/s, the fastest that the expert drives
HEADINGS: Final = 24  # of the first velocity
TURNS: Final = 8  # of the second velocity
FIRST: Final = 4  # pieces of the first motion
PIECES: Final = 10  # of both motions
PIECE: Final = 0.2  # s
MARGIN: Final = 0.03  # m of clearance without which a plan counts as a collision
CLEAR: Final = 0.05  # m, c_0
WEIGHTS: Final = 0.8, 0.15  # w_c, w_u
ARRIVED: Final = 0.045  # m from the goal at which a plan is over
NEAR: Final = 0.2  # m/s between first velocities that are averaged
SOFT: Final = 0.01  # m, lambda
BLOCKED: Final = 100.0  # m that a collision costs, less where it is later

Floats = NDArray[np.float64]


@final
class AvoidExpert:
    """Plans by rolling out pairs of motions among the moving discs."""

    stage: str = "cross"

    def reset(self, env: Avoid, seed: int) -> None:
        """Nothing is remembered and nothing drawn; see `Expert.reset`."""

    def act(self, observation: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """The velocity to command; see `Expert.act`."""
        position, velocity, goal = (observation[name].astype(np.float64) for name in ("position", "velocity", "goal"))
        first, second = _pairs(goal - position)
        path = _roll(position, velocity, goal, first, second)
        discs = observation["obstacles"].astype(np.float64)
        times: Floats = PIECE * np.arange(PIECES + 1.0)[:, None, None]
        centres, _ = bounce(discs[:, :2] + position, discs[:, 2:4], discs[:, 4], times)
        clearance = (approach(path[:, :, None] - centres) - discs[:, 4]).min(axis=-1)
        walls = np.array([ARENA.half_width, ARENA.half_height]) - np.abs(path[:, 1:])
        clearance = np.minimum(clearance, walls.min(axis=-1)) - ARENA.robot_radius
        arrived = np.logical_or.accumulate(approach((path - goal)[:, :, None])[..., 0] < ARRIVED, axis=1)
        cost = (norm(path[:, 1:] - goal, axis=-1) * ~arrived).mean(axis=1)
        cost += WEIGHTS[0] * (np.exp(-clearance / CLEAR).clip(max=1) * ~arrived).mean(axis=1)
        cost += WEIGHTS[1] * ((first - velocity) ** 2).sum(axis=-1)
        blocked = (clearance < MARGIN) & ~arrived
        cost += BLOCKED * blocked.any(axis=1) * (1 - blocked.argmax(axis=1) / PIECES)
        best = cost.argmin()
        close = norm(first - first[best], axis=-1) < NEAR
        weight = np.exp(-(cost - cost[best]) / SOFT) * close
        return (weight @ first / weight.sum()).astype(np.float32)


def _pairs(ahead: Floats) -> tuple[Floats, Floats]:
    """First and second velocities of all plans (P, 2); a second one that is not a number goes to the goal."""
    direction = np.arctan2(ahead[1], ahead[0])
    speed = SPEED * min(1.0, 0.3 + float(norm(ahead)) / 0.3)
    rest = np.zeros((1, 2))
    first = np.concatenate([speed * _circle(HEADINGS, direction), speed / 2 * _circle(HEADINGS // 2, direction), rest])
    second = np.concatenate([np.full((1, 2), np.nan), SPEED * _circle(TURNS, direction), rest])
    return np.repeat(first, len(second), axis=0), np.tile(second, (len(first), 1))


def _circle(count: int, direction: float) -> Floats:
    angles = direction + 2 * np.pi * np.arange(count) / count
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def _roll(position: Floats, velocity: Floats, goal: Floats, first: Floats, second: Floats) -> Floats:
    """Positions (P, PIECES + 1, 2) of the robot by every plan."""
    place, speed = (np.broadcast_to(value, first.shape) for value in (position, velocity))
    path = [place]
    for piece in range(PIECES):
        ahead = goal - place
        onward = SPEED * ahead / np.maximum(norm(ahead, axis=-1, keepdims=True), 0.3)
        command = first if piece < FIRST else np.where(np.isnan(second), onward, second)
        place, speed = advance(place, speed, command, PIECE)
        path.append(place)
    return np.stack(path, axis=1)


@final
class PotentialField:
    r"""The potential field of Khatib (1986, "Real-time obstacle avoidance for manipulators and mobile robots").

    The goal attracts, discs and walls that are nearer than `d_0` repel, and the velocity is the sum of both,

    $$ u = k\, \frac{g - p}{\max(|g - p|, r)}
       + \sum \eta \left(\frac{1}{d} - \frac{1}{d_0}\right) \frac{n}{d^2}, $$

    with `d` the gap to an obstacle and `n` the direction from it, shortened to the fastest speed; `r` is 0.1 m. It sees
    where obstacles are and not where they go: that is the method. Its parameters had the most successes of 108 sets,
    tried on 300 to 400 episodes each; and it may drive faster than the expert.

    Args:
        attraction: `k` in m/s.
        repulsion: `eta` in m^3/s.
        reach: `d_0` in m.
        speed: The fastest, in m/s.
    """

    stage: str = "cross"

    def __init__(
        self, attraction: float = 0.75, repulsion: float = 0.004, reach: float = 0.6, speed: float = 1.0
    ) -> None:
        self.attraction, self.repulsion, self.reach, self.speed = attraction, repulsion, reach, speed

    def reset(self, env: Avoid, seed: int) -> None:
        """Nothing is remembered; see `Expert.reset`."""

    def act(self, observation: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """The velocity to command; see `Expert.act`. Observations may have a leading axis, and actions then do."""
        position, goal, discs = (observation[name].astype(np.float64) for name in ("position", "goal", "obstacles"))
        ahead = goal - position
        command = self.attraction * ahead / np.maximum(norm(ahead, axis=-1, keepdims=True), 0.1)
        half = np.array([ARENA.half_width, ARENA.half_height])
        signs = np.stack([np.eye(2), -np.eye(2)]).reshape(4, 2)
        walls = (half * np.abs(signs)).sum(axis=-1) - (position[..., None, :] * signs).sum(axis=-1)
        away = -discs[..., :2]
        distance = norm(away, axis=-1)
        gaps = np.concatenate([distance - discs[..., 4], walls], axis=-1) - ARENA.robot_radius
        normals = np.concatenate(
            [away / distance[..., None], np.broadcast_to(-signs, (*away.shape[:-2], 4, 2))], axis=-2
        )
        gaps = np.clip(gaps, 0.005, self.reach)
        push = self.repulsion * (1 / gaps - 1 / self.reach) / gaps**2
        command = command + (push[..., None] * normals).sum(axis=-2)
        length = norm(command, axis=-1, keepdims=True)
        return (command * np.minimum(1.0, self.speed / np.maximum(length, 1e-9))).astype(np.float32)


__all__ = ["AvoidExpert", "PotentialField"]
