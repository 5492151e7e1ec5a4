"""Planning ahead: what is executed at which step under every delay, in simulated time and in a thread."""

import re
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from test_control import EXECUTE, HORIZON, at, counting, identity, small

import poise.sampling
from poise import policies
from poise.evaluation import Task, rollout
from poise.nn import MLP
from poise.plain import to_plain
from poise.policies import (
    Asynchronous,
    DiffusionPolicy,
    PolicySpec,
    RecedingHorizon,
    TemporalEnsemble,
    simulated,
)
from poise.policies.carriers import Late, afresh
from poise.watchdog import Watchdog, repeated, zeroed


def late(policy, robots=1, delays=(0,), hold=repeated, **more):
    return simulated(policy, robots, delays=delays, hold=hold, **more)


def same(first, second, robots=3, steps=30, ages=(0,)):
    """Two controllers through the same observations, pauses, ages and resets."""
    rng = np.random.default_rng(0)
    for t, x in enumerate(rng.normal(size=(steps, robots))):
        if t in (0, 7, 20):
            which = None if t == 0 else np.arange(robots) == 1
            for controller in (first, second):
                controller.reset([t + 5] if t else range(robots), which)
        which = rng.random(robots) < 0.8
        # A robot's age may not grow by more than the step: observations do not go back.
        age = ages[t % len(ages)]
        got, expected = first.act(at(*x), which, age), second.act(at(*x), which, age)
        np.testing.assert_array_equal(got[which], expected[which])
        np.testing.assert_array_equal(first.fresh, second.fresh)


@pytest.mark.parametrize("age", [0, 2])
def test_without_delay_it_is_the_receding_horizon(age):
    policy = small(evaluations=2)
    controller = late(policy, 3)
    same(controller, RecedingHorizon(policy, 3), ages=(age,))
    assert controller.record.held == controller.record.failed == controller.record.stale == 0
    assert controller.record.requested == controller.record.entered > 0


@pytest.mark.parametrize("decay", [0.0, 0.3, -0.5])
def test_without_delay_and_with_a_plan_a_step_it_is_the_temporal_ensemble(decay):
    policy = small(evaluations=2)
    same(late(policy, 3, execute=1, decay=decay), TemporalEnsemble(policy, 3, decay))


def played(delays, steps, execute=EXECUTE):
    """What a robot does that observes t at step t, as (step of the observation, index), None where it holds."""
    plan, pending, number, done = 0, None, 0, []
    for t in range(steps):
        if pending and pending[1] == t:
            plan, pending = (pending[0] if t - pending[0] < HORIZON else plan), None
        if t and pending is None and (t - plan >= execute):
            number += 1
            pending = t, t + delays[(number - 1) % len(delays)]
            if pending[1] == t:
                plan, pending = t, None
        done.append((plan, t - plan) if t - plan < HORIZON else None)
    return done


@pytest.mark.parametrize("delays", [(0,), (1,), (2,), (3,), (5,), (6,), (7,), (1, 6, 0, 9, 2), (8,), (20,)])
def test_a_late_plan_is_entered_at_its_delay_and_the_robot_holds_where_none_is_left(delays):
    controller = late(counting(), delays=delays)
    steps, last, holds = 60, None, 0
    for t, expected in zip(range(steps), played(delays, steps), strict=True):
        action = controller.act(at(t))[0, 0]
        assert controller.held[0] == (expected is None)
        if expected is None:
            holds += 1
            assert action == last
        else:
            assert action == 1000 * expected[0] + expected[1]
        last = action
    assert controller.record.held == holds
    d = max(delays)
    assert (holds > 0) == (d + max(d, EXECUTE) > HORIZON)
    if min(delays) >= HORIZON:
        assert controller.record.entered == 1
        assert controller.record.stale > 0


def test_holding_velocities_is_zero():
    controller = late(counting(), delays=(20,), hold=zeroed)
    actions = [controller.act(at(1))[0, 0] for _ in range(HORIZON + 2)]
    assert actions == [*range(1000, 1000 + HORIZON), 0, 0]


