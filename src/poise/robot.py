"""The loop of a robot that a policy server plans for: an action or a hold for every control step, whatever breaks.

    with Client("ws://10.0.0.2:8000", api_key=key) as client:
        robot = Robot(client, rate=20.0, max_age=0.8, stop=arm.stop)
        while running:
            step = robot.step(camera_and_joints())
            arm.hold() if step.action is None else arm.command(step.action)
            wait_for_the_next_tick()

It fails closed: an action is executed only while the observation that its plan began from is young enough, however the
connection broke, and within limits, its own or those that the server tells. No step waits for the network, which the
thread of the client talks to.
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
from poise.limits import ActionLimits, Guard
from poise.watchdog import Hold, repeated

_ONE = np.ones(1, bool)
_PROTOCOL = {"age", "executed", "request_id", "reset"}  # what an observation may not be called
_log = logging.getLogger("poise.client")


class Step(NamedTuple):
    """What a robot is to do in one control step.

    Attributes:
        action: `(action,)`, or None: hold the robot where it is.
        age: Seconds since the observation was taken that the newest plan began from; None without a plan.
        wanted: The action of the plan, in its memory, that the limits may have changed; None where the robot holds.
    """

    action: NDArray[Any] | None
    age: float | None
    wanted: NDArray[Any] | None = None


class _Plan(NamedTuple):
    actions: NDArray[Any]
    taken: float


class Robot:
    """The action of every control step of one robot, from the newest plan; fails closed.

    A plan begins at the moment of its observation, so at age d seconds its action `round(d * rate)` is due. A new plan
    is asked for when `execute` actions of the last one are over, and at least twice within `max_age`; until it is there
    the last one goes on. The robot keeps the history of the policy itself, one observation a step, so it is whole
    whatever gets lost on the way; after an observation that holds NaN or infinity it begins anew.

    What is sent holds to `limits`, or without them to those of the metadata of the server, over the seams of plans and
    after holds too. A server that tells none, or none any more, is a warning, and what it told before stays. The first
    action of an episode is held to the range alone: where the robot stands, nobody told.

    Args:
        client: The connection.
        rate: Control steps a second, those that the policy was trained at.
        max_age: Seconds; without a plan whose observation is at most so old, the robot holds.
        patience: Seconds of holding after which `stop` is called, once. Then the robot holds until `reset`. Before its
            first action there is nothing to stop.
        stop: What brings the robot to rest for good.
        hold: What its last action becomes while the robot holds, which the next one goes on from: `repeated`, or
            `zeroed` for velocities.
        clock: Seconds.
        limits: Of what is sent, in place of those that the server tells.

    Attributes:
        holds: Control steps held, by reason; those that nobody called `step` for, in time, count as such.
        interventions: What the limits changed, as those of `poise.limits.Guard`.
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
        hold: Hold = repeated,
        clock: Callable[[], float] = time.monotonic,
        limits: ActionLimits | None = None,
    ) -> None:
        if not (rate > 0 and patience > 0 and max_age * rate >= 1):
            raise ValueError(
                f"Robot got rate={rate}, max_age={max_age} and patience={patience}, expected numbers above 0 and a "
                "max_age of at least one control step, 1 / rate"
            )
        self._client, self._rate, self._max_age, self._patience = client, rate, max_age, patience
        self._stop, self._hold_by, self._clock = stop, hold, clock
        self.holds, self.interventions = Counter[str](), Counter[str]()
        self._limits, self._warned = limits, False
        self._guard: Guard | None = None
        self._clear()

    def reset(self) -> None:
        """Begin an episode: forget plan and history, here and on the server, and go on after a stop."""
        pending = self._pending
        if pending is not None:
            pending[0].cancel()
        self._client.reset()
        if self._guard is not None:
            self._guard.reset()
        self._clear()

    def _clear(self) -> None:
        self.stopped = self._acted = False
        self._plan: _Plan | None = None
        self._pending: tuple[Future[dict[str, Any]], float] | None = None
        self._seen: deque[Mapping[str, Any]] = deque(maxlen=1)
        self._held: float | None = None
        self._stepped: float | None = None
        self._trouble = ""
        self._done: deque[NDArray[Any] | None] = deque(maxlen=0)  # since the last request; None for a hold

    def step(self, observation: Mapping[str, Any], age: float = 0.0) -> Step:
        """One control step; never waits, and raises nothing: whatever is wrong is logged, and ends in a hold.

        Args:
            observation: Of now: name -> `(...)`, as the metadata of the server say; it is copied.
            age: Seconds since it was taken.
        """
        now = self._clock()
        self._missed(now)
        self._remember(observation)
        self._collect(now)
        self._request(now - age)
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
        action = self._within(plan.actions[index])
        self._done.append(action)
        return Step(action, age, plan.actions[index])

    def _within(self, action: NDArray[Any]) -> NDArray[Any]:
        """What is sent of an action."""
        if self._guard is None:
            return action
        self._guard.send(action[None], _ONE)
        return self._guard.last[0].astype(action.dtype)

    def _missed(self, now: float) -> None:
        """Count the control steps that nobody called for: the robot stood meanwhile, or went on by itself."""
        missed = 0 if self._stepped is None else round((now - self._stepped) * self._rate) - 1
        self._stepped = now
        if missed > 0:
            self.holds["the step came late"] += missed
            self._stand(missed)

    def _stand(self, steps: int) -> None:
        """Take note of steps without an action, and let the limits know; after three they remember nothing else."""
        self._done.extend([None] * min(steps, self._done.maxlen or 0))
        if self._guard is not None and self._guard.begun.all():
            for _ in range(min(steps, 3)):
                self._guard.hold(_ONE)

    def _hold(self, now: float, age: float | None, reason: str) -> Step:
        self.holds[reason] += 1
        self._stand(1)
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
        broken = [name for name, values in observation.items() if not _finite(values)]
        if broken:
            self._seen.clear()
            self._tell(f"the observation {broken[0]!r} holds NaN or infinity")
            return
        self._seen.append({name: np.array(v) if isinstance(v, np.ndarray) else v for name, v in observation.items()})

    def _collect(self, now: float) -> None:
        if self._pending is None:
            return
        answer, taken = self._pending
        if answer.done():
            self._pending = None
            try:
                self._take(_actions(answer.result()), taken)
            except (RuntimeError, TypeError, ValueError, ConnectionError) as error:
                self._tell(str(error))
        elif now - taken > self._max_age:
            answer.cancel()
            self._pending = None

    def _take(self, actions: NDArray[Any], taken: float) -> None:
        """Go on along a plan, within limits."""
        self._limit(actions.shape[1])
        alike = self._plan is not None and self._plan.actions.shape == actions.shape
        self._done = self._done if alike else deque(maxlen=len(actions))
        self._plan, self._trouble = _Plan(actions, taken), ""

    def _limit(self, dimensions: int) -> None:
        """Hold to the robot's own limits, or to the newest that a server told."""
        told = (self._client.metadata or {}).get("safety")
        limits = ActionLimits(**told) if self._limits is None and told is not None else self._limits
        if limits is None and not self._warned:
            self._warned = True
            stay = "actions leave as planned" if self._guard is None else "those that it told before stay"
            _log.warning("the server tells no limits of actions: %s; Robot(..., limits=...) has its own", stay)
        if limits is None and self._guard is not None:
            limits = self._guard.limits
        if limits is None:
            return
        if len(limits.low) != dimensions:
            raise ValueError(f"got a plan of {dimensions} dimensions for limits of {len(limits.low)}")
        if self._guard is None or len(self._guard.limits.low) != dimensions:
            self._guard = Guard(limits, 1, self._hold_by)
            self._guard.interventions = self.interventions
        self._guard.limits = limits  # and what was sent is remembered

    def _request(self, taken: float) -> None:
        metadata = self._client.metadata
        if metadata is None or self._pending is not None or not self._seen:
            return
        every = min(metadata.get("execute", 2**31), max(1, int(self._max_age * self._rate / 2)))
        if self._plan is None or (taken - self._plan.taken) * self._rate > every - 0.5:
            try:
                told = self._told() if metadata.get("server") == "poise" else {}
                self._pending = self._client.ask(self._window(metadata.get("observations", {})) | told), taken
                self._done.clear()
            except (TypeError, ValueError, ConnectionError) as error:
                self._tell(str(error))

    def _told(self) -> dict[str, Any]:
        """What was done since the last request, for the record of a server of poise."""
        if self._plan is None or not self._done:
            return {}
        hold = np.full(self._plan.actions.shape[1], np.nan, np.float32)
        return {"executed": np.stack([hold if action is None else action for action in self._done])}

    def _tell(self, trouble: str) -> None:
        """Log what is wrong, once until it changes or a plan comes."""
        if trouble != self._trouble:
            _log.warning("no plan: %s", trouble)
        self._trouble = trouble

    def _window(self, features: Mapping[str, Any]) -> dict[str, Any]:
        """The history for the server: as many steps as have the same features, or one without that dimension."""
        newest = self._seen[-1]
        if _PROTOCOL & newest.keys():
            raise ValueError(f"got an observation named {min(_PROTOCOL & newest.keys())!r}, expected other names")
        rows = list(itertools.takewhile(lambda row: row.keys() == newest.keys(), reversed(self._seen)))[::-1]
        if self._seen.maxlen == 1:
            return dict(newest)
        return {
            name: np.stack([np.asarray(row[name]) for row in rows]) if name in features else value
            for name, value in newest.items()
        }


def _finite(values: Any) -> bool:
    """Whether numbers of an observation are; what is no number passes."""
    array = np.asarray(values)
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _actions(reply: Mapping[str, Any]) -> NDArray[Any]:
    actions = reply.get("actions")
    if not isinstance(actions, np.ndarray) or actions.ndim != 2 or not np.isfinite(actions).all():
        raise ValueError("got a reply without finite actions (steps, action), expected a plan")
    return actions


__all__ = ["Robot", "Step"]
