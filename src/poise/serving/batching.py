"""Requests of many clients, planned for in one worker thread: together, in turn, and the newest of each robot only."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from poise.serving.sessions import Name, Request, Turn, joined
from poise.serving.worker import Worker

T = TypeVar("T")

KINDS = "range", "change", "acceleration", "jerk", "rejected"
"""Kinds of interventions: of an action that wanted to break a limit, and of a whole plan that did not leave."""

_PAUSE = 0.05  # of the time that a batch took: for the next ones to arrive


class Planned(NamedTuple):
    """The answer to a request.

    Attributes:
        actions: `(planned, action)`; index 0 is for the moment of the observation.
        seconds: That the policy took, for the whole batch.
        batch: Robots that were planned for at once.
        waited: Seconds before.
        changed: Actions that a filter or a limit changed.
        interventions: Counts by `KINDS`, none of 0; an action may count under several of the limits.
        seen: What the policy saw: name -> `(1, history, ...)`.
        turn: Which plan of its robot it is.
    """

    actions: NDArray[np.float32]
    seconds: float
    batch: int
    waited: float
    changed: int
    interventions: Counter[str]
    seen: Mapping[str, Tensor]
    turn: Turn


class SupersededError(Exception):
    """A request whose robot sent a newer one before it was planned for."""


class RejectedError(ValueError):
    """A plan that does not leave: it is not finite, a filter refused it, or the policy failed to make it.

    Args:
        why: What the client is told.
        planned: What the policy made, or zeros.
    """

    def __init__(self, why: str, planned: Planned) -> None:
        super().__init__(why)
        self.planned = planned


@dataclass
class Job:
    """What is to be planned for one robot.

    Attributes:
        client: Any name of the connection.
        requests: The newest one, and those before it that it superseded.
        answer: Where the outcome goes.
        since: When the newest came, in seconds.
    """

    client: Hashable
    requests: list[Request]
    answer: asyncio.Future[Planned]
    since: float

    @property
    def robot(self) -> tuple[Hashable, Name]:
        """The robot, among those of all connections."""
        return self.client, self.requests[-1].robot


class Work(Protocol):
    """What the worker thread does; no two of these run at the same time."""

    def plan(self, jobs: Sequence[Job]) -> Sequence[Planned | Exception]:
        """Plan for some robots: one outcome a job."""
        ...

    def tell(self, jobs: Sequence[Job], outcomes: Sequence[Planned | Exception]) -> None:
        """Do what is to be done when the outcomes are on their way."""
        ...

    def forget(self, client: Hashable) -> None:
        """Drop what is kept of a connection."""
        ...


class Batcher:
    """Jobs that wait, at most one a robot, and the worker that takes them.

    While the worker plans, what arrives waits; then all that waits is planned for at once. Where that is more than the
    batch may hold, connections take turns, however many robots each of them has.

    Args:
        work: Plans.
        most: Jobs of a batch.
        history: Observations that the policy sees, which a superseded request adds to.
    """

    def __init__(self, work: Work, most: int, history: int) -> None:
        self._work, self._most, self._history = work, most, history
        self._waiting: dict[Hashable, dict[Name, Job]] = {}
        self._some, self._idle = asyncio.Event(), asyncio.Event()
        self._idle.set()
        self._worker = Worker("poise-plan")
        self._begun: float | None = None

    def submit(self, client: Hashable, request: Request) -> asyncio.Future[Planned]:
        """Have a robot planned for; what it waited for until now is superseded.

        Returns:
            What gets the plan, or SupersededError, or the error of the observation or the policy.
        """
        robots = self._waiting.setdefault(client, {})
        job = Job(client, [request], asyncio.get_running_loop().create_future(), time.perf_counter())
        before = robots.get(request.robot)
        if before is not None:
            job.requests = joined(before.requests, request, self._history)
            _settle(before, SupersededError("superseded by a newer observation"))
        robots[request.robot] = job
        self._some.set()
        self._idle.clear()
        return job.answer

    def forget(self, client: Hashable) -> None:
        """Drop what waits of a connection, and what is kept of its robots."""
        for job in self._waiting.pop(client, {}).values():
            job.answer.cancel()
        self._worker.submit(self._work.forget, client)

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function in the worker thread."""
        return await asyncio.wrap_future(self._worker.submit(function, *arguments))

    async def run(self) -> None:
        """Plan without end."""
        while True:
            if not self._waiting:
                self._some.clear()
                self._idle.set()
                await self._some.wait()
            jobs, begin = self._take(), time.perf_counter()
            self._begun = begin
            try:
                outcomes = await self.call(self._work.plan, jobs)
                for job, outcome in zip(jobs, outcomes, strict=True):
                    _settle(job, outcome)
                await self.call(self._work.tell, jobs, outcomes)
            except Exception as error:  # or all robots would wait for ever
                for job in jobs:
                    _settle(job, error)
            self._begun = None
            # Those who were answered together ask again together, if the first of them does not begin a batch alone.
            await asyncio.sleep(_PAUSE * (time.perf_counter() - begin))

    def _take(self) -> list[Job]:
        jobs: list[Job] = []
        while self._waiting and len(jobs) < self._most:
            client = next(iter(self._waiting))
            robots = self._waiting.pop(client)
            jobs.append(robots.pop(next(iter(robots))))
            if robots:
                self._waiting[client] = robots
        return jobs

    async def idle(self) -> None:
        """Wait until nothing waits and nothing is planned."""
        await self._idle.wait()

    def close(self) -> None:
        """End the worker when its batch has ended."""
        self._worker.close()

    @property
    def busy(self) -> float:
        """Seconds since the batch that is planned began; 0 where none is."""
        return 0.0 if self._begun is None else time.perf_counter() - self._begun


def _settle(job: Job, outcome: Planned | Exception) -> None:
    """Tell a client, for which what the policy saw is left out: a client that does not read would have it kept."""
    if job.answer.done():  # its client is gone
        return
    if isinstance(outcome, RejectedError):
        outcome = RejectedError(str(outcome), outcome.planned._replace(seen={}))
    if isinstance(outcome, Exception):
        job.answer.set_exception(outcome)
    else:
        job.answer.set_result(outcome._replace(seen={}))


__all__ = ["KINDS", "Batcher", "Job", "Planned", "RejectedError", "SupersededError", "Work"]