def test_late_observations_add_to_the_delay():
    """Observations of age 2 and plans that take 3 steps: entered at index 5."""
    controller = late(counting(), delays=(3,))
    actions = [controller.act(at(t), age=2)[0, 0] for t in range(9)]
    assert actions == [2, 3, 4, 5, 6, 7, 3005, 3006, 3007]
    assert not controller.record.held


@pytest.mark.parametrize("more", [{}, {"decay": 0.1, "execute": 2}])
def test_a_robot_depends_on_its_own_seed_and_observations_alone(more):
    policy, rng = small(evaluations=3), np.random.default_rng(0)
    many, one = late(policy, 3, (2, 0, 5), **more), late(policy, 1, (2, 0, 5), **more)
    many.reset([1, 7, 3])
    one.reset([7])
    for t, x in enumerate(rng.normal(size=(40, 3))):
        if t in (4, 9):
            many.reset([50 + t], np.array([True, False, False]))
        which = np.array([t % 3 > 0, True, t % 2 > 0])
        np.testing.assert_allclose(many.act(at(*x), which)[1], one.act(at(x[1]))[0], rtol=0, atol=2e-5)
        assert many.fresh[1] == one.fresh[0]
    one.reset([7])
    first = [one.act(at(x))[0] for x in range(12)]
    one.reset([7])
    np.testing.assert_array_equal(first, [one.act(at(x))[0] for x in range(12)])


def test_a_reset_forgets_plans_under_way():
    """The plan of step 3 would arrive at step 5; after a reset at step 4 only plans of the new episode run."""
    controller = late(counting(), delays=(2,))
    for t in range(4):
        controller.act(at(t))
    controller.reset([1])
    actions = [controller.act(at(100 + t))[0, 0] for t in range(6)]
    assert actions == [100_000, 100_001, 100_002, 100_003, 100_004, 103_002]


def test_a_way_is_told_what_is_left_and_how_late_it_will_be():
    requests = []

    def way(policy, request):
        requests.append(request)
        return afresh(policy, request)

    controller = late(counting(), 2, (2, 4, 1), way=way)
    for t in range(20):
        controller.act(at(t, 100 + t))
    first, second, third, fourth = requests[:4]
    assert first.left.tolist() == [0, 0]
    # Step 3, on the way along the plan of step 0; the largest delay is expected, and after that what was measured.
    assert second.left.tolist() == [HORIZON - 3] * 2
    assert second.previous[:, :, 0].tolist() == [
        [*range(3, HORIZON), *[HORIZON - 1] * 3],
        [*range(100_003, 100_000 + HORIZON), *[100_000 + HORIZON - 1] * 3],
    ]
    assert [r.taken.tolist() for r in requests[:4]] == [[0, 0], [3, 3], [6, 6], [10, 10]]
    assert [r.delay.tolist() for r in requests[:4]] == [[4, 4], [4, 4], [2, 2], [4, 4]]
    assert third.previous[0, 0, 0] == 3003
    assert fourth.previous[0, 0, 0] == 6004


def test_it_runs_under_rollout():
    """Each episode depends on its seed alone, whatever runs beside it."""
    shapes = {"position": (2,), "velocity": (2,), "goal": (2,)}
    policy = DiffusionPolicy(PolicySpec(shapes, 2, network=MLP(16, 1, 8), evaluations=1))
    identity(policy)
    control, runs = partial(simulated, hold=repeated, delays=(2,)), []
    for slots in (1, 3):
        task = Task("poise.envs:poise/Navigate-v0", slots=slots)
        runs.append(sorted(rollout(policy, task, range(3), control), key=lambda e: e.seed))
    for one, many in zip(*runs, strict=True):
        assert one.fresh.tolist() == many.fresh.tolist()
        np.testing.assert_allclose(one.actions, many.actions, atol=1e-4)


class Gate:
    """Plans that are made when the test lets them."""

    def __init__(self):
        self.open, self.error, self.value = threading.Event(), None, None
        self.open.set()

    def __call__(self, policy, request):
        assert self.open.wait(20)
        if self.error:
            raise self.error
        plans = afresh(policy, request)
        return plans if self.value is None else np.full_like(plans, self.value)


