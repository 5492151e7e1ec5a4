"""What a point robot sees of discs that are in its way: when and where each comes closest."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.linalg import norm
from numpy.typing import NDArray

FORESEEN: Final = 2.5  # s, T
NEAR: Final = 0.08  # m, d_0
SOON: Final = 1.0  # s, t_0


def closest(
    observation: Mapping[str, NDArray[Any]],
    offset: NDArray[Any],
    motion: NDArray[Any],
    radius: NDArray[Any],
    robot: tuple[float, float],
) -> NDArray[Any]:
    r"""Of every disc when and where it comes closest.

    For a robot that goes on at `v`, and for one that goes to the goal, with `r` the offset of a disc and `w` its
    velocity, both from the robot, in m and m/s,

    $$ t = \mathrm{clip}\Big({-\frac{r \cdot w}{w \cdot w}}, 0, T\Big), \qquad m = r + w t, \qquad
       d = |m| - \text{radii}, \qquad e^{-\max(d, 0) / d_0 - t / t_0}, $$

    the time in s, the offset there, the gap and how much of a threat it is.

    Args:
        observation: `position`, `velocity` and `goal` of the robots, `(N, 2)` each.
        offset: `(N, K, 2)`, of the discs from the robots.
        motion: `(N, K, 2)`, of the discs.
        radius: `(N, K, 1)`, of the discs.
        robot: Speed at which it would go to the goal, in m/s, and its radius in m.

    Returns:
        `(N, K, 14)`: relative velocity, time, offset, gap and threat, as it goes on and as it goes to the goal.
    """
    speed, size = robot
    ahead = observation["goal"] - observation["position"]
    straight = speed * ahead / np.maximum(norm(ahead, axis=-1, keepdims=True), 0.1)
    found = []
    for velocity in (observation["velocity"], straight):
        relative = motion - velocity[:, None]
        squared = np.maximum((relative * relative).sum(-1, keepdims=True), 1e-4)
        time = np.clip(-(offset * relative).sum(-1, keepdims=True) / squared, 0.0, FORESEEN)
        miss = offset + relative * time
        gap = norm(miss, axis=-1, keepdims=True) - radius - size
        found += [relative, time, miss, gap, np.exp(-np.maximum(gap, 0.0) / NEAR - time / SOON)]
    return np.concatenate(found, axis=-1)


def approached(
    observation: Mapping[str, NDArray[Any]], known: NDArray[Any], found: NDArray[Any]
) -> dict[str, NDArray[Any]]:
    """The observation with the goal from where the robot is, and discs as rows of what is known of them and `closest`.

    Args:
        observation: As there.
        known: `(N, K, n)`.
        found: `(N, K, 14)`, of `closest`.
    """
    ahead = observation["goal"] - observation["position"]
    return {**observation, "goal": ahead, "obstacles": np.concatenate([known, found], axis=-1)}


__all__ = ["FORESEEN", "NEAR", "SOON", "approached", "closest"]
