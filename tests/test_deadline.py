"""Deadlines with a clock that moves by what plans are said to take: what is chosen and counted, when it changes."""

import numpy as np
import pytest
from test_control import HORIZON, at, small

from poise.policies import Asynchronous, Candidate, Deadline, afresh, simulated
from poise.policies.carriers import Late
from poise.policies.deadline import Punctuality
from poise.sampling import DDIM, AdaptiveDPMSolver, DPMSolverPP, Listed, Restart, UniformTime
from poise.watchdog import repeated

BEST, GOOD, FAST = (DPMSolverPP(), 10), (DDIM(), 5), (DDIM(), 2)


class Machine:
    """A clock and plans of 10 ms an evaluation, times how slow the machine is."""

    def __init__(self):
        self.now, self.slow, self.used = 0.0, 1.0, []

    def clock(self):
        return self.now

    def way(self, policy, request):
        self.used.append((policy.spec.sampler, policy.spec.evaluations))
        self.now += 0.010 * policy.spec.evaluations * self.slow
        return np.zeros((len(request.robots), HORIZON, 2), np.float32)


ASKED = []


@pytest.fixture(scope="module", autouse=True)
def _asked():
    """A policy and what one robot asks it."""
    policy, seen = small(), []
    controller = simulated(policy, hold=repeated, delays=(0,), way=lambda p, r: seen.append(r) or afresh(p, r))
    controller.act(at(0.0))
    ASKED[:] = policy, seen[0]


def deadline(machine, candidates=(BEST, GOOD, FAST), rate_hz=7.5, **more):
    return Deadline(ASKED[0], rate_hz, candidates, machine.way, clock=machine.clock, **more)


def plans(machine, chosen, count, slow=1.0):
    """What was used for so many plans on a machine so slow."""
    machine.slow, machine.used = slow, []
    for _ in range(count):
        chosen(*ASKED)
    return machine.used


@pytest.mark.parametrize(
    ("rate_hz", "steps", "margin", "expected"),
    # 100, 50 and 20 ms
    [
        (7.5, 1, 0.2, BEST),
        (9.5, 1, 0.2, GOOD),
        (9.5, 1, 0.0, BEST),
        (20, 1, 0.2, FAST),
        (20, 3, 0.2, BEST),
        (20, 2, 0.3, GOOD),
    ],
)
def test_the_first_that_fits_is_used(rate_hz, steps, margin, expected):
    machine = Machine()
    chosen = deadline(machine, rate_hz=rate_hz, steps=steps, margin=margin)
    assert chosen.candidate == Candidate(*expected)
    np.testing.assert_allclose(chosen.seconds, [0.1, 0.05, 0.02])
    assert chosen.budget == pytest.approx(steps / rate_hz)
    assert plans(machine, chosen, 3) == [expected] * 3


def test_the_given_order_counts_and_not_the_evaluations():
    assert deadline(Machine(), (GOOD, BEST, FAST)).candidate == Candidate(*GOOD)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"take 100.0, 50.0 ms .*, expected one of at most 40.0 ms, 80% of 1 control"):
        deadline(Machine(), (BEST, GOOD), rate_hz=20)
    for more in ({"rate_hz": 0}, {"candidates": ()}, {"steps": 0}, {"margin": 1.0}, {"patience": 0}):
        with pytest.raises(ValueError, match="expected a rate above 0, one candidate"):
            deadline(Machine(), **more)


@pytest.mark.parametrize(
    ("sampler", "grid", "evaluations", "expected"),
    [
        (DDIM(), UniformTime(), 10, [10, 5, 2, 1]),
        (DDIM(), UniformTime(), 1, [1]),
        (Restart(), UniformTime(), 10, [10, 5]),
        (DDIM(), Listed(((1.0, 0.4, 0.2, 0.1, 0.0), (1.0, 0.0))), 4, [4, 1]),
        (AdaptiveDPMSolver(), UniformTime(), 10, [10]),
    ],
    ids=["all", "one", "Restart", "Listed", "adaptive"],
)
def test_by_default_the_evaluations_are_halved_as_far_as_they_can_be_spent(sampler, grid, evaluations, expected):
    machine, policy = Machine(), small(sampler=sampler, grid=grid, evaluations=evaluations)
    chosen = Deadline(policy, 1.0, way=machine.way, clock=machine.clock)
    assert chosen.candidate == Candidate(sampler, evaluations)
    np.testing.assert_allclose(chosen.seconds, [0.01 * count for count in expected])


