r"""An expert for `Avoid` that foresees where the discs will be, and a potential field that does not.

The expert sees ahead in two ways. A force, like that of pedestrians who anticipate (Karamouzas, Skinner and Guy 2014,
"Universal power law governing pedestrian interactions"), bends the way to the goal: discs push by the gap `c_k` that
they will leave at the times `t_k` ahead if the robot goes on as it does,

$$ u_0 = u_g + \sum_{k, discs} w\, e^{-c_k / c_0 - t_k / \tau_0}\, n_k + walls. $$

Around it the expert tries other velocities `u_i`, each for a second and then straight on to the goal, rolls them out
among discs that move on and bounce, and commands their mean under a Boltzmann weight (model-predictive path integral
control: Williams, Aldrich and Theodorou 2017, arXiv 1509.01149),

$$ u = \frac{\sum_i u_i e^{-J_i / \lambda}}{\sum_i e^{-J_i / \lambda}}, \qquad
   J = \overline{|p - g|} + w_c\, \overline{e^{-(c - c_{min}) / c_1 - t / \tau_1}} + w_u |u_i - u_0|^2, $$

means over the horizon until the goal `g` is reached, of the distance from it and of how narrow the clearance `c` is. It
has no memory and draws no random numbers, and changes smoothly with what it observes: a policy can learn it.
"""

from collections.abc import Mapping
from typing import Any, Final, final

import numpy as np
from numpy.linalg import norm
from numpy.typing import NDArray

from poise.envs.avoid import ARENA, Avoid, bounce
from poise.envs.point import advance, approach

SPEED: Final = 0.4  # m/s towards the goal
FASTEST: Final = 0.9  # m/s
ARRIVED: Final = 0.05  # m from the goal at which a motion is over

# Of the force; these and the following had the most successes of some hundred random sets, on seeds below 10000, also
# where noise disturbs what the robot does: a policy errs, and needs room for it.
AHEAD: Final = np.linspace(0.2, 2.0, 10)  # s, t_k
ONWARD: Final = 0.72  # share of the present velocity in how the robot is thought to go on; the rest is u_g
PUSH: Final = 0.61  # m/s, w
PUSH_GAP: Final = 0.055  # m, c_0
PUSH_TIME: Final = 0.88  # s, tau_0
PUSH_MOST: Final = 5.0  # of the exponential, where discs overlap
WALL: Final = 0.315  # m/s
WALL_GAP: Final = 0.052  # m

# Of the rollouts.
RINGS: Final = (0.15, 12), (0.3, 12), (0.5, 12)  # m/s from u_0, and how many directions
PIECE: Final = 0.2  # s
PIECES: Final = 10
FIRST: Final = 5  # pieces that have the velocity that is tried
SOFT: Final = 0.064  # m, lambda
NARROW: Final = 3.3  # m, w_c
MARGIN: Final = 0.08  # m, c_min
GAP: Final = 0.059  # m, c_1
DEEPEST: Final = 0.1  # m below c_min, from where less clearance costs no more
SOON: Final = 1.5  # s, tau_1
CHANGE: Final = 0.056  # w_u, s^2/m

Floats = NDArray[np.float64]
_HALF: Final = np.array([ARENA.half_width, ARENA.half_height])


@final
class AvoidExpert:
    """Weighs rolled-out velocities among the moving discs."""

    stage: str = "cross"

    def reset(self, env: Avoid, seed: int) -> None:
        """Nothing is remembered and nothing drawn; see `Expert.reset`."""

    def act(self, observation: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """The velocity to command; see `Expert.act`. Observations may have a leading axis, and actions then do."""
        seen = [observation[name].astype(np.float64) for name in ("position", "velocity", "goal", "obstacles")]
        position, velocity, goal, discs = seen
        discs[..., :2] += position[..., None, :]
        foreseen = _force(position, velocity, goal, discs)
        tried = _shortened(foreseen[..., None, :] + _RING, FASTEST)
        path = _roll(position, velocity, goal, tried)
        cost = _cost(path, goal, discs) + CHANGE * ((tried - foreseen[..., None, :]) ** 2).sum(axis=-1)
        weight = np.exp(-(cost - cost.min(axis=-1, keepdims=True)) / SOFT)[..., None]
        return ((weight * tried).sum(axis=-2) / weight.sum(axis=-2)).astype(np.float32)


def _ring(radius: float, count: int) -> Floats:
    angles = 2 * np.pi * np.arange(count) / count
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=-1)


