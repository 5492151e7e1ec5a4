"""Limits of what leaves, and the watchdog, against definitions in plain Python."""

import math
import re
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as some
from test_cli import RECIPE, run
from test_control import EXECUTE, at, counting, small

from poise import Episodes, Windows, load_checkpoint
from poise.envs import Map, demonstrate
from poise.plain import to_plain
from poise.policies import RecedingHorizon, Safe, Safety, limited
from poise.watchdog import Watchdog, repeated, zeroed

NONE = Safety((-1e6,), (1e6,))


def sent(safety, wanted, past=None):
    return limited(np.array(wanted, float)[:, None], safety, past)[0][:, 0]


def differences(actions, before):
    """Change, acceleration and jerk of every action, after those before it."""
    row = np.concatenate([before, actions])
    return [np.abs(np.diff(row, n))[3 - n :] for n in (1, 2, 3)]


numbers = some.floats(-10, 10, width=32)
limits = some.floats(0.25, 4, width=32)


@settings(max_examples=300, deadline=None)
@given(some.lists(numbers, min_size=1, max_size=12), numbers, some.tuples(limits, limits, limits))
@example([0.75, 1e-45, -1.5], 2.0, (4.0, 1.0, 4.0))  # what rounding leaves is no way to go
def test_limits_hold_in_their_order(wanted, start, bounds):
    """Range and change always; acceleration unless the wall is in the way; and nothing that is allowed is touched."""
    c, b, j = bounds
    safety, before = Safety((-5.0,), (5.0,), (c,), (b,), (j,)), np.full(3, np.clip(start, -5, 5))
    got = sent(safety, wanted, before[:, None]).astype(float)
    assert (np.abs(got) <= 5 + 1e-5).all()
    change, acceleration, jerk = differences(got, before)
    assert (change <= c + 1e-5).all()
    at_wall = np.isclose(np.abs(got), 5, atol=1e-5)
    assert (acceleration[~at_wall] <= b + 1e-5).all()
    for k, x in enumerate(wanted):
        passed = np.concatenate([before, got[:k]])[-3:]
        v, a, r = (d[0] for d in differences(np.array([float(x)]), passed))
        reached = k == 0 or np.isclose(got[k - 1], wanted[k - 1], rtol=5e-7, atol=5e-12)
        if max(abs(x) - 5, v - c, a - b, r - j) < -1e-4 and reached:
            assert got[k] == pytest.approx(x, abs=1e-5)
        # What is sent lies between where the robot would coast to and what is wanted.
        coast = 2 * passed[2] - passed[1]
        ends = sorted([coast, passed[2], float(x)])
        assert ends[0] - b - 1e-4 <= got[k] <= ends[2] + b + 1e-4


@settings(max_examples=100, deadline=None)
@given(numbers, numbers, some.tuples(some.none() | limits, some.none() | limits, some.none() | limits))
def test_an_action_that_stays_is_reached_and_never_passed(start, target, bounds):
    """From rest, under any of the limits: always nearer, and there in the end."""
    c, b, j = ((x,) if x else None for x in bounds)
    got = sent(Safety((-20.0,), (20.0,), c, b, j), [target] * 120, np.full((3, 1), start)).astype(float)
    way = np.abs(target - np.concatenate([[start], got]))
    assert (np.diff(way) <= 1e-5).all()
    assert ((target - got) * np.sign(target - start) >= -1e-5).all()
    assert way[-1] < 1e-3


def test_it_brakes_as_late_as_it_can():
    """From 0 to 10 with an acceleration of 1: 1, 2, 3, and down again; a limit on jerk makes it start gently."""
    far = [10.0] * 9
    assert sent(Safety((-20.0,), (20.0,), None, (1.0,)), far, np.zeros((3, 1))).tolist()[:3] == [1, 3, 6]
    way = sent(Safety((-20.0,), (20.0,), None, (1.0,)), far, np.zeros((3, 1)))
    assert way[-1] == 10
    assert np.abs(np.diff(way, 2)).max() <= 1 + 1e-6
    assert sent(Safety((-20.0,), (20.0,), (2.0,)), far, np.zeros((3, 1))).tolist()[:6] == [2, 4, 6, 8, 10, 10]
    gentle = sent(Safety((-20.0,), (20.0,), None, None, (0.5,)), far, np.zeros((3, 1)))
    assert gentle.tolist()[:4] == [0.5, 2.0, 5.0, 10.0]


def test_each_dimension_and_each_plan_has_its_own():
    safety = Safety((-1.0, -9.0), (1.0, 9.0), (0.5, 9.0))
    plans = np.array([[[0, 0], [2, 3]], [[0.2, 1], [0.4, 1]]], np.float32)
    got, counts = limited(plans, safety)
    np.testing.assert_allclose(got, [[[0, 0], [0.5, 3]], [[0.2, 1], [0.4, 1]]], atol=1e-6)
    assert counts == {"steps": 4, "range": 1, "change": 1}


