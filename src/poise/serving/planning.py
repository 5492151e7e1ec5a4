"""Plans for the robots of many clients by one policy, in the worker thread."""

import logging
import secrets
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from poise.policies import Policy
from poise.serving.batching import Job, Planned
from poise.serving.sessions import Name, Request, Session, Turn
from poise.typing import Noise

Filter = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""`(planned, action) -> (planned, action)`: what every plan passes before it leaves; a ValueError rejects it."""

_log = logging.getLogger("poise.serving")


class Served(NamedTuple):
    """What an observer gets of every plan.

    Attributes:
        client: Number of the connection.
        request: The observation, of which robot it is, and whether an episode began with it.
        planned: The plan, as it is sent, and its times.
    """

    client: Hashable
    request: Request
    planned: Planned


class Observer(Protocol):
    """Anything that records or shows what is served; called in the worker thread, so it delays the next batch."""

    def __call__(self, served: Served) -> None:
        """Take note of one plan."""
        ...


class Window(NamedTuple):
    """What a plan is made from.

    Attributes:
        observation: Name -> `(1, history, ...)`.
        noise: For a batch of one.
        turn: Which plan of its robot it is for.
    """

    observation: dict[str, Tensor]
    noise: Noise
    turn: Turn


class Planner:
    """The robots of all connections and the policy that plans for them, as the `Work` of a `Batcher`.

    Args:
        policy: Any policy.
        seed: Of the noise of every robot, so that plans depend on its observations alone; None draws one each.
        filters: What every plan passes, one after the other.
        observers: What is told of every plan.
    """

    def __init__(
        self,
        policy: Policy,
        seed: int | None = None,
        filters: Sequence[Filter] = (),
        observers: Sequence[Observer] = (),
    ) -> None:
        policy.ready()
        self.policy, self._seed, self._filters, self._observers = policy.eval(), seed, filters, observers
        self._sessions: dict[tuple[Hashable, Name], Session] = {}

    def warm_up(self) -> None:
        """Plan for zeros, alone and in a batch: the first plans of a process take many times as long."""
        for batch in (1, 2):
            self.policy.plan(self.policy.blank(batch)).cpu()

    def forget(self, client: Hashable) -> None:
        """Drop the robots of a connection."""
        self._sessions = {robot: session for robot, session in self._sessions.items() if robot[0] != client}

    def plan(self, jobs: Sequence[Job]) -> list[Planned | Exception]:
        """The outcome of every job: a plan, or the error of its own observation."""
        begin = time.perf_counter()
        outcomes: dict[int, Planned | Exception] = {}
        windows: dict[tuple[str, ...], dict[int, Window]] = {}
        for number, job in enumerate(jobs):
            try:
                seen = self._seen(job)
                windows.setdefault(tuple(seen.observation), {})[number] = seen  # which optional ones there are
            except Exception as error:
                outcomes[number] = _told(error)
        for group in windows.values():
            plans = self._plans(list(group.values()))
            seconds = time.perf_counter() - begin
            for (number, seen), plan in zip(group.items(), plans, strict=True):
                if isinstance(plan, Exception):
                    outcomes[number] = plan
                    continue
                times = seconds, len(group), begin - jobs[number].since
                outcomes[number] = Planned(plan[0], *times, plan[1], seen.observation, seen.turn)
        return [outcomes[number] for number in range(len(jobs))]

    def tell(self, jobs: Sequence[Job], outcomes: Sequence[Planned | Exception]) -> None:
        """Hand every plan to the observers; one that fails is logged."""
        for job, outcome in zip(jobs, outcomes, strict=True):
            if isinstance(outcome, Exception):
                continue
            reset = any(request.reset for request in job.requests)
            served = Served(job.client, replace(job.requests[-1], reset=reset), outcome)
            for observer in self._observers:
                try:
                    observer(served)
                except Exception:
                    _log.exception("an observer failed; the robots are served on")

    def _session(self, job: Job) -> Session:
        if job.robot not in self._sessions:
            seed = secrets.randbits(62) if self._seed is None else self._seed
            self._sessions[job.robot] = Session(self.policy, seed)
        return self._sessions[job.robot]

    def _seen(self, job: Job) -> Window:
        session = self._session(job)
        for request in job.requests:
            session.observe(request)
        return Window(session.window(), session.noise(), session.turn())

    def _plans(self, windows: Sequence[Window]) -> list[tuple[NDArray[np.float32], int] | Exception]:
        try:
            batch = {n: torch.cat([window.observation[n] for window in windows]) for n in windows[0].observation}
            plans = self.policy.plan(batch, _each([window.noise for window in windows])).cpu().numpy()
        except Exception as error:
            if len(windows) == 1:
                return [_told(error)]
            # One of them is to blame, and the others shall not pay for it.
            half = len(windows) // 2
            return [*self._plans(windows[:half]), *self._plans(windows[half:])]
        return [self._filtered(plan) for plan in plans]

    def _filtered(self, plan: NDArray[np.float32]) -> tuple[NDArray[np.float32], int] | Exception:
        """The plan that leaves, and how many of its actions the filters changed."""
        before = plan.copy() if self._filters else plan
        try:
            for each in self._filters:
                plan = each(plan)
            if not np.isfinite(plan).all():
                raise ValueError("the policy planned NaN or infinity, expected finite actions: hold the robot")
            return plan, int((plan != before).any(1).sum())
        except Exception as error:
            return _told(error)


def _told(error: Exception) -> Exception:
    """What a client may know: what is wrong with its input, and of anything else that it happened."""
    if isinstance(error, ValueError | FloatingPointError):
        return ValueError(str(error))
    _log.error("planning failed", exc_info=error)
    return RuntimeError("the server failed to plan: its log tells more")


def _each(sources: Sequence[Noise]) -> Noise:
    """Noise whose row i comes from source i."""

    def draw(x: Tensor, t: float, s: float) -> Tensor:
        return torch.cat([source(x[i : i + 1], t, s) for i, source in enumerate(sources)])

    return draw


__all__ = ["Filter", "Observer", "Planner", "Served", "Window"]
