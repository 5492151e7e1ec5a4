"""Plans in time: the best way of sampling that the control period allows, and fewer evaluations when one was late."""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from poise.policies.carriers import Plans, Request, Way, afresh
from poise.policies.diffusion import DiffusionPolicy
from poise.policies.policy import Policy
from poise.policies.spec import PolicySpec
from poise.sampling import Sampler, per_sample

_log = logging.getLogger("poise.policies")
_WARM, _TIMED = 3, 20  # plans at the start, a candidate
_PATIENCE = 16  # times the patience that a candidate which was late again and again is left alone for, at most


class Candidate(NamedTuple):
    """One way of sampling.

    Attributes:
        sampler: Any of `poise.sampling`.
        evaluations: Network evaluations a plan.
    """

    sampler: Sampler
    evaluations: int

    def of(self, policy: DiffusionPolicy) -> DiffusionPolicy:
        """The policy under this sampler."""
        return policy.using(sampler=self.sampler, evaluations=self.evaluations)


@dataclass
class Punctuality:
    """What has become of deadlines.

    Attributes:
        plans: Plans that were made.
        missed: Plans that took longer than they may.
        excess: By how many seconds in all.
        worst: By how many seconds at most.
        drops: Changes to a faster candidate.
        recoveries: Changes back.
    """

    plans: int = 0
    missed: int = 0
    excess: float = 0.0
    worst: float = 0.0
    drops: int = 0
    recoveries: int = 0


