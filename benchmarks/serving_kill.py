"""Kills a server under load: does every robot hold in time, execute nothing old, and go on when the server is back?

    python benchmarks/serving_kill.py --kills 10 --robots 8

Control loops (`poise.robot`), each in a thread with a connection of its own, run at a rate against one server. It gets
SIGKILL at random moments and is started again on the same port. Beside each robot a witness notes when every plan was
asked for, and so what age an executed action really has. Targets: no robot acts later than the largest age and one
control step after the kill; no executed action is older than that age, or that of another moment than its own; all
robots are served again within a second of the server being ready. The last line is JSON; the exit status is 1 if a
target is missed. Robots and server share the cores of this machine.
"""

import argparse
import json
import logging
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from serving_driver import STATE, started

from poise.client import Client
from poise.robot import Robot

AGAIN = 1.0  # seconds from a server that is ready to the first action of a new plan
_LONGEST = 120.0  # seconds until robots must have been served


class Tick(NamedTuple):
    """One control step.

    Attributes:
        now: Seconds of the monotonic clock.
        taken: When the observation was taken that the executed action was planned from; None for a hold.
        step: Of the plan, which the action is for.
    """

    now: float
    taken: float | None
    step: int


class Witness:
    """Stands between a robot and its client, and knows when the plan of an action was asked for."""

    def __init__(self, client: Client) -> None:
        self.now, self._client = 0.0, client
        self._asked = deque[tuple[float, Future[dict[str, Any]]]](maxlen=50)

    @property
    def metadata(self) -> dict[str, Any] | None:
        """That of the client."""
        return self._client.metadata

    def ask(self, observation: Mapping[str, Any]) -> Future[dict[str, Any]]:
        """Ask the client, and note when."""
        answer = self._client.ask(observation)
        self._asked.append((self.now, answer))
        return answer

    def saw(self, action: NDArray[Any] | None) -> Tick:
        """What was executed now."""
        if action is None:
            return Tick(self.now, None, 0)
        for taken, answer in self._asked:
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                for step, row in enumerate(answer.result()["actions"]):
                    if np.shares_memory(row, action):
                        return Tick(self.now, taken, step)
        return Tick(self.now, -math.inf, 0)  # of no plan that was asked for lately


