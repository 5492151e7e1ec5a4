"""What disturbs a policy: other starts, noisy sensors, delays and pushes; diffusion against regression.

    poise applications navigate pick-place
    python benchmarks/robustness.py navigate pick-place

Takes the policies of `poise applications` and tries them on the same seeds under each disturbance:

    start     for the first K control steps the robot repeats an action of the demonstrations, drawn at random
    noise     white noise on every observed number, in standard deviations of the feature in the demonstrations
    delay     observations come K control steps late, which the controller knows, and plans ahead
    lag       actions come K control steps late, which the controller does not know
    push      for 5 control steps from a random one on, the executed action is off by a random vector, of a length in
              standard deviations of the demonstrated actions, in the dimensions that demonstrations disturb

The recovery is the success rate under the disturbance over that without, with a paired bootstrap interval; success has
Wilson's, and the last column is the difference of diffusion to regression over the same seeds. Images stay as they are.
The last line is JSON.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from poise import RecedingHorizon, load, rollout
from poise.applications import Application, find
from poise.applications.application import demonstrations
from poise.cli.machine import machine
from poise.data import Episodes
from poise.evaluation import Interval, wilson
from poise.evaluation.paired import rate_difference
from poise.policies import Policy
from poise.policies.control import Control, Controller
from poise.policies.memory import Age, Mask, Seeds, Seen
from poise.policies.recorded import Delayed

STRENGTHS = {"start": (2, 4, 8), "noise": (0.02, 0.05, 0.1), "delay": (1, 2, 4), "lag": (1, 2, 4), "push": (1, 2, 4)}
PUSH, EARLIEST, LATEST = 5, 5, 25  # control steps: how long, and when it may begin
POLICIES = "diffusion", "regression"

Action = NDArray[np.float32]
Force = Callable[[int, Action], Action]
"""`(control step, action) -> what is executed`."""


class Disturbed:
    """Any controller, with noise on what it sees and a force on what it does; what happens depends on the seed alone.

    Args:
        controller: What acts.
        noise: Feature -> deviation of its noise, broadcast to its shape.
        force: Makes the force of an episode.
    """

    def __init__(
        self,
        controller: Controller,
        noise: dict[str, NDArray] | None = None,
        force: Callable[[np.random.Generator], Force] | None = None,
    ) -> None:
        self._controller, self._noise, self._force, self.robots = controller, noise or {}, force, controller.robots
        self._random: list[np.random.Generator] = [np.random.default_rng(0)] * self.robots
        self._forces: list[Force | None] = [None] * self.robots
        self._step = np.zeros(self.robots, int)

    @property
    def fresh(self) -> NDArray[np.bool_]:
        """Those of the controller."""
        return self._controller.fresh

    def reset(self, seeds: Seeds, which: Mask = None) -> None:
        """Reset the controller and the disturbance."""
        self._controller.reset(seeds, which)
        robots = np.arange(self.robots) if which is None else np.flatnonzero(which)
        for robot, seed in zip(robots, seeds, strict=True):
            self._random[robot], self._step[robot] = np.random.default_rng([int(seed), 2]), 0
            self._forces[robot] = self._force(self._random[robot]) if self._force else None

    def act(self, observation: Seen, which: Mask = None, age: Age = None) -> Action:
        """What is executed."""
        robots = np.arange(self.robots) if which is None else np.flatnonzero(which)
        seen = {name: np.array(values) for name, values in observation.items()}
        for robot in robots:
            for name, deviation in self._noise.items():
                fresh = self._random[robot].standard_normal(seen[name].shape[1:])
                seen[name][robot] += (deviation * fresh).astype(seen[name].dtype)
        actions = self._controller.act(seen, which, age).copy()
        for robot in robots:
            force = self._forces[robot]
            actions[robot] = force(int(self._step[robot]), actions[robot]) if force else actions[robot]
            self._step[robot] += 1
        return actions


class Untold:
    """Any controller, which is not told how old an observation is; inside `Delayed`, that is a lag of the actions."""

    def __init__(self, controller: Controller) -> None:
        self._controller, self.robots = controller, controller.robots

    @property
    def fresh(self) -> NDArray[np.bool_]:
        """Those of the controller."""
        return self._controller.fresh

    def reset(self, seeds: Seeds, which: Mask = None) -> None:
        """Reset the controller."""
        self._controller.reset(seeds, which)

    def act(self, observation: Seen, which: Mask = None, age: Age = None) -> Action:
        """The actions of the controller, as if the observation were of now."""
        return self._controller.act(observation, which)


def started(random: np.random.Generator, steps: float, actions: Action) -> Force:
    """An action of the demonstrations for the first steps."""
    drawn = actions[random.integers(len(actions))]
    return lambda step, action: drawn if step < steps else action


def pushed(random: np.random.Generator, length: float, deviations: NDArray, shaken: Sequence[int]) -> Force:
    """A vector that is added for some steps."""
    direction = random.standard_normal(len(shaken))
    off = np.zeros(len(deviations))
    off[list(shaken)] = length * direction / np.linalg.norm(direction)
    off *= deviations
    begin = random.integers(EARLIEST, LATEST)
    return lambda step, action: action + off.astype(action.dtype) if begin <= step < begin + PUSH else action


def control(kind: str, strength: float, application: Application, shown: Episodes) -> Control:
    """The controller under a disturbance."""
    actions, shaken = shown.features["action"], application.shaken or range(application.action)
    flat = {name: shown.features[name] for name, shape in application.features.items() if len(shape) < 3}
    controls: dict[str, Control] = {
        "none": RecedingHorizon,
        "start": disturbed(force=partial(started, steps=strength, actions=actions)),
        "noise": disturbed(noise={name: strength * values.std(0) for name, values in flat.items()}),
        "delay": lambda policy, robots: Delayed(RecedingHorizon(policy, robots), int(strength)),
        "lag": lambda policy, robots: Delayed(Untold(RecedingHorizon(policy, robots)), int(strength)),
        "push": disturbed(force=partial(pushed, length=strength, deviations=actions.std(0), shaken=shaken)),
    }
    return controls[kind]


def disturbed(**disturbance: Any) -> Control:
    """A receding horizon under a disturbance."""
    return lambda policy, robots: Disturbed(RecedingHorizon(policy, robots), **disturbance)


def recovery(won: NDArray, undisturbed: NDArray) -> Interval | None:
    """Ratio of two success rates over the same seeds with its 95 % bootstrap interval; None where nothing succeeds."""
    if not undisturbed.any():
        return None
    rows = np.random.default_rng(0).integers(len(won), size=(2000, len(won)))
    low, high = np.quantile(won[rows].sum(1) / np.maximum(1, undisturbed[rows].sum(1)), [0.025, 0.975])
    return Interval(float(won.sum() / undisturbed.sum()), float(low), float(high))


def successes(policy: Policy, application: Application, seeds: range, chosen: Control, name: str) -> NDArray[np.bool_]:
    """Of every seed in order."""
    ran = tqdm(rollout(policy, application.task, seeds, chosen), total=len(seeds), desc=name, leave=False)
    return np.array([episode.success for episode in sorted(ran, key=lambda episode: episode.seed)])


def measured(application: Application, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row a disturbance and policy."""
    shown = demonstrations(application, arguments.data)
    policies = {name: load(arguments.runs / application.name / name) for name in POLICIES}
    seeds = range(arguments.seed, arguments.seed + arguments.episodes)
    undisturbed: dict[str, NDArray[np.bool_]] = {}
    for kind, strength in [("none", 0), *((name, s) for name in arguments.kinds for s in STRENGTHS[name])]:
        chosen, label = control(kind, strength, application, shown), f"{application.name}, {kind} {strength}"
        won = {name: successes(policy, application, seeds, chosen, label) for name, policy in policies.items()}
        undisturbed = undisturbed or won
        difference = rate_difference(*(won[name].astype(float).tolist() for name in POLICIES))
        for name, wins in won.items():
            yield {
                **{"task": application.name, "kind": kind, "strength": strength, "policy": name},
                "success": wilson(int(wins.sum()), len(wins)),
                "recovery": recovery(wins, undisturbed[name]),
                "difference": difference,
            }


def line(row: dict[str, Any]) -> str:
    """A row of the Markdown table."""
    cells = [row["task"], row["kind"], f"{row['strength']:g}", row["policy"]]
    for interval in (row["success"], row["recovery"], row["difference"]):
        cells += ["–", ""] if interval is None else [f"{interval[0]:.1%}", f"{interval[1]:.1%} to {interval[2]:.1%}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", help="applications, which poise applications has run")
    parser.add_argument("--runs", type=Path, default=Path("out/applications"), help="its --out")
    parser.add_argument("--data", type=Path, help="demonstrations, where poise collect did not write them by itself")
    parser.add_argument("--kinds", nargs="+", choices=list(STRENGTHS), default=list(STRENGTHS))
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    begin, rows = time.perf_counter(), []
    print("| task | disturbance | strength | policy | success | 95 % | recovery | 95 % | to regression | 95 % |")
    print("|---|---|---:|---|---:|---|---:|---|---:|---|")
    for application in [find(name) for name in arguments.tasks]:
        for row in measured(application, arguments):
            rows.append(row)
            print(line(row), flush=True)
    print(json.dumps({"rows": rows, "seconds": time.perf_counter() - begin, "machine": machine()}))


if __name__ == "__main__":
    main()
