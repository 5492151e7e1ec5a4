r"""Two who carry a bar together: the one who leads it to the goal, and the expert who follows.

The leader's path is straight between random places, each leg at a speed of its own, with pauses at places and in the
middle of a leg; it is averaged over `ROUND` seconds, so that speeds change gradually. Only the leader knows the goal.

The follower sees the other gripper at p + d from its own, moving at v. It wants its arm to be told the place that the
level bar asks for, led by what the arm lags behind,

$$ p^\star = p + d - (L, 0, 0) + \tau v, \qquad u = k\, (p^\star - p_{told}), $$

and it decides from the observation alone.
"""

from collections.abc import Mapping
from typing import Any, Final, final

import numpy as np
from numpy.linalg import norm
from numpy.typing import NDArray

DT: Final = 0.05  # s, one control step
LENGTH: Final = 0.3  # m between the grippers
UNIT: Final = 0.01  # m that a unit of action moves in one control step
ROOM: Final = np.array([[-0.06, 0.42, 0.12], [0.06, 0.58, 0.24]])  # m, where the centre of the bar is led
SPEEDS: Final = (0.06, 0.12)  # m/s
PAUSES: Final = (0.4, 1.0)  # s
OFTEN: Final = 0.5  # of the places on the way where the leader pauses
NEAREST: Final = 0.08  # m between one place and the next
ROUND: Final = 0.25  # s
LAG: Final = 0.15  # s: of the follower's arm, and of what it sees of the other
GAIN: Final = 0.3  # of the difference, in one control step

Floats = NDArray[np.float64]


def away(generator: np.random.Generator, place: Floats) -> Floats:
    """A random place in the room, `(3,)` in m, not too near another."""
    while True:
        found = generator.uniform(*ROOM)
        if norm(found - place) >= NEAREST:
            return found


@final
class Leader:
    """Leads the right end, by actions `(3,)` of the right arm; it looks into the environment for the goal."""

    def __init__(self) -> None:
        self.stage = "lead"

    def reset(self, env: Any, seed: int) -> None:
        """Draw a path from where the bar is to the goal."""
        self._env, self._step = env, 0
        generator = np.random.default_rng(seed)
        self._path = _path(generator, env.start, env.goal) - env.start + env.told[1]

    def act(self, observation: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """The next piece of the path; nothing of the observation counts."""
        self._step = min(self._step + 1, len(self._path) - 1)
        self.stage = "lead" if self._step < len(self._path) - 1 else "wait at the goal"
        return np.clip((self._path[self._step] - self._env.told[1]) / UNIT, -1.0, 1.0).astype(np.float32)


@final
class CarryExpert:
    """Follows with the left end, by actions `(3,)` of the left arm."""

    def __init__(self) -> None:
        self.stage = "follow"

    def reset(self, env: Any, seed: int) -> None:
        """Nothing is chosen at random."""
        self.stage = "follow"

    def act(self, observation: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Keep the end where the level bar asks for."""
        apart = observation["partner"] - (LENGTH, 0.0, 0.0)
        wanted = apart + LAG * observation["partner_velocity"]
        self.stage = "follow" if norm(observation["partner_velocity"]) > 0.01 else "wait"
        return np.clip(GAIN * (wanted - observation["lead"]) / UNIT, -1.0, 1.0).astype(np.float32)


def _path(generator: np.random.Generator, start: Floats, goal: Floats) -> Floats:
    """Places of the centre at every control step, `(steps, 3)`."""
    places = [start]
    for _ in range(int(generator.integers(1, 3))):
        places.append(away(generator, places[-1]))
    places.append(goal)
    surprise = int(generator.integers(len(places) - 1))  # the leg with a pause in its middle
    places.insert(
        surprise + 1, places[surprise] + generator.uniform(0.3, 0.7) * (places[surprise + 1] - places[surprise])
    )
    path = [start] * round(generator.uniform(*PAUSES) / DT)
    speed = 0.0
    for k, (begin, end) in enumerate(zip(places[:-1], places[1:], strict=True)):
        speed = speed if k == surprise + 1 else generator.uniform(*SPEEDS)
        count = max(1, round(float(norm(end - begin)) / (speed * DT)))
        path += [begin + (end - begin) * i / count for i in range(1, count + 1)]
        if k == surprise or generator.random() < OFTEN:
            path += [end] * round(generator.uniform(*PAUSES) / DT)
    width = round(ROUND / DT)
    padded = np.pad(np.array(path), ((width - 1, width - 1), (0, 0)), mode="edge")
    return np.stack([padded[i : len(padded) - width + 1 + i] for i in range(width)]).mean(axis=0)


__all__ = ["DT", "LENGTH", "ROOM", "UNIT", "CarryExpert", "Leader", "away"]
