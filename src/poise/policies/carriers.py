"""What a controller asks when it plans ahead, ways to answer, and how long an answer is under way."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from poise.policies.memory import Robots
from poise.policies.policy import Policy
from poise.typing import Noise, Observation


class Request(NamedTuple):
    """What some robots ask a plan of: B of them.

    Attributes:
        robots: Their indices, `(B,)`.
        observation: Name -> `(B, history, ...)`.
        noise: For B plans.
        previous: The plans that run, moved on to the moment of the observation, their last actions repeated at the end,
            `(B, planned, action)`, in the units of the data.
        left: How many of these actions are still to come, `(B,)`; 0 where no plan runs.
        delay: Control steps from the observation until the plan will probably be entered, `(B,)`.
        taken: The control step of the observation, `(B,)`.
        asked: The control step of the request, `(B,)`.
        number: Plans that the robot asked for since its reset, before this one, `(B,)`.
        reset: How often the robot was reset before, `(B,)`.
    """

    robots: Robots
    observation: Observation
    noise: Noise
    previous: NDArray[np.float32]
    left: NDArray[np.integer]
    delay: NDArray[np.integer]
    taken: NDArray[np.integer]
    asked: NDArray[np.integer]
    number: NDArray[np.integer]
    reset: NDArray[np.integer]


Plans = NDArray[np.float32]

Way = Callable[[Any, Request], Plans]
"""`(policy, request) -> plans (B, planned, action)`: how a plan is made while another runs."""


def afresh(policy: Policy, request: Request) -> Plans:
    """Plans from pure noise, whatever runs: plain switching."""
    return policy.plan(request.observation, request.noise).cpu().numpy()


class Arrival(NamedTuple):
    """The answer to a request.

    Attributes:
        request: What was asked.
        here: The robots of the request whose plans these are, `(B,)`.
        plans: `(B, planned, action)`, or the error that they ended in.
    """

    request: Request
    here: NDArray[np.bool_]
    plans: Plans | Exception


class Carrier(ABC):
    """Where plans are made, and when they arrive."""

    @property
    @abstractmethod
    def free(self) -> bool:
        """Whether another request can be sent."""

    @abstractmethod
    def send(self, make: Callable[[], Plans], request: Request) -> None:
        """Have the plans of a request made."""

    @abstractmethod
    def arrived(self, now: NDArray[np.integer]) -> Iterator[Arrival]:
        """What has arrived by the control steps `now`, `(robots,)`; each once."""

    @abstractmethod
    def settle(self) -> None:
        """Wait for what is being made."""

    @abstractmethod
    def close(self) -> None:
        """Give back what it holds."""


class Worker(Carrier):
    """A thread that makes one batch of plans after the other."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "poise-planner")
        self._underway: tuple[Request, Future[Plans]] | None = None

    @property
    def free(self) -> bool:
        """Whether the thread waits for work."""
        return self._underway is None

    def send(self, make: Callable[[], Plans], request: Request) -> None:
        """Have the plans made in the thread."""
        self._underway = request, self._thread.submit(make)

    def arrived(self, now: NDArray[np.integer]) -> Iterator[Arrival]:
        """The batch, once it is made."""
        if self._underway is not None and self._underway[1].done():
            (request, made), self._underway = self._underway, None
            error = made.exception()
            if error is not None and not isinstance(error, Exception):
                raise error
            yield Arrival(request, np.ones(len(request.robots), bool), made.result() if error is None else error)

    def settle(self) -> None:
        """Wait until the batch is made."""
        if self._underway is not None:
            self._underway[1].exception()

    def close(self) -> None:
        """End the thread, once the batch is made."""
        self._thread.shutdown()


class Late(Carrier):
    """Simulated time: a plan is made at once, and arrives a given number of control steps after it was asked for.

    Args:
        delays: Of the plans of each robot, one after the other and over again; the first plan after a reset is there at
            once.

    Raises:
        ValueError: No delay, or a negative one.
    """

    def __init__(self, delays: Sequence[int]) -> None:
        if not len(delays) or min(delays) < 0:
            raise ValueError(f"got delays={tuple(delays)}, expected at least one number of control steps of 0 or more")
        self._delays = np.array(delays)
        self._underway: list[tuple[Request, NDArray[np.bool_], Plans, NDArray[np.integer]]] = []

    @property
    def free(self) -> bool:
        """Any number of plans may be under way."""
        return True

    def send(self, make: Callable[[], Plans], request: Request) -> None:
        """Make the plans now."""
        delay = np.where(request.number > 0, self._delays[(request.number - 1) % len(self._delays)], 0)
        self._underway.append((request, np.ones(len(request.robots), bool), make(), request.asked + delay))

    def arrived(self, now: NDArray[np.integer]) -> Iterator[Arrival]:
        """The plans whose delay is over."""
        for request, waiting, plans, arrives in self._underway:
            here = waiting & (arrives <= now[request.robots])
            if here.any():
                waiting &= ~here
                yield Arrival(request, here, plans)
        self._underway = [entry for entry in self._underway if entry[1].any()]

    def settle(self) -> None:
        """Nothing is being made."""

    def close(self) -> None:
        """Nothing is held."""


__all__ = ["Arrival", "Carrier", "Late", "Plans", "Request", "Way", "Worker", "afresh"]
