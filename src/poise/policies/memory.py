"""What every controller keeps of its robots: their clocks, their histories of observations, and their noise."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from poise.policies.policy import Policy
from poise.sampling import per_sample
from poise.typing import Noise

Robots = NDArray[np.intp]
"""Indices of robots."""

Seeds = Sequence[int] | NDArray[np.integer]
"""One seed a robot that is reset, in the order of the robots."""

Seen = Mapping[str, NDArray]
"""Name of a feature -> `(robots, ...)`, one observation a robot."""

Mask = NDArray[np.bool_] | None
"""Which robots are meant, `(robots,)`; None means all."""

Age = int | NDArray[np.integer] | None
"""Control steps since an observation was taken, one number or `(robots,)`; None means 0."""


class Memory:
    """Clocks, histories and sources of noise of any number of robots.

    A robot's clock counts its control steps since the reset. Its history holds one observation a control step, the
    newest last, whatever the order of the calls: an observation that comes again changes nothing, and where steps have
    no observation of their own the one before them is held.

    Args:
        policy: Any policy.
        robots: Their number.

    Attributes:
        now: `(robots,)`, the control step that the last observation was handed in at; the first is 0.
        seen: `(robots,)`, the control step that the newest observation was taken at.

    Raises:
        ValueError: A feature without statistics.
    """

    def __init__(self, policy: Policy, robots: int) -> None:
        policy.ready()
        self.policy, self.robots = policy.eval(), robots
        spec = policy.spec
        self._history = {
            name: np.zeros((robots, spec.history, *shape), np.uint8 if name in spec.cameras else np.float32)
            for name, shape in spec.observations.items()
        }
        self._filled = {name: np.zeros(robots, bool) for name in spec.observations}
        self._noise = [torch.Generator() for _ in range(robots)]
        self.now, self.seen = np.full(robots, -1), np.full(robots, -1)
        self.reset(range(robots))

    def reset(self, seeds: Seeds, which: Mask = None) -> Robots:
        """Forget the histories, and seed the noise, of all robots or of those of the mask `which`; return which."""
        chosen = np.arange(self.robots) if which is None else np.flatnonzero(which)
        for robot, seed in zip(chosen, seeds, strict=True):
            self._noise[robot].manual_seed(int(seed))
        for filled in self._filled.values():
            filled[chosen] = False
        self.now[chosen] = -1
        return chosen

    def observe(self, observation: Seen, which: Mask = None, age: Age = None) -> NDArray[np.bool_]:
        """One control step with an observation; return the mask of the robots that it is for.

        Args:
            observation: Name -> `(robots, ...)`.
            which: Robots to observe; None means all.
            age: Control steps since the observation was taken, one number or `(robots,)`; None means 0.

        Raises:
            ValueError: A feature that is missing, of a wrong shape or type, or not finite; an age that is negative,
                leaves nothing of a plan, or goes back behind what the robot saw already.
        """
        active = np.ones(self.robots, bool) if which is None else np.asarray(which, bool)
        rows = self._checked(observation, active)
        taken = self.now + 1 - self._age(age, active)
        first = active & (self.now < 0)
        later = active & ~first
        if (taken[later] < self.seen[later]).any():
            robot = np.flatnonzero(later & (taken < self.seen))[0]
            raise ValueError(
                f"got an observation of robot {robot} taken at its control step {taken[robot]}, expected none older "
                f"than the newest one that was used, of step {self.seen[robot]}: drop it, or hand that one in again"
            )
        steps = np.where(later, taken - self.seen, 0)
        for name in self._history:
            self._push(name, rows.get(name), active, steps)
        self.now[active] += 1
        self.seen[active] = taken[active]
        return active

    def skip(self, which: Mask = None) -> None:
        """One control step without an observation: the one before it is held; robots that saw none yet wait for one.

        Args:
            which: Robots that it passes for; None means all.
        """
        active = np.ones(self.robots, bool) if which is None else np.asarray(which, bool)
        self.now[active & (self.now >= 0)] += 1

    def _checked(self, observation: Seen, active: NDArray[np.bool_]) -> dict[str, NDArray]:
        """The features that are given, once they are found to fit."""
        rows = {}
        for name, history in self._history.items():
            if name not in observation and name in self.policy.spec.optional:
                continue
            expected = (self.robots, *history.shape[2:])
            if name not in observation:
                raise ValueError(
                    f"got the features {sorted(observation)}, expected also {name!r}, which is missing: "
                    f"give it, or list it in PolicySpec.optional and train again"
                )
            got = np.asarray(observation[name])
            if got.shape != expected:
                raise ValueError(
                    f"got feature {name!r} of shape {got.shape}, expected {expected}: one current observation a robot"
                )
            if got.dtype.kind not in "biuf":
                raise ValueError(f"got feature {name!r} of {got.dtype}, expected numbers")
            if history.dtype == np.uint8:
                check_pixels(name, got)
            elif not np.isfinite(got[active]).all():  # it would stay in the history when the sensor has recovered
                raise ValueError(
                    f"got NaN or infinity in feature {name!r}, expected finite numbers: "
                    "check the sensor, and hold the robot meanwhile"
                )
            rows[name] = got
        return rows

    def _age(self, age: Age, active: NDArray[np.bool_]) -> NDArray[np.integer]:
        ages, planned = np.asarray(0 if age is None else age), self.policy.spec.planned
        if ages.shape not in ((), (self.robots,)) or not np.issubdtype(ages.dtype, np.integer):
            raise ValueError(
                f"got an age of shape {ages.shape} and {ages.dtype}, expected whole control steps, one number or "
                f"({self.robots},)"
            )
        ages = np.broadcast_to(ages, self.robots)
        wrong = active & ((ages < 0) | (ages >= planned))
        if wrong.any():
            robot = np.flatnonzero(wrong)[0]
            raise ValueError(
                f"got an observation of robot {robot} of age {ages[robot]}, expected 0 to {planned - 1}: a plan of "
                f"{planned} actions from the moment of an older one has none left for now; hold the robot, or plan on"
            )
        return ages

    def _push(self, name: str, got: NDArray | None, active: NDArray[np.bool_], steps: NDArray[np.integer]) -> None:
        """Move the histories of a feature on by so many steps; fill those that begin."""
        history, filled = self._history[name], self._filled[name]
        if got is None:
            filled[active] = False
            return
        begins = active & ~filled
        history[begins] = got[begins][:, None]
        for count in np.unique(steps[active & filled & (steps > 0)]):
            robots = active & filled & (steps == count)
            index = (np.arange(history.shape[1]) + count).clip(max=history.shape[1] - 1)
            history[robots] = history[robots][:, index]
            history[robots, -1] = got[robots]
        filled[active] = True

    def window(self, robots: Robots) -> dict[str, Tensor]:
        """The histories of some robots, for the policy; optional features only where they are given."""
        device = self.policy.action_normaliser.scale.device
        return {
            name: torch.as_tensor(history[robots]).to(device)
            for name, history in self._history.items()
            if self._filled[name][robots].all()
        }

    def noise(self, robots: Robots) -> Noise:
        """Noise for some robots, each from its own source."""
        return per_sample([self._noise[robot] for robot in robots])

    def plan(self, robots: Robots) -> NDArray[np.float32]:
        """Plans from pure noise for some robots, `(len(robots), planned, action)`."""
        return self.policy.plan(self.window(robots), self.noise(robots)).cpu().numpy()


def check_pixels(name: str, images: NDArray) -> None:
    """Raise where images of a feature are not as the policy wants them.

    Raises:
        ValueError: Any type but uint8.
    """
    if images.dtype != np.uint8:
        raise ValueError(
            f"got images {name!r} of {images.dtype}, expected uint8 from 0 to 255, as the camera gives them: "
            "the policy normalises them itself"
        )


__all__ = ["Age", "Mask", "Memory", "Robots", "Seeds", "Seen", "check_pixels"]