_RING: Final = np.concatenate([np.zeros((1, 2)), *(_ring(*ring) for ring in RINGS)])


def _shortened(velocity: Floats, most: float) -> Floats:
    """Velocities (..., 2) that are no faster than `most`."""
    return velocity * np.minimum(1.0, most / np.maximum(norm(velocity, axis=-1, keepdims=True), 1e-9))


def _onward(place: Floats, goal: Floats) -> Floats:
    """The velocity straight on to the goal, slower near it."""
    ahead = goal - place
    return SPEED * ahead / np.maximum(norm(ahead, axis=-1, keepdims=True), 0.3)


def _force(position: Floats, velocity: Floats, goal: Floats, discs: Floats) -> Floats:
    """`u_0`, (..., 2)."""
    onward = _onward(position, goal)
    going = ONWARD * velocity + (1 - ONWARD) * onward
    there = (position[..., None, :] + going[..., None, :] * AHEAD[:, None])[..., None, :, :]
    centres, _ = bounce(discs[..., None, :2], discs[..., None, 2:4], discs[..., None, 4], AHEAD[:, None])
    away = there - centres
    distance = norm(away, axis=-1)
    gaps = distance - discs[..., None, 4] - ARENA.robot_radius
    strength = np.minimum(np.exp(-gaps / PUSH_GAP - AHEAD / PUSH_TIME), PUSH_MOST)
    push = PUSH * (strength / np.maximum(distance, 1e-6))[..., None] * away
    low, high = (np.exp(-(_HALF + side * position - ARENA.robot_radius) / WALL_GAP) for side in (1, -1))
    return _shortened(onward + push.sum(axis=(-3, -2)) + WALL * (low - high), FASTEST)


def _roll(position: Floats, velocity: Floats, goal: Floats, tried: Floats) -> Floats:
    """Positions (..., V, PIECES + 1, 2) of the robot by every velocity that is tried."""
    place, speed = (np.broadcast_to(value[..., None, :], tried.shape) for value in (position, velocity))
    path = [place]
    for piece in range(PIECES):
        command = tried if piece < FIRST else _onward(place, goal[..., None, :])
        place, speed = advance(place, speed, command, PIECE)
        path.append(place)
    return np.stack(path, axis=-2)


def _cost(path: Floats, goal: Floats, discs: Floats) -> Floats:
    """`J` of every path, without what a change of velocity costs, (..., V)."""
    times: Floats = PIECE * np.arange(PIECES + 1.0)[:, None, None]
    discs = discs[..., None, None, :, :]
    centres, _ = bounce(discs[..., :2], discs[..., 2:4], discs[..., 4], times)
    gaps = (approach(path[..., None, :] - centres) - discs[..., 4]).min(axis=-1)
    walls = (_HALF - np.abs(path[..., 1:, :])).min(axis=-1)
    clearance = np.minimum(gaps, walls) - ARENA.robot_radius
    left = norm(path[..., 1:, :] - goal[..., None, None, :], axis=-1)
    driving = ~np.logical_or.accumulate(left < ARRIVED, axis=-1)
    narrow = np.exp(-np.maximum(clearance - MARGIN, -DEEPEST) / GAP - times[:-1, 0, 0] / SOON)
    return ((left + NARROW * narrow) * driving).mean(axis=-1)


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
        signs = np.stack([np.eye(2), -np.eye(2)]).reshape(4, 2)
        walls = (_HALF * np.abs(signs)).sum(axis=-1) - (position[..., None, :] * signs).sum(axis=-1)
        away = -discs[..., :2]
        distance = norm(away, axis=-1)
        gaps = np.concatenate([distance - discs[..., 4], walls], axis=-1) - ARENA.robot_radius
        normals = np.concatenate(
            [away / distance[..., None], np.broadcast_to(-signs, (*away.shape[:-2], 4, 2))], axis=-2
        )
        gaps = np.clip(gaps, 0.005, self.reach)
        push = self.repulsion * (1 / gaps - 1 / self.reach) / gaps**2
        command = command + (push[..., None] * normals).sum(axis=-2)
        return _shortened(command, self.speed).astype(np.float32)


__all__ = ["AvoidExpert", "PotentialField"]
