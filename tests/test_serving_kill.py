"""A server that is killed under load: what `benchmarks/serving_kill.py` measures, once and for few robots."""

import importlib
import os
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
RATE, AGE = 10.0, 1.0


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))  # for the server
    return importlib.import_module("serving_kill")


def test_robots_hold_in_time_execute_nothing_old_and_go_on(benchmark):
    found = benchmark.killed(1, 3, RATE, AGE, ("--evaluations", "1"))
    assert found["held"] == 1
    assert found["last_action_ms_max"] <= 1e3 * (AGE + 1 / RATE)
    assert (found["stale"], found["misplaced"]) == (0, 0)
    assert found["oldest_ms"] <= 1e3 * AGE
    assert found["again_ms_max"] < 20e3  # on a machine that does many other things; the benchmark asks for one second
    assert 0 < found["actions"] < found["ticks"]


class Ticks:
    """A loop that has ended."""

    missed = 0

    def __init__(self, benchmark, *ticks) -> None:
        self.ticks = [benchmark.Tick(*tick) for tick in ticks]

    def served(self, since):
        return next((tick.now for tick in self.ticks if tick.taken is not None and tick.taken > since), None)


def test_what_a_careless_robot_does_is_told(benchmark):
    """Killed at 10 s and ready at 12 s; ten steps a second and plans of up to half a second."""
    good = Ticks(benchmark, (9.9, 9.7, 2), (10.2, 9.7, 5), (10.3, None, 0), (11.9, None, 0), (12.4, 12.1, 3))
    careless = Ticks(benchmark, (9.9, 9.7, 2), (11.0, 9.7, 6), (11.9, 9.7, 22), (14.0, 13.8, 2))
    found = benchmark.figures([good], [benchmark.Kill(10.0, 12.0)], 10.0, 0.51)
    assert (found["held"], found["stale"], found["misplaced"]) == (1, 0, 0)
    assert found["last_action_ms_max"] == pytest.approx(200)
    assert found["again_ms_max"] == pytest.approx(400)
    found = benchmark.figures([good, careless], [benchmark.Kill(10.0, 12.0)], 10.0, 0.51)
    assert (found["held"], found["stale"], found["misplaced"]) == (0.5, 2, 1)
    assert found["last_action_ms_max"] == pytest.approx(1900)
    assert found["again_ms_max"] == pytest.approx(2000)
    assert found["oldest_ms"] == pytest.approx(2200)


def test_an_action_of_no_plan_that_was_asked_for_is_told(benchmark, monkeypatch):
    plan = benchmark.np.zeros((4, 2))

    class Answered:
        metadata = None

        def ask(self, observation):
            answer = benchmark.Future()
            answer.set_result({"actions": plan})
            return answer

    witness = benchmark.Witness(Answered())
    witness.now = 3.0
    witness.ask({})
    witness.now = 3.2
    assert witness.saw(plan[2]) == (3.2, 3.0, 2)
    assert witness.saw(None) == (3.2, None, 0)
    assert witness.saw(plan[2].copy()).taken == -float("inf")