@pytest.mark.parametrize("quantile", [1.0, 0.9])
def test_demonstrations_are_never_touched(quantile):
    """Not one of their own, at the extremes; a share of them, where the limits are quantiles. Neither is longer."""
    data = demonstrate(Map(), episodes=40, seed=0, noise=0.1)
    episodes = Episodes({"x": data["position"], "action": data["action"]}, data["episode_ends"])
    windows = Windows(episodes, ("x",), 2, 8, 7)
    safety = Safety.fit(windows.actions, windows.starts, quantile)
    assert safety == Safety.fit(data["action"], episodes.starts, quantile)
    touched = 0
    for begin, end in zip(episodes.starts, episodes.ends, strict=True):
        plan = data["action"][begin:end]
        got, counts = limited(plan, safety)
        touched += sum(counts.values()) - counts["steps"]
        if quantile == 1:
            np.testing.assert_allclose(got, plan, atol=1e-6)
    assert (touched > 0) == (quantile < 1)


def test_a_plan_from_inside_a_motion_passes():
    """It begins at the speed that the robot has by then, and not at rest; its own steps keep the limits."""
    speed = np.concatenate([np.linspace(0, 1, 11), np.ones(20), np.linspace(1, 0, 11)])
    motion = np.cumsum(speed)[:, None]
    safety = Safety.fit(motion, [0])
    for begin in range(len(motion) - 8):
        plan = motion[begin : begin + 8]
        got, counts = limited(plan, safety)
        np.testing.assert_allclose(got, plan, atol=1e-5)
        assert counts == {"steps": 8}
    fast, _ = limited(3 * motion[15:20] - 2 * motion[15], safety)
    assert np.abs(np.diff(fast, axis=0)).max() <= safety.change[0] + 1e-5
    assert limited(motion[15:16], safety)[0] == np.float32(motion[15])


def test_limits_are_the_extremes_of_each_episode_by_itself():
    """Two episodes far apart: the way between them is no change."""
    actions = np.array([[0.0], [1.0], [3.0], [3.0], [100.0], [99.0]])
    safety = Safety.fit(actions, [0, 4], margin=0.5)
    assert safety == Safety((-50.0,), (150.0,), (3.0,), (3.0,), (1.5 * 3,))
    still = Safety.fit(np.full((5, 1), 2.0), [0], margin=0.5)
    assert still.low[0] < 2 < still.high[0]
    assert min(still.change + still.acceleration + still.jerk) > 0


@pytest.mark.parametrize(
    "more", [{"quantile": 0.5}, {"margin": -0.1}, {"actions": np.zeros(3)}, {"actions": np.zeros((0, 1))}]
)
def test_what_limits_cannot_be_taken_from_is_refused(more):
    with pytest.raises(ValueError, match=r"expected \(rows, action\) in one episode or more"):
        Safety.fit(**{"actions": np.zeros((3, 1)), "starts": [0], **more})


@pytest.mark.parametrize(
    "bounds",
    [((1.0,), (0.0,)), ((0.0,), (1.0, 2.0)), ((0.0,), (1.0,), (0.0,)), ((0.0,), (math.inf,)), ((math.nan,), (1.0,))],
)
def test_limits_that_are_none_are_refused(bounds):
    with pytest.raises(ValueError, match="expected finite numbers, one a dimension"):
        Safety(*bounds)


def test_limits_travel_with_the_checkpoint_and_their_absence_is_told(tmp_path):
    safety = Safety((-1.0, 0.0), (1.0, 2.5), (0.1, 0.2), None, (0.3, 0.4))
    policy = small()
    file = policy.save(tmp_path, {"safety": to_plain(safety), "data": "pusht"})
    assert Safety.of(load_checkpoint(file).notes) == safety
    policy.save(tmp_path, {"data": "pusht"})
    with pytest.raises(ValueError, match=r"notes hold \['data'\], expected .* Safety.fit\(actions, starts\) and save"):
        Safety.of(load_checkpoint(file).notes)


@pytest.mark.parametrize(
    "noted", [5, None, [], {"type": "Safety"}, {"type": "PolicySpec"}, {"type": "Safety", "low": ["a"], "high": [1.0]}]
)
def test_notes_that_are_no_limits_are_refused(noted):
    with pytest.raises(ValueError, match="expected those that poise train writes"):
        Safety.of({"safety": noted})


def test_training_notes_the_limits_of_its_demonstrations(tmp_path, monkeypatch):
    (tmp_path / "small.py").write_text(RECIPE.replace("steps=30", "steps=3"))
    run(monkeypatch, "train", tmp_path / "small.py", "--out", tmp_path / "run")
    data = demonstrate(Map(), 40, seed=0, noise=0.1)
    starts = np.concatenate([[0], data["episode_ends"][:-1]])
    assert Safety.of(load_checkpoint(tmp_path / "run").notes) == Safety.fit(data["action"], starts)


class Spoilt:
    """A controller whose plans are good or not, by a table."""

    robots = 2

    def __init__(self, steps):
        self.steps, self.fresh, self.count = steps, np.zeros(2, bool), -1

    def reset(self, seeds, which=None):
        pass

    def act(self, observation, which=None, age=None):
        self.count += 1
        actions, self.fresh = self.steps[self.count]
        return np.array(actions, np.float32)[:, None]