def test_a_policy_whose_budget_cannot_be_spent_has_no_candidate():
    machine = Machine()
    with pytest.raises(ValueError, match="0 candidates"):
        Deadline(small(sampler=Restart(), evaluations=3), 1.0, way=machine.way, clock=machine.clock)


def test_every_late_plan_is_a_warning(caplog):
    """Of 133.3 ms the best takes 150, the good one 75 and then 300."""
    machine = Machine()
    chosen = deadline(machine)
    plans(machine, chosen, 2, 1.5)
    plans(machine, chosen, 1, 6.0)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "a plan took 150.0 ms of at most 133.3, by DPMSolverPP with 10 evaluations"),
        ("WARNING", "a plan took 300.0 ms of at most 133.3, by DDIM with 5 evaluations"),
    ]


def test_what_was_late_is_counted_and_made_faster():
    """Of 133.3 ms the best takes 100. Half as slow again it is late by 16.7; the next one takes 75."""
    machine = Machine()
    chosen = deadline(machine)
    assert plans(machine, chosen, 4, 1.5) == [BEST, GOOD, GOOD, GOOD]
    assert chosen.punctuality == Punctuality(4, 1, pytest.approx(0.05 / 3), pytest.approx(0.05 / 3), 1, 0)
    # Six times as slow: 300 ms, and 120 ms that count as in time.
    assert plans(machine, chosen, 3, 6.0) == [GOOD, FAST, FAST]
    assert chosen.punctuality == Punctuality(7, 2, pytest.approx(0.55 / 3), pytest.approx(0.5 / 3), 2, 0)
    # There is nothing faster.
    assert plans(machine, chosen, 2, 10.0) == [FAST, FAST]
    assert chosen.punctuality.missed == 4
    assert chosen.punctuality.drops == 2


def test_it_drops_at_once_to_what_fits():
    machine = Machine()
    assert plans(machine, deadline(machine), 2, 4.0) == [BEST, FAST]


def test_it_recovers_step_by_step_when_all_is_well_for_long():
    machine = Machine()
    chosen = deadline(machine, patience=5)
    plans(machine, chosen, 2, 4.0)
    # One of the five was still too slow for the next better one; after five good ones it is tried, then the best.
    assert plans(machine, chosen, 1, 3.0) == [FAST]
    assert plans(machine, chosen, 18) == [FAST] * 8 + [GOOD] * 5 + [BEST] * 5
    assert chosen.punctuality.recoveries == 2


def test_a_trial_that_was_late_waits_twice_as_long():
    """The best alone is slow: each trial of it is late, and comes after 4, 8, 16, ... and at last 64 plans."""
    machine = Machine()
    chosen = deadline(machine, (BEST, GOOD), patience=4)
    used = []
    for _ in range(400):
        slow = 2.0 if chosen.candidate == Candidate(*BEST) else 1.0
        used += plans(machine, chosen, 1, slow)
    trials = [k for k, candidate in enumerate(used) if candidate == BEST]
    assert np.diff(trials).tolist() == [5, 9, 17, 33, 65, 65, 65, 65, 65]
    assert chosen.punctuality.missed == len(trials)


def test_patience_comes_back_with_a_trial_that_lasts():
    machine = Machine()
    chosen = deadline(machine, (BEST, GOOD), patience=3)
    assert plans(machine, chosen, 1, 2.0) == [BEST]
    assert plans(machine, chosen, 3) == [GOOD] * 3
    assert plans(machine, chosen, 1, 2.0) == [BEST]  # late within its trial
    assert plans(machine, chosen, 6 + 6) == [GOOD] * 6 + [BEST] * 6
    assert plans(machine, chosen, 1, 2.0) == [BEST]
    assert plans(machine, chosen, 4) == [GOOD] * 3 + [BEST]


def test_it_makes_the_plans_of_its_candidate_and_runs_under_controllers():
    """The actions are those of the policy under the sampler; also in the thread."""
    policy = small()
    chosen = Deadline(policy, 0.001, [GOOD])
    plain = policy.using(sampler=DDIM(), evaluations=5)
    runs = []
    for way, other in ((chosen, policy), (afresh, plain)):
        with Asynchronous(other, hold=repeated, way=way, carrier=Late((2,))) as controller:
            controller.reset([3])
            runs.append([controller.act(at(0.1 * t))[0] for t in range(12)])
    np.testing.assert_array_equal(*runs)
    assert chosen.punctuality.plans == 4
    assert chosen.punctuality.missed == 0