class Loop:
    """The control loop of one robot, in a thread.

    Args:
        uri: Of the server.
        number: Of the robot.
        rate: Control steps a second.
        max_age: Seconds; of the robot.
    """

    def __init__(self, uri: str, number: int, rate: float, max_age: float) -> None:
        self._uri, self._rate, self._max_age = uri, rate, max_age
        self.ticks, self.missed, self._end = list[Tick](), 0, threading.Event()
        self._draw = np.random.default_rng(number)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Wait until it has ended."""
        self._end.set()
        self._thread.join()

    def served(self, since: float) -> float | None:
        """When it first executed an action whose observation was taken after a moment."""
        return next((tick.now for tick in self.ticks if tick.taken is not None and tick.taken > since), None)

    def _run(self) -> None:
        with Client(self._uri) as client:
            witness = Witness(client)
            # The clock of witness and robot is one, so that what is judged are decisions, not the scheduler.
            robot = Robot(
                cast(Client, witness), self._rate, self._max_age, patience=math.inf, clock=lambda: witness.now
            )
            due = time.monotonic() + self._draw.uniform(0, 1 / self._rate)
            while not self._end.wait(max(0.0, due - time.monotonic())):
                witness.now = time.monotonic()
                late = int((witness.now - due) * self._rate)
                self.missed, due = self.missed + late, due + (late + 1) / self._rate
                step = robot.step({"state": self._draw.normal(size=STATE).astype(np.float32)})
                self.ticks.append(witness.saw(step.wanted))


class Kill(NamedTuple):
    """One death of the server, in seconds of the monotonic clock.

    Attributes:
        killed: When it was sent the signal.
        ready: When the next one said that clients may come.
    """

    killed: float
    ready: float


def wait_for(loops: Sequence[Loop], since: float) -> None:
    """Wait until every robot has executed an action from after a moment."""
    end = time.monotonic() + _LONGEST
    while any(loop.served(since) is None for loop in loops):
        if time.monotonic() > end:
            raise RuntimeError(f"not every robot was served within {_LONGEST:g} s")
        time.sleep(0.02)


def killed(kills: int, robots: int, rate: float, max_age: float, options: Sequence[str] = ()) -> dict[str, Any]:
    """Kill so often; the figures.

    Args:
        kills: Number of kills.
        robots: Number of control loops.
        rate: Control steps a second.
        max_age: Seconds; an action of an older observation must not be executed.
        options: Of the server.
    """
    draw, found = np.random.default_rng(0), list[Kill]()
    child, uri = started(*options)
    loops = [Loop(uri, number, rate, max_age) for number in range(robots)]
    try:
        wait_for(loops, 0.0)
        for _ in range(kills):
            time.sleep(draw.uniform(0.5, 1.5))
            moment = time.monotonic()
            child.kill()
            child.communicate()
            child, _ = started("--port", uri.rpartition(":")[2], *options)
            found.append(Kill(moment, time.monotonic()))
            wait_for(loops, moment)
    finally:
        for loop in loops:
            loop.end()
        child.kill()
        child.communicate()
    return figures(loops, found, rate, max_age)


def figures(loops: Sequence[Loop], kills: Sequence[Kill], rate: float, max_age: float) -> dict[str, Any]:
    """What the robots did around the kills."""
    last, again, held = list[float](), list[float](), 0
    for loop in loops:
        for kill in kills:
            down = [tick for tick in loop.ticks if kill.killed < tick.now < kill.ready]
            acted = [tick.now - kill.killed for tick in down if tick.taken is not None]
            last.append(max(acted, default=0.0))
            held += len(acted) < len(down)
            again.append((loop.served(kill.killed) or math.inf) - kill.ready)
    ticks = [tick for loop in loops for tick in loop.ticks]
    executed = [(tick.now - tick.taken, tick.step) for tick in ticks if tick.taken is not None]
    return {
        "kills": len(kills),
        "held": held / (len(loops) * len(kills)),
        "down_s_median": float(np.median([kill.ready - kill.killed for kill in kills])),
        "last_action_ms_median": 1e3 * float(np.median(last)),
        "last_action_ms_max": 1e3 * max(last),
        "again_ms_median": 1e3 * float(np.median(again)),
        "again_ms_max": 1e3 * max(again),
        "ticks": len(ticks),
        "missed_ticks": sum(loop.missed for loop in loops),
        "actions": len(executed),
        "oldest_ms": 1e3 * max(age for age, _ in executed),
        "stale": sum(age > max_age for age, _ in executed),
        "misplaced": sum(step != math.floor(age * rate + 0.5) for age, step in executed),
    }


def main() -> None:
    """Kill and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--robots", type=int, default=8)
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument("--max-age", type=float, default=0.5)
    arguments = parser.parse_args()
    logging.getLogger("poise.client").setLevel(logging.CRITICAL)  # every robot tells of every hold
    found = killed(arguments.kills, arguments.robots, arguments.rate, arguments.max_age)
    latest = 1e3 * (arguments.max_age + 1 / arguments.rate)
    targets = {
        f"every robot holds, and last acts within {latest:g} ms of the kill": found["held"] == 1
        and found["last_action_ms_max"] <= latest,
        "no action is older than allowed": found["stale"] == 0,
        "every action is that of its moment": found["misplaced"] == 0,
        f"every robot is served within {AGAIN:g} s of the server being ready": found["again_ms_max"] <= 1e3 * AGAIN,
    }
    print("| what | seen |\n|---|---:|")
    for name, value in found.items():
        print(f"| {name} | {value:.4g} |")
    for target, met in targets.items():
        print(f"{'met' if met else 'MISSED':8} {target}")
    print(json.dumps({**vars(arguments), **found}))
    sys.exit(0 if all(targets.values()) else 1)


if __name__ == "__main__":
    main()
