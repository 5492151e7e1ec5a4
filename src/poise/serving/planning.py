"""Plans for the robots of many clients by one policy, in the worker thread."""

import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from poise.policies import Policy, Safety, limited
from poise.serving.batching import KINDS, Job, Planned, RejectedError
from poise.serving.sessions import Name, Request, Session, Turn, executed
from poise.typing import Noise

Filter = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""`(planned, action) -> (planned, action)`: what every plan passes before it leaves; a ValueError rejects it."""

_log = logging.getLogger("poise.serving")


class Served(NamedTuple):
    """What an observer gets of every plan.

    Attributes:
        client: Number of the connection.
        request: The observation, of which robot it is, and whether an episode began with it.
        planned: The plan, as it is sent, and its times; where `interventions` count it as `rejected`, it is not sent:
            then it is what the policy made, or zeros where the policy failed.
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


class _Passed(NamedTuple):
    """A plan behind the filters and the limits, or as it was before where something is wrong with it."""

    actions: NDArray[np.float32]
    changed: int
    interventions: Counter[str]
    wrong: Exception | None


class Planner:
    """The robots of all connections and the policy that plans for them, as the `Work` of a `Batcher`.

    Args:
        policy: Any policy.
        seed: Of the noise of every robot, so that plans depend on its observations alone; None draws one each.
        filters: What every plan passes, one after the other.
        observers: What is told of every plan.
        safety: Limits that every plan is held to behind the filters.
        sizes: Of batches that the policy is compiled for; smaller ones are filled up.

    Raises:
        ValueError: Limits of another number of dimensions than the actions of the policy.
    """

    def __init__(
        self,
        policy: Policy,
        seed: int | None = None,
        filters: Sequence[Filter] = (),
        observers: Sequence[Observer] = (),
        safety: Safety | None = None,
        sizes: Sequence[int] = (),
    ) -> None:
        policy.ready()
        if safety is not None and len(safety.low) != policy.spec.action:
            raise ValueError(
                f"got limits of {len(safety.low)} dimensions for a policy whose actions have {policy.spec.action}, "
                "expected as many: take the limits of this policy's own demonstrations, or serve without limits"
            )
        self.safety, self._sizes = safety, sizes
        self.policy, self._seed, self._filters, self._observers = policy.eval(), seed, filters, observers
        self._sessions: dict[tuple[Hashable, Name], Session] = {}

    def metadata(self) -> dict[str, Any]:
        """What clients are told: what the policy expects, what comes back, and the limits that it is held to."""
        spec, limits = self.policy.spec, {} if self.safety is None else asdict(self.safety)
        return {
            "server": "poise",
            "policy": type(self.policy).__name__,
            "observations": {name: list(shape) for name, shape in spec.observations.items()},
            "optional": sorted(spec.optional),
            "history": spec.history,
            "planned": spec.planned,
            "execute": spec.execute,
            "action": spec.action,
            **({"safety": {name: bound and list(bound) for name, bound in limits.items()}} if limits else {}),
        }

    def warm_up(self) -> None:
        """Plan for zeros, alone and in a batch: the first plans of a process take many times as long."""
        for batch in sorted({1, 2, *self._sizes}):
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
                times = seconds, len(group), begin - jobs[number].since
                done = plan.changed, plan.interventions
                planned = Planned(plan.actions, *times, *done, seen.observation, seen.turn)
                outcomes[number] = planned if plan.wrong is None else RejectedError(str(plan.wrong), planned)
        return [outcomes[number] for number in range(len(jobs))]

    def tell(self, jobs: Sequence[Job], outcomes: Sequence[Planned | Exception]) -> None:
        """Hand every plan to the observers, rejected ones too; an observer that fails is logged."""
        for job, outcome in zip(jobs, outcomes, strict=True):
            planned = outcome.planned if isinstance(outcome, RejectedError) else outcome
            if isinstance(planned, Exception):
                continue
            reset = any(request.reset for request in job.requests)
            done = executed(job.requests, self.policy.spec.planned)
            served = Served(job.client, replace(job.requests[-1], reset=reset, executed=done), planned)
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
            session.observe(request, superseded=request is not job.requests[-1])
        return Window(session.window(), session.noise(), session.turn())

    def _plans(self, windows: Sequence[Window]) -> list[_Passed]:
        filled = _filled(windows, self._sizes)
        try:
            batch = {n: torch.cat([window.observation[n] for window in filled]) for n in windows[0].observation}
            plans = self.policy.plan(batch, _each([window.noise for window in windows])).cpu().numpy()
        except Exception as error:
            if len(windows) == 1:
                nothing = np.zeros((self.policy.spec.planned, self.policy.spec.action), np.float32)
                return [_rejected(nothing, error)]
            # One of them is to blame, and the others shall not pay for it.
            half = len(windows) // 2
            return [*self._plans(windows[:half]), *self._plans(windows[half:])]
        return [self._passed(plan) for plan in plans[: len(windows)]]

    def _passed(self, plan: NDArray[np.float32]) -> _Passed:
        before, plan, done = plan, plan.copy(), Counter[str]()  # a view would keep the plans of the whole batch
        try:
            for each in self._filters:
                plan = each(plan)
            if not np.isfinite(plan).all():
                raise ValueError("the policy planned NaN or infinity, expected finite actions: hold the robot")
            if self.safety is not None:
                plan, done = limited(plan, self.safety)
            kinds = Counter({kind: done[kind] for kind in KINDS if done[kind]})
            return _Passed(plan, int((plan != before).any(1).sum()), kinds, None)
        except Exception as error:
            return _rejected(before.copy(), error)


def _rejected(plan: NDArray[np.float32], error: Exception) -> _Passed:
    return _Passed(plan, 0, Counter(rejected=1), _told(error))


def _told(error: Exception) -> Exception:
    """What a client may know: what is wrong with its input, and of anything else that it happened."""
    if isinstance(error, ValueError | FloatingPointError):
        return ValueError(str(error))
    _log.error("planning failed", exc_info=error)
    return RuntimeError("the server failed to plan: its log tells more")


def _filled(windows: Sequence[Window], sizes: Sequence[int]) -> list[Window]:
    """A batch of the next size that there is, with the last window again and again; as it is where there is none."""
    size = min((size for size in sizes if size >= len(windows)), default=len(windows))
    return [*windows, *[windows[-1]] * (size - len(windows))]


def _each(sources: Sequence[Noise]) -> Noise:
    """Noise whose row i comes from source i; rows beyond them have none, so that no source draws for them."""

    def draw(x: Tensor, t: float, s: float) -> Tensor:
        drawn = [source(x[i : i + 1], t, s) for i, source in enumerate(sources)]
        return torch.cat([*drawn, torch.zeros_like(x[len(sources) :])])

    return draw


__all__ = ["Filter", "Observer", "Planner", "Served", "Window"]
