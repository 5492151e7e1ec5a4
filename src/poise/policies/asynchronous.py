"""Planning while the plan before is executed: when a plan is asked for, and how it is joined to the one that runs.

A plan's index 0 belongs to the moment of its observation. One that arrives d control steps later is entered at index d;
until then the robot goes on along the plan before, and past the end of that it holds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from poise.policies.carriers import Carrier, Late, Plans, Request, Way, Worker, afresh
from poise.policies.ensemble import ensembled
from poise.policies.memory import Age, Mask, Memory, Robots, Seeds, Seen
from poise.policies.policy import Policy
from poise.watchdog import Hold

_RECENT = 10  # measured delays whose largest is expected next, as in Black et al. 2025


@dataclass
class Record:
    """What became of the plans of all robots; resets keep the counts.

    Attributes:
        requested: Plans that were asked for.
        entered: Plans that were entered.
        failed: Plans that ended in an error, or held NaN or infinity.
        stale: Plans that arrived when none of their actions was still to come.
        held: Steps of a robot at which no action of a plan was left, and it held.
        errors: The newest messages of plans that failed.
    """

    requested: int = 0
    entered: int = 0
    failed: int = 0
    stale: int = 0
    held: int = 0
    errors: tuple[str, ...] = ()


class Asynchronous:
    """A controller whose plans are made in a thread of their own, so that no control step waits for one.

    A new plan begins when the newest observation is `execute` control steps younger than that of the plan that runs, or
    when that plan is over, and is entered at the index of the step in which it arrives. Where it is not there in time,
    the robot goes on along the plan before and then holds. A plan that fails counts as one that never came, and another
    one is begun.

    A robot without any plan has nothing to go on along: its first `act` after a reset waits for its first plan. Call it
    before the control loop begins. `reset` waits for the plan that is under way, and forgets it. Both hold up all
    robots of the controller, which act in one call: robots that are reset at different times want a controller each.

    Args:
        policy: Any policy.
        robots: Their number; those that want a plan at the same time share one batch.
        hold: The action where a plan is over: `repeated`, or `zeroed` for velocities.
        way: How plans are made, such as `Chunking()`; by default from pure noise.
        execute: Control steps between the observations of two plans, at least; by default the spec's.
        decay: None follows the newest plan. A number averages all plans that reach to now, as `TemporalEnsemble` does.
        expected: Control steps that plans are expected to take until some were measured; then it is the largest of the
            last ten.
        carrier: Where plans are made; by default a `Worker`. See `simulated`.

    Attributes:
        fresh: `(robots,)`, whether the last action returned was the first of a plan.
        held: `(robots,)`, whether it was no action of a plan.
        record: What happened so far.

    Raises:
        ValueError: Steps that are out of range.
    """

    def __init__(
        self,
        policy: Policy,
        robots: int = 1,
        *,
        hold: Hold,
        way: Way = afresh,
        execute: int | None = None,
        decay: float | None = None,
        expected: int = 1,
        carrier: Carrier | None = None,
    ) -> None:
        spec = policy.spec
        self.execute = spec.execute if execute is None else execute
        if not (1 <= self.execute <= spec.planned and 0 <= expected < spec.planned):
            raise ValueError(
                f"got execute={execute} and delays of {expected} control steps for plans of {spec.planned} actions, "
                "expected 1 <= execute <= planned and delays below it: plan further ahead, or faster"
            )
        self.robots, self.decay, self._expected = robots, decay, expected
        self._memory, self._hold = Memory(policy, robots), hold
        self._make, self._carrier = partial(way, self._memory.policy), carrier or Worker()
        # The newest plan is last; as many are kept as can reach to the same step.
        kept = 1 if decay is None else -(-spec.planned // self.execute)
        self._plans = np.zeros((robots, kept, spec.planned, spec.action), np.float32)
        self._taken, self._known = np.zeros((robots, kept), int), np.zeros((robots, kept), bool)
        self._waiting, self._count, self._resets = np.zeros(robots, bool), np.zeros(robots, int), np.zeros(robots, int)
        self._delays = np.full((robots, _RECENT), -1)
        self._last = np.zeros((robots, spec.action), np.float32)
        self.fresh, self.held, self.record = np.zeros(robots, bool), np.zeros(robots, bool), Record()

    def __enter__(self) -> "Asynchronous":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the thread, once the plan that is under way is made."""
        self._carrier.close()

    def reset(self, seeds: Seeds, which: Mask = None) -> None:
        """Forget history and plans, and seed the noise; see `Controller.reset`."""
        self._carrier.settle()  # it draws from the noise that is seeded
        chosen = self._memory.reset(seeds, which)
        self._known[chosen] = self._waiting[chosen] = False
        self._delays[chosen] = -1
        self._count[chosen] = 0
        self._resets[chosen] += 1

    def act(self, observation: Seen, which: Mask = None, age: Age = None) -> NDArray[np.float32]:
        """The action of every robot for now; see `Controller.act`. It waits for first plans alone.

        Raises:
            RuntimeError: A robot's first plan failed.
        """
        active = self._memory.observe(observation, which, age)
        self.fresh = np.zeros(self.robots, bool)
        first = bool((active & ~self._known[:, -1]).any())
        if first:
            self._carrier.settle()
        self._receive()
        robots = self._due(active)
        if len(robots) and self._carrier.free:
            request = self._request(robots)
            self._carrier.send(partial(self._make, request), request)
        if first:
            self._carrier.settle()
        self._receive()
        lost = np.flatnonzero(active & ~self._known[:, -1])
        if len(lost):
            raise RuntimeError(
                f"the first plan of robot {lost[0]} failed, {self.record.errors[-1]}; expected one to begin with: "
                "without any plan there is none to go on along, so repair this before the robot moves"
            )
        return self._actions(active)

    def _due(self, active: NDArray[np.bool_]) -> Robots:
        """The robots that want a plan: from an observation that they have not planned from, and none under way."""
        seen, taken = self._memory.seen, self._taken[:, -1]
        over = self._memory.now - taken >= self._plans.shape[2]
        wants = ~self._known[:, -1] | (seen - taken >= self.execute) | (over & (seen > taken))
        return np.flatnonzero(active & wants & ~self._waiting)

    def _request(self, robots: Robots) -> Request:
        taken, planned = self._memory.seen[robots], self._plans.shape[2]
        moved = np.where(self._known[robots, -1], taken - self._taken[robots, -1], planned)
        index = (np.arange(planned) + moved[:, None]).clip(max=planned - 1)
        recent, number = self._delays[robots].max(1), self._count[robots]
        self._waiting[robots] = True
        self._count[robots] += 1
        self.record.requested += len(robots)
        return Request(
            robots=robots,
            observation=self._memory.window(robots),
            noise=self._memory.noise(robots),
            previous=self._plans[robots[:, None], -1, index],
            left=(planned - moved).clip(0),
            delay=np.where(recent < 0, self._expected, recent),
            taken=taken,
            asked=self._memory.now[robots],
            number=number,
            reset=self._resets[robots],
        )

    def _receive(self) -> None:
        for request, here, plans in self._carrier.arrived(self._memory.now):
            here = here & (request.reset == self._resets[request.robots])  # others were asked for before a reset
            self._waiting[request.robots[here]] = False
            if isinstance(plans, Exception):
                self._note(f"{type(plans).__name__}: {plans}", int(here.sum()))
            else:
                self._enter(request, here, plans)

    def _enter(self, request: Request, here: NDArray[np.bool_], plans: Plans) -> None:
        finite = np.asarray(np.isfinite(plans).all((1, 2)))
        if not finite[here].all():
            self._note("a plan holds NaN or infinity", int((here & ~finite).sum()))
        robots, taken = request.robots, request.taken
        delay, planned = self._memory.now[robots] - taken, plans.shape[1]
        later = here & self._known[robots, -1]  # for its first plan a robot waits, however long it takes
        self._delays[robots[later], 1:] = self._delays[robots[later], :-1]
        self._delays[robots[later], 0] = delay[later].clip(max=planned - 1)
        good = here & finite & (delay < planned)
        self.record.stale += int((here & finite & ~good).sum())
        self.record.entered += int(good.sum())
        for kept, new in ((self._plans, plans[good]), (self._taken, taken[good]), (self._known, True)):
            kept[robots[good], :-1] = kept[robots[good], 1:]
            kept[robots[good], -1] = new
        self.fresh[robots[good]] = True

    def _note(self, message: str, count: int) -> None:
        self.record.failed += count
        self.record.errors = (*self.record.errors, message)[-_RECENT:]

    def _actions(self, active: NDArray[np.bool_]) -> NDArray[np.float32]:
        planned, plans = self._plans.shape[2], np.arange(self._plans.shape[1])
        index = self._memory.now[:, None] - self._taken
        alive = self._known & (index < planned)
        said = self._plans[np.arange(self.robots)[:, None], plans, index.clip(0, planned - 1)]
        now = said[:, -1] if self.decay is None else ensembled(said, self._taken, alive, self.decay)
        moves, self.held = active & alive[:, -1], active & ~alive[:, -1]
        self._last[moves] = now[moves]
        self._last[self.held] = self._hold(self._last[self.held])
        self.record.held += int(self.held.sum())
        self.fresh &= active
        return self._last.copy()


def simulated(
    policy: Policy,
    robots: int = 1,
    *,
    hold: Hold,
    delays: Sequence[int],
    way: Way = afresh,
    execute: int | None = None,
    decay: float | None = None,
) -> Asynchronous:
    """`Asynchronous` in simulated time: plans arrive so many control steps after they were asked for as is given.

    There is neither thread nor clock, so it runs under `rollout(control=partial(simulated, ...))`, and what a robot
    does depends on its own seed and observations alone. A robot stands until its first plan is there.

    Args:
        policy: See `Asynchronous`.
        robots: See there.
        hold: See there.
        delays: Of the plans of each robot, one after the other and over again; see `Late`.
        way: See `Asynchronous`.
        execute: See there.
        decay: See there.

    Raises:
        ValueError: Steps or delays that are out of range.
    """
    carrier, expected = Late(delays), min(max(delays), policy.spec.planned - 1)
    return Asynchronous(
        policy, robots, hold=hold, way=way, execute=execute, decay=decay, expected=expected, carrier=carrier
    )


__all__ = ["Asynchronous", "Record", "simulated"]
