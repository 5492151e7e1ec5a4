"""The loop of a robot that a policy server plans for: an action or a hold for every control step, whatever breaks.

    with Client("ws://10.0.0.2:8000", api_key=key) as client:
        robot = Robot(client, rate=20.0, max_age=0.8, stop=arm.stop)
        while running:
            step = robot.step(camera_and_joints())
            arm.hold() if step.action is None else arm.command(step.action)
            wait_for_the_next_tick()

It fails closed: an action is executed only while the observation that its plan began from is young enough, however the
connection broke. No step waits for the network, which the thread of the client talks to.
"""

import itertools
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from poise.client import Client

_log = logging.getLogger("poise.client")


class Step(NamedTuple):
    """What a robot is to do in one control step.

    Attributes:
        action: `(action,)`, or None: hold the robot where it is.
        age: Seconds since the observation was taken that the newest plan began from; None without a plan.
    """

    action: NDArray[Any] | None
    age: float | None


class _Plan(NamedTuple):
    actions: NDArray[Any]
    taken: float


class Robot:
    """The action of every control step of one robot, from the newest plan; fails closed.

    A plan begins at the moment of its observation, so at age d seconds its action `round(d * rate)` is due. A new plan
    is asked for when `execute` actions of the last one are over, and at least twice within `max_age`; until it is there
    the last one goes on. The robot keeps the history of the policy itself, one observation a step, so it is whole
    whatever gets lost on the way.

    Args:
        client: The connection.
        rate: Control steps a second, those that the policy was trained at.
        max_age: Seconds; without a plan whose observation is at most so old, the robot holds.
        patience: Seconds of holding after which `stop` is called, once. Then the robot holds until `reset`. Before its
            first action there is nothing to stop.
        stop: What brings the robot to rest for good.
        clock: Seconds.

    Attributes:
        holds: Control steps held, by reason.
        stopped: Whether `stop` was called since the last reset.

    Raises:
        ValueError: A rate or time that is not above 0, or a `max_age` below one control step.
    """

    def __init__(
        self,
        client: Client,
        rate: float,
        max_age: float,
        patience: float = 1.0,
        stop: Callable[[], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not (rate > 0 and patience > 0 and max_age * rate >= 1):
            raise ValueError(
                f"Robot got rate={rate}, max_age={max_age} and patience={patience}, expected numbers above 0 and a "
                "max_age of at least one control step, 1 / rate"
            )
        self._client, self._rate, self._max_age, self._patience = client, rate, max_age, patience
        self._stop, self._clock = stop, clock
        self.holds = Counter[str]()
        self._clear()

    def reset(self) -> None:
        """Begin an episode: forget plan and history, here and on the server, and go on after a stop."""
        pending = self._pending
        if pending is not None:
            pending[0].cancel()
        self._client.reset()
        self._clear()

    def _clear(self) -> None:
        self.stopped = self._acted = False
        self._plan: _Plan | None = None
        self._pending: tuple[Future[dict[str, Any]], float] | None = None
        self._seen: deque[Mapping[str, Any]] = deque(maxlen=1)
        self._held: float | None = None

    def step(self, observation: Mapping[str, Any]) -> Step:
        """One control step; never waits.

        Args:
            observation: Of now: name -> `(...)`, as the metadata of the server say; it is copied.
        """
        now = self._clock()
        self._remember(observation)
        self._collect(now)
        self._request(now)
        plan = self._plan
        if plan is None:
            return self._hold(now, None, "no plan yet")
        age = now - plan.taken
        index = math.floor(age * self._rate + 0.5)
        if self.stopped:
            return self._hold(now, age, "stopped")
        if age > self._max_age:
            return self._hold(now, age, "the newest plan is too old")
        if index >= len(plan.actions):
            return self._hold(now, age, "the newest plan is used up")
        if self._held is not None:
            _log.warning("moving again after %.3f s of holding", now - self._held)
        self._held, self._acted = None, True
        return Step(plan.actions[index], age)

    def _hold(self, now: float, age: float | None, reason: str) -> Step:
        self.holds[reason] += 1
        if self._held is None:
            self._held = now
            _log.warning("holding: %s", reason)
        if self._acted and not self.stopped and now - self._held >= self._patience:
            self.stopped = True
            _log.error("stopping: held for %.3f s", now - self._held)
            if self._stop is not None:
                self._stop()
        return Step(None, age)

    def _remember(self, observation: Mapping[str, Any]) -> None:
        history = (self._client.metadata or {}).get("history", 1)
        if history != self._seen.maxlen:
            self._seen = deque(self._seen, maxlen=history)
        self._seen.append({name: np.array(v) if isinstance(v, np.ndarray) else v for name, v in observation.items()})

    def _collect(self, now: float) -> None:
        if self._pending is None:
            return
        answer, taken = self._pending
        if answer.done():
            self._pending = None
            try:
                self._plan = _Plan(_actions(answer.result()), taken)
            except (RuntimeError, ValueError, ConnectionError) as error:
                _log.warning("no plan: %s", error)
        elif now - taken > self._max_age:
            answer.cancel()
            self._pending = None

    def _request(self, now: float) -> None:
        metadata = self._client.metadata
        if metadata is None or self._pending is not None:
            return
        every = min(metadata.get("execute", 2**31), max(1, int(self._max_age * self._rate / 2)))
        if self._plan is None or (now - self._plan.taken) * self._rate > every - 0.5:
            self._pending = self._client.ask(self._window(metadata.get("observations", {}))), now

    def _window(self, features: Mapping[str, Any]) -> dict[str, Any]:
        """The history for the server: as many steps as have the same features, or one without that dimension."""
        newest = self._seen[-1]
        rows = list(itertools.takewhile(lambda row: row.keys() == newest.keys(), reversed(self._seen)))[::-1]
        if self._seen.maxlen == 1:
            return dict(newest)
        return {
            name: np.stack([np.asarray(row[name]) for row in rows]) if name in features else value
            for name, value in newest.items()
        }


def _actions(reply: Mapping[str, Any]) -> NDArray[Any]:
    actions = reply.get("actions")
    if not isinstance(actions, np.ndarray) or actions.ndim != 2 or not np.isfinite(actions).all():
        raise ValueError("got a reply without finite actions (steps, action), expected a plan")
    return actions


__all__ = ["Robot", "Step"]
