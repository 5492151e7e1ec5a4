"""Controllers around a controller: one that records, and one that delays what is seen."""

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from poise.data import Episodes
from poise.policies.control import Controller
from poise.policies.memory import Age, Mask, Seeds, Seen


class Recorded:
    """Any controller, and a record of what it saw and did, for inspection and for training on it.

    Everything is kept in memory, as copies.

    Args:
        controller: What acts.
        clock: Seconds; by default since some fixed moment.
    """

    def __init__(self, controller: Controller, clock: Callable[[], float] = time.monotonic) -> None:
        self._controller, self._clock, self.robots = controller, clock, controller.robots
        self._records: list[list[list[dict[str, NDArray]]]] = [[[]] for _ in range(self.robots)]

    @property
    def fresh(self) -> NDArray[np.bool_]:
        """Whether the last action returned was the first of a new plan, `(robots,)`."""
        return self._controller.fresh

    def reset(self, seeds: Seeds, which: Mask = None) -> None:
        """Reset the controller, and begin a new episode of the robots that are reset."""
        self._controller.reset(seeds, which)
        for robot in range(self.robots) if which is None else np.flatnonzero(which):
            self._records[robot].append([])

    def act(self, observation: Seen, which: Mask = None, age: Age = None) -> NDArray[np.float32]:
        """The actions of the controller, recorded."""
        now = np.float64(self._clock())
        actions = self._controller.act(observation, which, age)
        ages = np.broadcast_to(np.asarray(0 if age is None else age), self.robots)
        rows = {
            **observation,
            "action": actions,
            "control.fresh": self.fresh,
            "control.time": np.full(self.robots, now),
            "control.age": ages,
        }
        for robot in range(self.robots) if which is None else np.flatnonzero(which):
            self._records[robot][-1].append({name: np.array(values[robot]) for name, values in rows.items()})
        return actions

    def episodes(self, robot: int | None = None) -> Episodes:
        """The record of one robot, or of all one after the other; each reset begins an episode.

        The features are those that were observed at every step, `action`, and of every step `control.fresh`, whether
        it began a plan, `control.time` in seconds, when its observation was handed in, and `control.age`, how many
        control steps before it was taken.

        Raises:
            ValueError: Nothing was recorded.
        """
        chosen = self._records if robot is None else [self._records[robot]]
        episodes = [episode for records in chosen for episode in records if episode]
        if not episodes:
            raise ValueError("Recorded has no step to give episodes of, expected at least one act() before")
        rows = [row for episode in episodes for row in episode]
        names = [name for name in rows[0] if all(name in row for row in rows)]
        features = {name: np.stack([row[name] for row in rows]) for name in names}
        return Episodes(features, np.cumsum([len(episode) for episode in episodes]))


class Delayed:
    """Any controller, which gets every observation some control steps late, and is told its age; for experiments.

    The first observation after a reset is there at once, and it is the newest there is until a later one has come
    through: an episode begins at rest.

    Args:
        controller: What acts.
        steps: Control steps between an observation and its arrival.

    Raises:
        ValueError: A negative delay.
    """

    def __init__(self, controller: Controller, steps: int) -> None:
        if steps < 0:
            raise ValueError(f"Delayed got steps={steps}, expected 0 or more: observations cannot come early")
        self._controller, self._steps, self.robots = controller, steps, controller.robots
        self._past: dict[int, list[dict[str, NDArray]]] = {}

    @property
    def fresh(self) -> NDArray[np.bool_]:
        """Whether the last action returned was the first of a new plan, `(robots,)`."""
        return self._controller.fresh

    def reset(self, seeds: Seeds, which: Mask = None) -> None:
        """Reset the controller, and forget what is under way to the robots that are reset."""
        self._controller.reset(seeds, which)
        for robot in range(self.robots) if which is None else np.flatnonzero(which):
            self._past.pop(int(robot), None)

    def act(self, observation: Seen, which: Mask = None, age: Age = None) -> NDArray[np.float32]:
        """The actions of the controller for the observations that have come through; an `age` adds to the delay."""
        wrong = {name: np.shape(values) for name, values in observation.items() if len(values) != self.robots}
        if wrong:
            raise ValueError(f"Delayed got features of shapes {wrong}, expected ({self.robots}, ...): a row a robot")
        rows = [{name: np.array(values[robot]) for name, values in observation.items()} for robot in range(self.robots)]
        late, past = np.zeros(self.robots, int), dict(self._past)
        for robot in range(self.robots) if which is None else np.flatnonzero(which):
            past[int(robot)] = [*past.get(int(robot), ()), rows[robot]][-self._steps - 1 :]
            rows[robot], late[robot] = past[int(robot)][0], len(past[int(robot)]) - 1
        seen = {name: np.stack([row[name] for row in rows]) for name in rows[0] if all(name in row for row in rows)}
        actions = self._controller.act(seen, which, late + (0 if age is None else age))
        self._past = past  # not before: an observation that was refused is handed in again
        return actions


__all__ = ["Delayed", "Recorded"]
