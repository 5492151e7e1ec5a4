"""Control loops in real time, with plans that take up to half a second and observations that get lost.

    python benchmarks/control.py --minutes 1
    python benchmarks/control.py --minutes 1 --checkpoint out/pusht

Three loops run one after the other for so many minutes each, with the policy of `recipes/pusht.py`, untrained where no
checkpoint is given: what a plan costs is the same, and the observations are random anyway.

- Push-T, 20 Hz: in one thread, in which nothing else happens; its 99th percentile must be within the period, or the
  program fails.
- Faults, 20 Hz, synchronous, one thread: the robot stands while it plans. Each plan takes a random latency of 0 to
  500 ms on top of its own, and 5 % of the observations and of the plans are lost. A lost observation is replaced by the
  one before and its age.
- Faults, 50 Hz, asynchronous: a thread plans, and the robot goes on along the last plan meanwhile. Plans that come
  half a second late need 50 actions (see docs/realtime.md); a policy of fewer is replaced by an untrained one like it
  of 64, of which 16 are executed.

All send through `Safe` and ask a `Watchdog`. In a tick without an action of a plan the robot holds, which is recorded.
A tick that passes without any command is missed, and a hold too: the loop, late for it, finds that by the clock, as
`poise.robot.Robot` does. The time of a tick is from when it is due until its command is sent: it is late where that is
more than a period, and the longest gap is that between two commands. Prints a Markdown table, then JSON.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from latency import HERE, fitted
from numpy.typing import NDArray

from poise import DiffusionPolicy, PolicySpec, load, load_recipe
from poise.cli.machine import machine
from poise.policies import Asynchronous, Controller, Policy, RecedingHorizon, Request, Safe, Safety, afresh
from poise.policies.memory import Memory, Robots
from poise.watchdog import Watchdog, repeated

LONGEST, LOST = 0.5, 0.05  # seconds, share
PUSHT = "Push-T, 20 Hz, synchronous"
HEAD = (
    "| loop | ticks | p50 ms | p99 ms | longest gap ms | late | lost plans | missed ticks | holds, these included |\n"
    "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
)


class Slow:
    """Plans that take their time, or are lost; the first one, which is waited for, is not."""

    def __init__(self, longest: float = LONGEST, share: float = LOST) -> None:
        self.rng, self.plans, self.lost, self.longest, self.share = np.random.default_rng(0), 0, 0, longest, share

    def way(self, policy: Policy, request: Request) -> NDArray[np.float32]:
        """For `Asynchronous`."""
        return self.made(partial(afresh, policy, request))

    def planner(self, memory: Memory, robots: Robots) -> NDArray[np.float32]:
        """For `RecedingHorizon`."""
        return self.made(partial(memory.plan, robots))

    def made(self, make: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
        """The plans, some time later."""
        self.plans += 1
        time.sleep(self.rng.uniform(0, self.longest))
        if self.plans > 1 and self.rng.random() < self.share:
            self.lost += 1
            raise TimeoutError("the plan was lost")
        return make()


@dataclass
class Loop:
    """A control loop, and what it did when.

    Attributes:
        rate_hz: Ticks a second.
        spec: Of the policy.
        controller: What acts.
        lost: Share of the observations that are lost.
        held: Whether its last action was none of a plan.
        sent: Ticks that were due, and the seconds since tick 0 at which their commands were sent.
        holds: Ticks at which the robot held.
    """

    rate_hz: float
    spec: PolicySpec
    controller: Controller
    lost: float = LOST
    held: Callable[[], bool] = lambda: False
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))
    sent: list[tuple[int, float]] = field(default_factory=list)
    holds: set[int] = field(default_factory=set)

    def run(self, ticks: int) -> None:
        """Tick so many times."""
        dog = Watchdog(1.5 / self.rate_hz, 60.0, partial(sys.exit, "stopped by the watchdog"))
        seen, age, tick = self._observed(), 0, 0
        self.controller.act(seen)  # before the robot moves: it waits for the first plan
        begin = time.perf_counter()
        while tick < ticks:
            time.sleep(max(0.0, begin + tick / self.rate_hz - time.perf_counter()))
            lost = self.rng.random() < self.lost
            seen, age = (seen, age + 1) if lost else (self._observed(), 0)
            if self._acts(seen, age):
                dog.feed()
            now = time.perf_counter() - begin
            self.sent.append((tick, now))
            current = max(tick, int(now * self.rate_hz))
            if not dog.alive():
                self.holds.add(current)
            self.holds.update(range(tick, current))  # the robot stood: nobody catches these up
            tick = current + 1

    def _acts(self, seen: dict[str, NDArray], age: int) -> bool:
        """Whether there is an action of a plan to send; otherwise the last one is sent again."""
        try:
            self.controller.act(seen, age=age)
        except TimeoutError:
            return False
        return not self.held()

    def _observed(self) -> dict[str, NDArray]:
        shapes = self.spec.observations.items()
        return {name: self.rng.normal(size=(1, *shape)).astype(np.float32) for name, shape in shapes}

    def figures(self, ticks: int) -> dict[str, Any]:
        """What happened; missed ticks are counted from the times at which commands were sent, and from nothing else."""
        late = 1e3 * np.array([now - tick / self.rate_hz for tick, now in self.sent])
        missed = set(range(ticks)) - {int(now * self.rate_hz) for _, now in self.sent}
        p50, p99 = np.quantile(late, [0.5, 0.99]).tolist()
        gap = 1e3 * max(np.diff([now for _, now in self.sent]), default=0.0)
        counts = {"late": int((late > 1e3 / self.rate_hz).sum()), "missed": len(missed), "holds": len(self.holds)}
        return {"ticks": ticks, "p50": p50, "p99": p99, "gap": gap, **counts}


def loops(policy: DiffusionPolicy) -> Iterator[tuple[str, Loop, Slow]]:
    """The loops; the last one's thread ends after it."""
    spec, slow = policy.spec, Slow(0.0, 0.0)
    controller = safe(RecedingHorizon(policy, 1, slow.planner), spec)
    yield PUSHT, Loop(20.0, spec, controller, 0.0), slow
    slow = Slow()
    yield "faults, 20 Hz, synchronous", Loop(20.0, spec, safe(RecedingHorizon(policy, 1, slow.planner), spec)), slow
    if spec.planned < 2 * LONGEST * 50:
        spec = replace(spec, horizon=64, execute=16)
        policy = fitted(spec)[0]
    slow = Slow()
    with Asynchronous(policy, hold=repeated, way=slow.way) as inner:
        loop = Loop(50.0, spec, safe(inner, spec), held=lambda: bool(inner.held.any()))
        yield "faults, 50 Hz, asynchronous", loop, slow


