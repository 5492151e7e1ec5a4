"""What disturbs a policy in closed loop: other starts, noisy sensors, delays and pushes.

| kind | what happens | the strength |
|---|---|---|
| start | for the first control steps the robot repeats a random action of the demonstrations | control steps |
| noise | white noise on every observed number; images stay | deviations of the feature |
| delay | observations come late, which the controller knows, and plans ahead | control steps |
| lag | actions come late, which the controller does not know | control steps |
| push | for 5 control steps from a random one on, what is executed is off | deviations of actions |

Deviations are the standard deviations in the demonstrations.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from poise.evaluation.statistics import Interval
from poise.policies import RecedingHorizon
from poise.policies.control import Control, Controller
from poise.policies.memory import Age, Mask, Seeds, Seen
from poise.policies.recorded import Delayed

STRENGTHS: Final[Mapping[str, tuple[float, ...]]] = {
    "start": (2, 4, 8),
    "noise": (0.02, 0.05, 0.1),
    "delay": (1, 2, 4),
    "lag": (1, 2, 4),
    "push": (1, 2, 4),
}
_PUSH, _EARLIEST, _LATEST = 5, 5, 25  # control steps: how long, and when it may begin

Action = NDArray[np.float32]
Force = Callable[[int, Action], Action]
"""`(control step, action) -> what is executed`."""


class Disturbed:
    """Any controller, with noise on what it sees and a force on what it does; what happens depends on the seed alone.

    Args:
        controller: What acts.
        noise: Feature -> deviation of its noise, broadcast to its shape.
        force: Makes the force of an episode.
    """

    def __init__(
        self,
        controller: Controller,
        noise: Mapping[str, NDArray[Any]] | None = None,
        force: Callable[[np.random.Generator], Force] | None = None,
    ) -> None:
        self._controller, self._noise, self._force, self.robots = controller, noise or {}, force, controller.robots
        self._random: list[np.random.Generator] = [np.random.default_rng(0)] * self.robots
        self._forces: list[Force | None] = [None] * self.robots
        self._step = np.zeros(self.robots, int)

    @property
    def fresh(self) -> NDArray[np.bool_]:
        """Those of the controller."""
        return self._controller.fresh

    def reset(self, seeds: Seeds, which: Mask = None) -> None:
        """Reset the controller and the disturbance."""
        self._controller.reset(seeds, which)
        robots = np.arange(self.robots) if which is None else np.flatnonzero(which)
        for robot, seed in zip(robots, seeds, strict=True):
            self._random[robot], self._step[robot] = np.random.default_rng([int(seed), 2]), 0
            self._forces[robot] = self._force(self._random[robot]) if self._force else None

    def act(self, observation: Seen, which: Mask = None, age: Age = None) -> Action:
        """What is executed."""
        robots = np.arange(self.robots) if which is None else np.flatnonzero(which)
        seen = {name: np.array(values) for name, values in observation.items()}
        for robot in robots:
            for name, deviation in self._noise.items():
                fresh = self._random[robot].standard_normal(seen[name].shape[1:])
                seen[name][robot] += (deviation * fresh).astype(seen[name].dtype)
        actions = self._controller.act(seen, which, age).copy()
        for robot in robots:
            force = self._forces[robot]
            actions[robot] = force(int(self._step[robot]), actions[robot]) if force else actions[robot]
            self._step[robot] += 1
        return actions


class Untold:
    """Any controller, which is not told how old an observation is; inside `Delayed`, that is a lag of the actions.

    Args:
        controller: What acts.
    """

    def __init__(self, controller: Controller) -> None:
        self._controller, self.robots = controller, controller.robots

    @property
    def fresh(self) -> NDArray[np.bool_]:
        """Those of the controller."""
        return self._controller.fresh

    def reset(self, seeds: Seeds, which: Mask = None) -> None:
        """Reset the controller."""
        self._controller.reset(seeds, which)

    def act(self, observation: Seen, which: Mask = None, age: Age = None) -> Action:
        """The actions of the controller, as if the observation were of now."""
        return self._controller.act(observation, which)


def disturbance(kind: str, strength: float, shown: Mapping[str, NDArray[Any]], shaken: Collection[int]) -> Control:
    """A receding horizon under a disturbance.

    Args:
        kind: One of `STRENGTHS`.
        strength: In the unit of its kind.
        shown: Rows of the demonstrations by feature, with `action`; images left out.
        shaken: Dimensions of the action that a push disturbs.

    Raises:
        ValueError: An unknown kind.
    """
    if kind not in STRENGTHS:
        raise ValueError(f"got the disturbance {kind!r}, expected one of {list(STRENGTHS)}")
    if kind == "delay":
        return lambda policy, robots: Delayed(RecedingHorizon(policy, robots), int(strength))
    if kind == "lag":
        return lambda policy, robots: Delayed(Untold(RecedingHorizon(policy, robots)), int(strength))
    actions = shown["action"]
    forces = {
        "start": partial(_started, steps=strength, actions=actions),
        "push": partial(_pushed, length=strength, deviations=actions.std(0), shaken=sorted(shaken)),
    }
    noise = {name: strength * values.std(0) for name, values in shown.items() if name != "action"}
    return lambda policy, robots: Disturbed(
        RecedingHorizon(policy, robots), noise if kind == "noise" else None, forces.get(kind)
    )


def recovery(won: Sequence[bool], undisturbed: Sequence[bool]) -> Interval | None:
    """Success under a disturbance over that without, on the same seeds, with its 95 % bootstrap interval.

    Args:
        won: Of every seed, under the disturbance.
        undisturbed: Of the same seeds without.

    Returns:
        None where nothing succeeds without.
    """
    under, before = np.array(won, float), np.array(undisturbed, float)
    if not before.any():
        return None
    rows = np.random.default_rng(0).integers(len(under), size=(2000, len(under)))
    low, high = np.quantile(under[rows].sum(1) / np.maximum(1, before[rows].sum(1)), [0.025, 0.975])
    return Interval(float(under.sum() / before.sum()), float(low), float(high))


def _started(random: np.random.Generator, steps: float, actions: Action) -> Force:
    """An action of the demonstrations for the first steps."""
    drawn = actions[random.integers(len(actions))]
    return lambda step, action: drawn if step < steps else action


def _pushed(random: np.random.Generator, length: float, deviations: NDArray[Any], shaken: Sequence[int]) -> Force:
    """A vector that is added for some steps."""
    direction = random.standard_normal(len(shaken))
    off = np.zeros(len(deviations))
    off[list(shaken)] = length * direction / np.linalg.norm(direction)
    off *= deviations
    begin = random.integers(_EARLIEST, _LATEST)
    return lambda step, action: action + off.astype(action.dtype) if begin <= step < begin + _PUSH else action


__all__ = ["STRENGTHS", "Action", "Disturbed", "Force", "Untold", "disturbance", "recovery"]