def test_a_control_step_does_not_wait_for_a_plan():
    """The thread cannot finish before it is let go, and all steps come back before: what comes then is as simulated."""
    gate, delays = Gate(), (2, 6, 1)
    simulation = late(counting(), delays=delays)
    with Asynchronous(counting(), hold=repeated, way=gate) as controller:
        pending = None
        for t in range(40):
            if pending and pending[1] == t:
                gate.open.set()
                controller._carrier.settle()
                pending = None
            before = controller.record.requested
            if t and pending is None:
                gate.open.clear()
            np.testing.assert_array_equal(controller.act(at(t)), simulation.act(at(t)))
            assert controller.held == simulation.held
            if t and controller.record.requested > before:
                pending = t, t + delays[(before - 1) % 3]
        gate.open.set()
    assert controller.record == simulation.record
    assert controller.record.held > 0


def test_a_plan_that_fails_never_came_and_another_is_begun():
    gate = Gate()
    with Asynchronous(counting(), hold=repeated, way=gate) as controller:
        actions = []
        for t in range(9):
            gate.error = ValueError("no network") if 0 < t < 6 else None
            actions.append(controller.act(at(t))[0, 0])
            controller._carrier.settle()
    assert actions == [0, 1, 2, 3, 4, 5, 6, 6001, 6002]
    assert controller.record.failed == 3
    assert set(controller.record.errors) == {"ValueError: no network"}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_plan_with_nan_is_rejected_as_a_whole(value):
    gate = Gate()
    with Asynchronous(counting(), hold=repeated, way=gate) as controller:
        first = controller.act(at(0))[0, 0]
        gate.value = value
        actions = []
        for t in range(1, HORIZON + 1):
            actions.append(controller.act(at(t))[0, 0])
            controller._carrier.settle()
    assert [first, *actions] == [*range(HORIZON), HORIZON - 1]
    assert controller.record.failed > 0
    assert controller.record.errors[-1] == "a plan holds NaN or infinity"


def test_without_a_first_plan_there_is_nothing_to_go_on_along():
    gate = Gate()
    gate.error = ValueError("no network")
    with (
        Asynchronous(counting(), hold=repeated, way=gate) as controller,
        pytest.raises(RuntimeError, match=r"first plan of robot 0 failed, ValueError: no network; expected one"),
    ):
        controller.act(at(0))


def test_a_reset_waits_for_the_thread_and_forgets_its_plan():
    with Asynchronous(counting(), hold=repeated) as controller:
        for t in range(4):
            controller.act(at(t))
        controller.reset([1])
        assert controller.act(at(50))[0, 0] == 50_000
        assert controller.act(at(51))[0, 0] == 50_001


@pytest.mark.parametrize("more", [{"execute": 0}, {"execute": HORIZON + 1}, {"expected": HORIZON}])
def test_steps_out_of_range_are_refused(more):
    with pytest.raises(ValueError, match="plan further ahead"):
        Asynchronous(counting(), hold=repeated, **more)


@pytest.mark.parametrize("delays", [(), (1, -1)])
def test_delays_are_steps(delays):
    with pytest.raises(ValueError, match=r"expected at least one number of control steps of 0 or more"):
        Late(delays)


class Robot:
    """Sees, moves five times, and remembers what it was sent."""

    def __init__(self):
        self.sent = []

    def stop(self):
        raise AssertionError("stopped by the watchdog")

    def observed(self):
        return at(0.1)

    def ticks(self):
        return len(self.sent) < 5

    def send(self, action):
        self.sent.append(action)


def test_the_page_runs(capsys):
    """The program of docs/realtime.md, with a small policy and a robot of our own."""
    page = (Path(__file__).parents[1] / "docs/realtime.md").read_text()
    program, _ = re.findall(r"```python\n(.*?)```", page, re.S)
    limits = policies.Safety((-50.0, -50.0), (50.0, 50.0))
    names = {**vars(policies), **vars(poise.sampling), "Watchdog": Watchdog, "repeated": repeated, "robot": Robot()}
    names["load_checkpoint"] = lambda path: (small(), {"safety": to_plain(limits)})
    exec(compile(program.replace("10.0, [", "0.1, ["), "realtime.md", "exec"), names)
    names["planner"].close()
    assert len(names["robot"].sent) == 5
    assert "failed=0, stale=0, held=0" in capsys.readouterr().out
