"""A robot and its policy server in two processes, and faults between them: what does the robot do?

    poise collect navigate --episodes 100
    poise train recipes/applications/navigate.py --training.steps 300
    python examples/robot.py out/navigate --seconds 20 --latency-ms 50 --drop 4 --kill-server-at 8 --nan 12

Three hundred steps take about a minute and make a poor driver, which is enough here. The robot is the simulated one of
`poise/Navigate-v0`, sped up to 50 control steps a second. A line a second tells what it does; the last lines sum it up.
The exit status is 1 if an action was executed whose observation was too old, which the example measures by itself.
Needs the extra `serve`.
"""

import asyncio
import contextlib
import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from poise.client import Client
from poise.envs import Navigate
from poise.robot import Robot

RATE = 50.0


@dataclass(frozen=True)
class Faults:
    """What goes wrong; all of it may at once.

    Attributes:
        latency_ms: That the network takes, there and back together.
        drop: Seconds after which each connection is cut.
        kill_server_at: Seconds after which the server is killed, and started again a second later.
        nan: Seconds after which the sensor gives NaN for half a second.
        slow_client: Every second the robot's computer does something else for 0.2 s.
    """

    latency_ms: float = 0.0
    drop: float | None = None
    kill_server_at: float | None = None
    nan: float | None = None
    slow_client: bool = False


class PolicyServer:
    """`poise serve` in a process that can be killed.

    Args:
        checkpoint: What it serves.
        options: Further ones of `poise serve`.
    """

    def __init__(self, checkpoint: Path, *options: str) -> None:
        self._command = [sys.executable, "-m", "poise", "serve", str(checkpoint), "--threads", "1", *options]
        self.port = 0
        self.start()

    def start(self) -> None:
        """Start it, where it was before; return when it serves."""
        command = [*self._command, "--port", str(self.port)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if "serving at" not in line:
            raise RuntimeError(f"the server did not start: run {' '.join(command)} to see why")
        self.port = int(line.rsplit(":", 1)[1])

    def kill(self) -> None:
        """Kill it, as a loss of power would."""
        self._process.kill()
        self._process.communicate()


class Network:
    """Carries bytes to the server and back, late, and cuts connections; in a thread.

    Args:
        server: Where to.
        faults: Latency and cuts.
    """

    def __init__(self, server: PolicyServer, faults: Faults) -> None:
        self._server, self._faults, self.port, self.connections = server, faults, 0, 0
        self._up, self._loop = threading.Event(), asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_until_complete, args=(self._run(),), daemon=True).start()
        self._up.wait()

    async def _run(self) -> None:
        listener = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = listener.sockets[0].getsockname()[1]
        self._up.set()
        await listener.serve_forever()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            there, back = await asyncio.open_connection("127.0.0.1", self._server.port)
            self.connections += 1
            try:
                ways = self._pass(reader, back), self._pass(there, writer)
                cut = self._faults.drop and self._faults.drop * random.uniform(0.5, 1.5)
                await asyncio.wait_for(asyncio.gather(*ways), cut)
            finally:
                back.transport.abort()
        writer.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while data := await reader.read(2**16):
            loop.call_later(self._faults.latency_ms / 2e3, writer.write, data)
        raise ConnectionResetError


