import importlib
import json
import os
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from served import identity

from poise.nn import MLP
from poise.plain import to_plain
from poise.policies import DiffusionPolicy, PolicySpec, Safety
from poise.robot import Step

EXAMPLE = Path(__file__).parents[1] / "examples/robot.py"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    features = {"position": (2,), "velocity": (2,), "goal": (2,)}
    policy = DiffusionPolicy(PolicySpec(features, 2, network=MLP(16, 1, 8), history=2))
    identity(policy)
    limits = Safety((-1.0, -1.0), (1.0, 1.0))
    return policy.save(tmp_path_factory.mktemp("policy"), {"safety": to_plain(limits)})


def run(checkpoint: Path, *options: str) -> tuple[str, dict]:
    command = [sys.executable, str(EXAMPLE), str(checkpoint), *options]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=100)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    lines, _, summary = ran.stdout.partition("{")
    return lines, json.loads("{" + summary)


def test_the_example_survives_its_faults(checkpoint):
    faults = ("--drop", "0.5", "--kill-server-at", "2", "--nan", "0.4", "--latency-ms", "20", "--slow-client")
    lines, count = run(checkpoint, "--seconds", "5", *faults)
    assert lines.startswith("   1 s  plan ")
    assert count["actions"] + count["holds"] == count["ticks"] > 0
    assert count["holds"] == sum(count["reasons"].values()) - count["reasons"].pop("the step came late") > 0
    assert count["missed"] > 0
    assert count["reconnects"] > 0
    assert count["stale"] == 0


class Careless:
    """A robot that goes on with its first plan for ever."""

    stopped = False

    def __init__(self, witness) -> None:
        self._actions = witness.ask({}).result()["actions"]

    def step(self, observation):
        return Step(self._actions[0], 0.0, self._actions[0])

    def reset(self) -> None:
        pass


class Answering:
    """A client that is answered at once."""

    def ask(self, observation):
        answer = Future()
        answer.set_result({"actions": np.zeros((4, 2), np.float32)})
        return answer


def test_the_example_tells_actions_that_are_stale(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    example = importlib.import_module("robot")
    witness = example.Witness(Answering())
    count = example.drive(Careless(witness), witness, example.Faults(), 0.6, 0.2)
    assert count["actions"] == count["ticks"]
    assert 0 < count["stale"] < count["ticks"]
    assert witness.age(np.zeros(2)) == float("inf")  # of no plan