def safe(controller: Controller, spec: PolicySpec) -> Safe:
    """A controller under limits that are checked and change nothing: its observations are random."""
    wide = (1e9,) * spec.action
    return Safe(controller, Safety(tuple(-bound for bound in wide), wide, wide), repeated)


def main() -> None:
    """Run all loops."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--recipe", type=Path, default=HERE.parent / "recipes" / "pusht.py")
    parser.add_argument("--checkpoint", type=Path, help="of that recipe; by default an untrained policy")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    given = arguments.checkpoint
    policy = fitted(load_recipe(arguments.recipe).policy)[0] if given is None else load(given)
    assert isinstance(policy, DiffusionPolicy)
    print(HEAD)
    results = {}
    for name, loop, slow in loops(policy):
        ticks = int(60 * arguments.minutes * loop.rate_hz)
        loop.run(ticks)
        found = results[name] = {**loop.figures(ticks), "plans": slow.plans, "lost": slow.lost}
        print(
            f"| {name} | {ticks} | {found['p50']:.2f} | {found['p99']:.2f} | {found['gap']:.1f} | {found['late']} | "
            f"{slow.lost} of {slow.plans} | {found['missed']} | {found['holds']} |"
        )
    print(json.dumps({"machine": machine(), "minutes": arguments.minutes, "loops": results}))
    if results[PUSHT]["p99"] > 1e3 / 20.0:
        sys.exit("the 99th percentile of Push-T control is beyond the period")


if __name__ == "__main__":
    main()