class Deadline:
    """Make plans within a time, by the best candidate that fits; a `Way`.

    At the start every candidate is timed on an observation of zeros. The first in the given order whose 95 % quantile
    keeps to the time, less a margin, is used. A plan that was late is a warning in the log of `poise.policies`, and
    changes to the first faster one after it that would fit if everything went on as slowly. After `patience` plans in
    time, none of which was so slow that the candidate before would not fit, that one is tried again; where it is late
    within as many plans, the next trial waits twice as long.

    No plan is cut off: what is late arrives late, which `Asynchronous` goes around.

    What is timed at the start is a plan of one robot. Where `Asynchronous` plans for several at once, batches that take
    longer are found out as any slowness is, by plans that are late: leave a larger margin there.

    Args:
        policy: What is timed.
        rate_hz: Control steps a second.
        candidates: Samplers and evaluations, the best first; by default the sampler of the policy with its evaluations,
            a half of them, a quarter and so on, as far as sampler and grid can spend them. Other samplers are not among
            them: nearly all that a plan costs is the network, so they take as long an evaluation, and none is a way
            to be faster. Where one of them plans better with few evaluations, give it.
        way: How plans are made.
        steps: Control steps that a plan may take: what the plan that runs leaves, `planned - execute` at most.
        margin: Share of the time that is kept free.
        patience: Plans in time until the candidate before is tried again.
        clock: Seconds since some fixed moment.

    Attributes:
        budget: Seconds that a plan may take.
        seconds: 95 % quantile of each candidate at the start.
        candidate: The one in use.
        punctuality: What happened so far.

    Raises:
        ValueError: No candidate, none that fits, or numbers out of range.
    """

    def __init__(
        self,
        policy: DiffusionPolicy,
        rate_hz: float,
        candidates: Sequence[tuple[Sampler, int]] | None = None,
        way: Way = afresh,
        steps: int = 1,
        margin: float = 0.2,
        patience: int = 20,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        candidates = _halved(policy.spec) if candidates is None else candidates
        if not (rate_hz > 0 and len(candidates) and steps >= 1 and 0 <= margin < 1 and patience >= 1):
            raise ValueError(
                f"Deadline got rate_hz={rate_hz}, {len(candidates)} candidates, steps={steps}, margin={margin} and "
                f"patience={patience}, expected a rate above 0, one candidate, step and plan or more, and a margin in "
                "[0, 1)"
            )
        self._way, self._clock, self._base = way, clock, patience
        self.budget, self._allowed = steps / rate_hz, (1 - margin) * steps / rate_hz
        self._candidates = [Candidate(*candidate) for candidate in candidates]
        self.seconds = tuple(self._timed(policy, candidate) for candidate in self._candidates)
        fitting = [index for index, seconds in enumerate(self.seconds) if seconds <= self._allowed]
        if not fitting:
            took = ", ".join(f"{1e3 * seconds:.1f}" for seconds in self.seconds)
            raise ValueError(
                f"Deadline got candidates whose plans take {took} ms (95 % quantiles), expected one of at most "
                f"{1e3 * self._allowed:.1f} ms, {1 - margin:.0%} of {steps} control steps at {rate_hz:g} Hz: give "
                "fewer evaluations, or more steps, as many as the plan that runs leaves"
            )
        # From the best that fits at rest downwards: only what is faster than all before it is of use when late.
        self._ladder = [fitting[0]]
        for index in fitting:
            if self.seconds[index] < self.seconds[self._ladder[-1]]:
                self._ladder.append(index)
        self._rung, self._patience, self._on_trial = 0, patience, False
        self._ratios: list[float] = []
        self.punctuality = Punctuality()

    @property
    def candidate(self) -> Candidate:
        """The candidate in use."""
        return self._candidates[self._ladder[self._rung]]

    def __call__(self, policy: DiffusionPolicy, request: Request) -> Plans:
        """Plans by the candidate in use."""
        begin = self._clock()
        plans = self._way(self.candidate.of(policy), request)
        self._judge(self._clock() - begin)
        return plans

    def _timed(self, policy: DiffusionPolicy, candidate: Candidate) -> float:
        request, seconds, chosen = _blank(policy), [], candidate.of(policy)
        for _ in range(_WARM + _TIMED):
            begin = self._clock()
            self._way(chosen, request)
            seconds.append(self._clock() - begin)
        return float(np.quantile(seconds[_WARM:], 0.95))

    def _expected(self, rung: int) -> float:
        return self.seconds[self._ladder[rung]]

    def _judge(self, seconds: float) -> None:
        done, ratio = self.punctuality, seconds / self._expected(self._rung)
        done.plans += 1
        if seconds > self.budget:
            done.missed += 1
            done.excess += seconds - self.budget
            done.worst = max(done.worst, seconds - self.budget)
            sampler, evaluations = self.candidate
            late = 1e3 * seconds, 1e3 * self.budget, type(sampler).__name__, evaluations
            _log.warning("a plan took %.1f ms of at most %.1f, by %s with %d evaluations", *late)
            self._drop(ratio)
            return
        self._ratios.append(ratio)
        if len(self._ratios) < self._patience:
            return
        slowest, self._ratios = max(self._ratios), []
        if self._on_trial:
            self._on_trial, self._patience = False, self._base
        if self._rung and slowest * self._expected(self._rung - 1) <= self._allowed:
            self._rung, self._on_trial = self._rung - 1, True
            done.recoveries += 1

    def _drop(self, ratio: float) -> None:
        self._ratios = []
        if self._on_trial:
            self._on_trial, self._patience = False, min(2 * self._patience, _PATIENCE * self._base)
        later = range(self._rung + 1, len(self._ladder))
        if later:
            self._rung = next((r for r in later if ratio * self._expected(r) <= self._allowed), later[-1])
            self.punctuality.drops += 1


def _halved(spec: PolicySpec) -> list[tuple[Sampler, int]]:
    """The sampler of a policy at its evaluations, a half of them and so on, where it and the grid can spend them."""
    sampler, evaluations, found = spec.sampler, spec.evaluations, []
    while evaluations >= 1:
        with suppress(ValueError):
            spec.grid.times(spec.schedule, len(sampler.budget(evaluations)), spec.begin)
            found.append((sampler, evaluations))
        evaluations = evaluations // 2 if sampler.evaluations else 0  # a tolerance knows no budget
    return found


def _blank(policy: Policy) -> Request:
    """A request of one robot that sees zeros, half of whose plan is left."""
    spec, one = policy.spec, np.ones(1, int)
    previous = np.zeros((1, spec.planned, spec.action), np.float32)
    left = one * (spec.planned // 2)
    return Request(0 * one, policy.blank(1), per_sample([0]), previous, left, one, one, one, one, 0 * one)


__all__ = ["Candidate", "Deadline", "Punctuality"]