NAN = math.nan


@pytest.mark.parametrize(("hold", "held"), [(repeated, 2), (zeroed, 0)])
def test_a_plan_with_nan_is_rejected_until_the_next(hold, held):
    """The second robot's plan is spoilt at step 1; what follows of it is held too, until a fresh one at step 3."""
    new, old = np.array([True, True]), np.zeros(2, bool)
    steps = [([1, 2], new), ([1, NAN], old), ([1, 5], old), ([1, 3], new), ([math.inf, 3], new), ([1, 3], new)]
    controller = Safe(Spoilt(steps), NONE, hold)
    actions = [controller.act({})[:, 0].tolist() for _ in steps]
    other = 1 if hold is repeated else 0
    assert actions == [[1, 2], [1, held], [1, held], [1, 3], [other, 3], [1, 3]]
    assert controller.interventions == {"steps": 12, "rejected": 3}


def test_what_begins_with_nan_has_nothing_to_hold():
    controller = Safe(Spoilt([([1, NAN], np.ones(2, bool))]), NONE, repeated)
    with pytest.raises(ValueError, match="first action of robot 1 holds NaN"):
        controller.act({})


def test_it_wraps_any_controller():
    """Plans of 1000 x + k, in range and in change; pauses keep the last action, a reset begins anew."""
    safety = Safety((0.0, 0.0), (4000.0, 4000.0), (1.0, 1.0))
    controller = Safe(RecedingHorizon(counting(), 2), safety, repeated)
    first = [controller.act(at(1, 7))[:, 0].tolist() for _ in range(EXECUTE)]
    assert first == [[1000, 4000], [1001, 4000], [1002, 4000]]
    assert controller.interventions == {"steps": 6, "range": 3, "change": 3}
    paused = controller.act(at(2, 2), np.array([True, False]))[:, 0].tolist()
    assert paused == [1003, 4000]
    assert controller.interventions["change"] == 4
    controller.reset([1], np.array([True, False]))
    assert controller.act(at(2, 2))[:, 0].tolist() == [2000, 3999]
    assert controller.fresh.all()
    with pytest.raises(ValueError, match="limits of 1 dimensions, expected as many"):
        Safe(RecedingHorizon(counting()), NONE, repeated).act(at(1))


@pytest.mark.parametrize("plan", [[[NAN]], [[1.0, 2.0]]])
def test_a_server_rejects_the_whole_plan(plan):
    with pytest.raises(ValueError, match="reject the whole plan, and hold the robot"):
        limited(np.array(plan), NONE)


def test_the_watchdog_holds_then_stops_once():
    now, stops = [10.0], []
    dog = Watchdog(0.2, 1.0, lambda: stops.append(now[0]), clock=lambda: now[0])
    alive = []
    for now[0], fed in [(10.1, False), (10.3, False), (10.4, True), (10.6, False), (10.7, False), (11.3, False)]:
        if fed:
            dog.feed()
        alive.append(dog.alive())
    assert alive == [True, False, True, True, False, False]
    assert not stops
    for now[0] in (11.5, 11.6, 12.0):
        assert not dog.alive()
    assert stops == [11.5]
    dog.feed()
    assert not dog.alive()  # a stop is final
    dog.reset()
    assert dog.alive()
    now[0] = 20.0
    assert not dog.alive()
    assert stops == [11.5, 20.0]


def test_the_limits_of_an_exported_policy_are_kept_as_the_page_says():
    page = (Path(__file__).parents[1] / "docs/realtime.md").read_text()
    _, program = re.findall(r"```python\n(.*?)```", page, re.S)
    told = {"low": [-1.0], "high": [1.0], "change": [0.5], "acceleration": None, "jerk": None}
    robot, plan = [], iter([[0.0], [0.2], [9.0]])
    names = {"observation": {}, "runtime": SimpleNamespace(facts={"safety": told}, features={}, history=1, action=1)}
    vars(names["runtime"]).update(planned=1, execute=1, plan=lambda window, seeds: np.float32([[next(plan)]]))
    names["robot"] = SimpleNamespace(send=lambda action: robot.append(action.item()))
    made, sent = program.rsplit("\n\n", 1)
    exec(made, names)
    for _ in range(3):
        exec(sent, names)
    assert robot == pytest.approx([0.0, 0.2, 0.7])
    assert names["control"].interventions == {"steps": 3, "range": 1, "change": 1}


def test_a_loop_that_hangs_is_stopped_by_the_thread_that_watches():
    stops, stopped = [], threading.Event()

    def stop() -> None:
        stops.append(threading.current_thread().name)
        stopped.set()

    dog = Watchdog(0.02, 0.05, stop)
    with dog.watching():
        assert stopped.wait(20)  # nobody asks meanwhile
        assert not dog.alive()
    assert stops == ["poise-watchdog"]
    assert "poise-watchdog" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize("times", [(0, 1), (2, 1), (math.nan, 1)])
def test_a_watchdog_holds_before_it_stops(times):
    with pytest.raises(ValueError, match="expected 0 < max_age <= stop_after"):
        Watchdog(*times, lambda: None)