class Witness:
    """A client that remembers when the observation of each plan was taken, to check the robot from outside.

    Args:
        client: What talks to the server.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._asked: deque[tuple[float, Future[dict[str, Any]]]] = deque(maxlen=100)

    @property
    def metadata(self) -> dict[str, Any] | None:
        """That of the client."""
        return self._client.metadata

    def reset(self) -> None:
        """Begin an episode."""
        self._client.reset()

    def ask(self, observation: Mapping[str, Any]) -> Future[dict[str, Any]]:
        """Ask the client, and note when."""
        answer = self._client.ask(observation)
        self._asked.append((time.monotonic(), answer))
        return answer

    def age(self, action: np.ndarray) -> float:
        """Seconds since the observation was taken that the plan of an action began from; infinite for no such plan."""
        for taken, answer in self._asked:
            answered = answer.done() and not answer.cancelled() and answer.exception() is None
            if answered and np.shares_memory(answer.result()["actions"], action):
                return time.monotonic() - taken
        return float("inf")


class World:
    """The simulated robot and its sensors."""

    def __init__(self) -> None:
        self._env, self.finished = Navigate(), 0
        self._seen = self._env.reset(seed=0)[0]

    def observe(self, broken: bool) -> dict[str, np.ndarray]:
        """What the sensors give."""
        seen = {name: self._seen[name][0] for name in ("position", "velocity", "goal")}
        return {**seen, "position": seen["position"] * np.nan} if broken else seen

    def move(self, command: np.ndarray | None) -> bool:
        """One control step with a velocity, or at rest without one; whether the episode ended with it."""
        self._seen, _, ended, late, _ = self._env.step(np.zeros((1, 2)) if command is None else command[None])
        over = bool(ended[0] or late[0])
        if over:
            self.finished += 1
            self._seen = self._env.reset()[0]
        return over


def drive(robot: Robot, witness: Witness, faults: Faults, seconds: float, max_age: float) -> Counter[str]:
    """Run the loop of the robot; what it did, counted."""
    world, count, begin, second = World(), Counter[str](), time.monotonic(), 1
    tick = 0
    while (now := time.monotonic() - begin) < seconds:
        if tick > now * RATE:
            time.sleep(tick / RATE - now)
        elif now * RATE - tick >= 1:  # what is over is not made up for
            missed = int(now * RATE - tick)
            tick, count["missed"] = tick + missed, count["missed"] + missed
        broken = faults.nan is not None and 0 <= now - faults.nan < 0.5
        step = robot.step(world.observe(broken))
        count["holds" if step.action is None else "actions"] += 1
        if step.wanted is not None:
            count["stale"] += witness.age(step.wanted) > max_age + 1 / RATE
        count["ticks"] += 1
        if world.move(step.action) or robot.stopped:
            count["stops"] += robot.stopped
            robot.reset()
        if now >= second:
            age = "none" if step.age is None else f"{1e3 * step.age:.0f} ms old"
            counted = "  ".join(f"{name} {count[name]}" for name in ("ticks", "holds", "missed", "stale", "stops"))
            print(f"{second:4d} s  plan {age:<12}{counted}", flush=True)
            second += 1
            if faults.slow_client:
                time.sleep(0.2)
        tick += 1
    count["episodes"] = world.finished
    return count


def main(
    checkpoint: Annotated[Path, tyro.conf.Positional],
    faults: Annotated[Faults, tyro.conf.arg(name="")] = Faults(),  # noqa: B008 (frozen)
    seconds: float = 10.0,
    max_age: float = 0.5,
    evaluations: int = 3,
) -> None:
    """Drive a simulated robot by a policy of the Navigate recipe, and let things go wrong.

    Args:
        checkpoint: A file or directory of `poise train recipes/applications/navigate.py`.
        faults: What goes wrong.
        seconds: How long to drive.
        max_age: Seconds; an action from an older observation is not executed.
        evaluations: Network evaluations a plan.
    """
    server = PolicyServer(checkpoint, "--evaluations", str(evaluations))
    network = Network(server, faults)
    blackout = threading.Timer(faults.kill_server_at or 0.0, lambda: (server.kill(), time.sleep(1), server.start()))
    try:
        with Client(f"ws://127.0.0.1:{network.port}") as client:
            client.wait(30)
            if faults.kill_server_at is not None:
                blackout.start()
            witness = Witness(client)
            robot = Robot(witness, RATE, max_age)
            count = drive(robot, witness, faults, seconds, max_age)
    finally:
        blackout.cancel()
        if blackout.ident is not None:
            blackout.join()  # or a server that just starts would stay
        server.kill()
    print(json.dumps({**count, "reconnects": network.connections - 1, "reasons": robot.holds}, indent=2))
    sys.exit(1 if count["stale"] else 0)


if __name__ == "__main__":
    tyro.cli(main)
