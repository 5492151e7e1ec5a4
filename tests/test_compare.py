import copy
import dataclasses
import json
import math
import sys
from typing import TypeVar

import numpy as np
import pytest
import torch
import tyro

from poise.cli.compare import LINEUP, TWINS, Tried, compare_samplers
from poise.data import Episodes, Windows
from poise.diagnostics import energy_distance
from poise.evaluation import Task, paired_difference, rollout
from poise.evaluation.advice import Constraints, advise
from poise.evaluation.compare import Cell, Row, compare, draws_noise, spendable, timed, warm_start
from poise.evaluation.comparison_plots import diversity_figure, families_figure, noise_figure, pareto_figure
from poise.evaluation.comparison_report import write_comparison
from poise.evaluation.diversity import (
    Probe,
    demonstrated_floor,
    held_out,
    likelihood,
    mean_distance,
    repeatable,
    sensitivity,
    spread,
    to_demonstrations,
    visited,
)
from poise.evaluation.paired import noise_effect, paired_test, pareto, rate_difference
from poise.nn import MLP
from poise.policies import DiffusionPolicy, Policy, PolicySpec, Regression, WarmStart
from poise.recipe import load_recipe
from poise.sampling import (
    DDIM,
    DDPM,
    BogackiShampine,
    DormandPrince,
    DPMSolverPP,
    EulerMaruyama,
    Heun,
    Switch,
    per_sample,
)

P = TypeVar("P", bound=Policy)
SPEC = PolicySpec({"position": (2,), "goal": (2,)}, 2, horizon=4, execute=2, network=MLP(16, 1, condition=8))
TASK = Task("poise.envs:poise/Navigate-v0", {"max_episode_steps": 12}, slots=4)


def small(std: float = 0.3) -> DiffusionPolicy:
    """A policy with random weights."""
    torch.manual_seed(0)
    policy = DiffusionPolicy(SPEC)
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return in_units_of_the_data(policy)


def in_units_of_the_data(policy: P) -> P:
    for module in (*policy.observation_normalisers.values(), policy.action_normaliser):
        module.scale.fill_(1.0)
        module.offset.fill_(0.0)
    return policy.eval()


@pytest.fixture(scope="module")
def policy() -> DiffusionPolicy:
    return small()


@pytest.fixture(scope="module")
def probe() -> Probe:
    generator = torch.Generator().manual_seed(1)
    observation = {name: torch.randn(6, 2, 2, generator=generator) for name in SPEC.observations}
    return Probe(observation, torch.randn(6, 4, 2, generator=generator))


def row(name: str = "A", success: float = 0.8, ms: float = 10.0, **changes) -> Row:
    """A row over 100 seeds of which the first ones succeed."""
    won = changes.pop("won", tuple(bool(v) for v in np.arange(100) < 100 * success))
    plain = {
        "name": name, "family": "ODE", "budget": 2, "code": f"use({name})", "won": won,
        "rewards": tuple(float(w) for w in won), "evaluations": 2.0, "plan_ms_median": 0.8 * ms, "plan_ms_p95": ms,
        "execute": 8, "ahead": 8, "deterministic": True, "repeatable": True, "spread": 1.0, "sensitivity": 0.5,
        "mode_entropy": None, "energy": None, "jerk": 0.1, "seam_jump": 1.2,
    }  # fmt: skip
    return Row(**{**plain, **changes})


def test_rows_are_paired_and_do_not_depend_on_the_other_cells(policy, probe):
    cells = [Cell("DDPM", "SDE", DDPM(), 2), Cell("DDIM", "ODE", DDIM(), 3)]
    seeds = range(50_000, 50_006)
    both = list(compare(policy, TASK, cells, seeds, probe, repeats=3))
    (alone,) = compare(policy, TASK, cells[1:], seeds, probe, repeats=3)
    clock = {"plan_ms_median": 0.0, "plan_ms_p95": 0.0}
    assert dataclasses.replace(alone, **clock) == dataclasses.replace(both[1], **clock)
    direct = {e.seed: e.reward_max for e in rollout(cells[0].of(policy), TASK, seeds)}
    assert both[0].rewards == tuple(direct[seed] for seed in seeds)
    assert [r.evaluations for r in both] == [2, 3]
    assert [r.deterministic for r in both] == [False, True]
    assert all(r.repeatable for r in both)
    assert [r.label for r in both] == ["DDPM with 2 evaluations", "DDIM with 3 evaluations"]
    assert both[1].code == "policy.using(sampler=DDIM(eta=0.0, bound=None), evaluations=3)"
    assert Row.of(json.loads(json.dumps(dataclasses.asdict(both[0])))) == both[0]


def test_evaluations_are_counted_whatever_was_declared(policy, probe):
    for sampler, budget in ((Heun(), 4), (Switch(), 3), (DPMSolverPP(), 1)):
        chosen = policy.using(sampler=sampler, evaluations=budget)
        calls, ms = timed(chosen, Cell("", "", sampler, budget).control(chosen, 1), probe, 5)
        assert calls.tolist() == [budget] * 5
        assert (ms > 0).all()
    (adaptive,) = compare(policy, TASK, [Cell("a", "ODE", BogackiShampine(0.1, 0.1), None)], [50_000], probe, repeats=3)
    assert adaptive.evaluations > 6
    assert adaptive.label == "a"


def test_a_warm_start_costs_its_evaluations_and_keeps_to_the_plan_that_it_begins_with(policy, probe):
    base = policy.using(evaluations=5)
    cells = [warm_start(DDIM(), 2, begin) for begin in (0.05, 0.95)]
    (row,) = compare(base, TASK, cells[:1], [50_000, 50_001], probe, repeats=4)
    assert (row.evaluations, row.family, row.deterministic, row.repeatable) == (2, "warm start", True, True)
    assert row.code == "WarmStart(policy.using(sampler=DDIM(eta=0.0, bound=None)), robots, begin=0.05, evaluations=2)"
    before = cells[0].of(base).plan(probe.observation, per_sample(range(6)))
    near, far = (cell.plan(cell.of(base), probe.observation, per_sample(range(6))) for cell in cells)
    assert (near - before).norm() < 0.3 * (far - before).norm()


def test_warm_starts_are_tried_from_where_a_robot_would_begin_them(policy):
    usual = WarmStart(policy).begin
    (tried,) = Tried(samplers=("warm-start",), evaluations=(2,)).cells()
    for cell in (tried, warm_start(DDIM(), 2)):
        control = cell.control(policy, 1)
        assert isinstance(control, WarmStart)
        assert control.begin == usual


def test_what_cannot_be_spent_is_left_out_with_a_note():
    kept, notes = spendable(
        [Cell("Heun", "ODE", Heun(), 1), Cell("DDIM", "ODE", DDIM(), 0), Cell("DDIM", "ODE", DDIM(), 1)]
    )
    assert [c.label for c in kept] == ["Heun with 1 evaluation", "DDIM with 1 evaluation"]
    assert len(notes) == 1
    assert "DDIM with 0 evaluations is left out: DDIM got a budget of 0 evaluations" in notes[0]


def test_what_cannot_be_compared_is_refused(policy, probe):
    with pytest.raises(ValueError, match="got a Regression, expected a DiffusionPolicy"):
        next(compare(Regression(SPEC), TASK, [], [1], probe))
    with pytest.raises(ValueError, match="compare got no seeds"):
        next(compare(policy, TASK, [], [], probe))


def test_only_noise_after_the_start_makes_a_sampler_stochastic(policy, probe):
    for sampler in (DDIM(), Heun(), BogackiShampine(0.1, 0.1)):
        assert not draws_noise(policy.using(sampler=sampler, evaluations=4), probe), sampler
    for sampler in (DDPM(), EulerMaruyama(), DPMSolverPP(eta=1.0), Switch()):
        assert draws_noise(policy.using(sampler=sampler, evaluations=4), probe), sampler


def test_the_mean_distance_of_normal_samples():
    d, s = 5, 0.7
    expected = 2 * s * math.gamma((d + 1) / 2) / math.gamma(d / 2)
    samples = s * torch.randn(400, 20, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3
    found = mean_distance(samples)
    assert found.shape == (20,)
    assert found.mean().item() == pytest.approx(expected, rel=0.01)
    few = mean_distance(s * torch.randn(2, 20_000, d, generator=torch.Generator().manual_seed(0)))
    assert few.mean().item() == pytest.approx(expected, rel=0.02), "two samples are as good on average"
    with pytest.raises(ValueError, match="got 1 samples"):
        mean_distance(samples[:1])


def noisy(observation, noise):
    """Plans 0.5 z around the goal, without regard to the network."""
    mean = observation["goal"][:, -1:].expand(-1, 4, -1)
    return mean + 0.5 * noise(mean, 1.0, 1.0)


def test_spread_counts_the_noise_and_not_the_observations(policy, probe):
    wide = Probe({name: values.repeat(40, 1, 1) for name, values in probe.observation.items()})
    assert spread(policy, noisy, wide) == pytest.approx(math.gamma(4.5) / math.gamma(4), rel=0.03)
    assert spread(policy, lambda o, noise: noisy(o, lambda x, t, s: 0 * x), wide) == 0
    cold = policy.using(sampler=DDIM(), temperature=1e-9)
    assert spread(cold, cold.plan, probe) == pytest.approx(0, abs=1e-6)
    assert spread(policy, policy.plan, probe) > 0.1


def test_spread_is_in_normalised_units(probe):
    policy = small()
    policy.action_normaliser.scale.fill_(3.0)
    assert spread(policy, noisy, probe) == pytest.approx(3 * spread(small(), noisy, probe), rel=1e-5)


def test_sensitivity_of_known_planners(policy, probe):
    """A plan of four times 2 x the goal of now moves by 4 |d|, d in 2 dimensions, for a change of both steps in 4.

    The ratio of the mean norms of normal vectors in 2 and in 4 dimensions is 2/3.
    """

    def linear(observation, noise):
        return 2 * observation["goal"][:, -1:].expand(-1, 4, -1) + noise(
            torch.zeros(len(observation["goal"]), 4, 2), 1, 1
        )

    generator = torch.Generator().manual_seed(0)
    goals = {"position": torch.zeros(500, 2, 2), "goal": torch.randn(500, 2, 2, generator=generator)}
    assert sensitivity(policy, linear, Probe(goals)) == pytest.approx(4 * 2 / 3, rel=0.02)
    assert sensitivity(policy, lambda o, noise: torch.zeros(len(o["goal"]), 4, 2), Probe(goals)) == 0
    still = {name: torch.ones(5, 2, 2) for name in goals}
    assert sensitivity(policy, linear, Probe(still)) is None


def test_repeatability_is_of_bits(policy, probe):
    assert repeatable(policy.plan, probe)
    state = iter((1.0, 1.0 + 1e-6))
    assert not repeatable(lambda o, noise: next(state) * noisy(o, noise), probe)


def test_energy_distance_to_demonstrations(policy, probe):
    shown = probe.actions
    assert to_demonstrations(policy, lambda o, noise: shown, probe) == pytest.approx(0, abs=1e-6)
    shifted = to_demonstrations(policy, lambda o, noise: shown + 1, probe)
    assert shifted == pytest.approx(energy_distance(shown + 1, shown))
    assert shifted > 0.5
    with pytest.raises(ValueError, match="probe without actions"):
        to_demonstrations(policy, policy.plan, Probe(probe.observation))


def test_the_floor_is_what_two_sets_of_demonstrations_are_apart(policy):
    generator = torch.Generator().manual_seed(0)
    sets = torch.randn(40, 2, 32, 4, 2, generator=generator)
    zeros = {name: torch.zeros(32, 2, 2) for name in SPEC.observations}
    apart = np.mean([energy_distance(a, b) for a, b in sets])
    floors = np.mean([demonstrated_floor(policy, Probe(zeros, a)) for a, _ in sets])
    assert floors == pytest.approx(apart, rel=0.05)


def test_likelihood_is_that_of_the_policy():
    """The cheap estimate agrees with the exact divergence at tight tolerances."""
    policy = small(std=0.1)
    generator = torch.Generator().manual_seed(0)
    observation = {name: torch.randn(3, 2, 2, generator=generator) for name in SPEC.observations}
    probe = Probe(observation, 0.5 * torch.randn(3, 4, 2, generator=generator))
    exact = policy.log_prob(observation, probe.actions, solver=DormandPrince(1e-4, 1e-4)).value / 8
    found = likelihood(policy, probe, probes=32)
    assert found.value == pytest.approx(exact.mean().item(), abs=0.02)
    assert found.low < found.value < found.high


def test_probes_hold_what_was_seen(policy):
    episodes = list(rollout(policy, TASK, [50_000, 50_001]))
    probe = visited(SPEC, episodes, 1000)
    first = min(episodes, key=lambda e: e.seed)
    assert len(probe) == sum(len(e.actions) for e in episodes)
    np.testing.assert_array_equal(probe.observation["position"][0], first.observations["position"][[0, 0]])
    np.testing.assert_array_equal(probe.observation["position"][3], first.observations["position"][[2, 3]])
    assert len(visited(SPEC, episodes, 5)) == 5
    blind = dataclasses.replace(TASK, observe=lambda raw: {"position": raw["position"].astype(np.float64)})
    guided = DiffusionPolicy(dataclasses.replace(SPEC, optional={"goal": 0.5}))
    free = in_units_of_the_data(guided)
    without = visited(free.spec, rollout(free, blind, [50_000, 50_001]))
    assert {name: values.dtype for name, values in without.observation.items()} == {"position": torch.float32}
    (row,) = compare(free, blind, [Cell("", "ODE", DDIM(), 1)], [50_000], without, repeats=2)
    assert row.sensitivity is not None
    with pytest.raises(ValueError, match="images, which episodes do not keep, expected demonstrations"):
        visited(dataclasses.replace(SPEC, observations={**SPEC.observations, "camera": (8, 8, 3)}), episodes)


def test_held_out_windows_are_whole():
    steps = np.arange(10.0, dtype=np.float32)[:, None].repeat(2, 1)
    windows = Windows(Episodes({"goal": steps, "action": steps}, np.array([10])), ("goal",), 2, 4, 3)
    probe = held_out(windows, 100)
    assert probe.actions[:, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert probe.actions[-1, :, 0].tolist() == [6, 7, 8, 9]


def test_the_paired_test_is_exact_on_successes():
    """McNemar: with b and c discordant pairs, twice the binomial tail of the smaller one."""
    for b, c in ((5, 0), (7, 2), (4, 4), (0, 0), (20, 6)):
        first = [1] * b + [0] * c + [1] * 30
        second = [0] * b + [1] * c + [1] * 30
        tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c)
        assert paired_test(first, second) == pytest.approx(min(1.0, 2 * tail), rel=0, abs=1e-9 if b + c < 15 else 0.004)
    with pytest.raises(ValueError, match="the same seeds in both"):
        paired_test([1], [1, 2])


def test_the_paired_test_is_wrong_as_rarely_as_it_says():
    rng = np.random.default_rng(0)
    found = [paired_test(rng.normal(0, 1, 25), rng.normal(0, 1, 25)) < 0.05 for _ in range(150)]
    assert np.mean(found) < 0.11
    assert paired_test(rng.normal(1, 0.5, 25), rng.normal(0, 0.5, 25)) < 0.01


def test_the_pareto_front_by_definition():
    rng = np.random.default_rng(0)
    for _ in range(30):
        costs, values = rng.integers(0, 6, (2, 12))
        beaten = {
            k
            for k in range(12)
            for j in range(12)
            if costs[j] <= costs[k] and values[j] >= values[k] and (costs[j] < costs[k] or values[j] > values[k])
        }
        front = pareto(costs, values)
        assert set(front) == set(range(12)) - beaten
        assert list(costs[front]) == sorted(costs[front])


def test_the_effect_of_noise_is_paired_over_twins():
    rng = np.random.default_rng(0)
    won = {name: tuple(bool(v) for v in rng.random(50) < 0.6) for name in "abcd"}
    rows = [row(name, won=values) for name, values in won.items()] + [row("c", won=won["c"], budget=5)]
    effect = noise_effect(rows, {"a": "b", "c": "d"})
    sde, ode = (np.mean([won[n] for n in names], axis=0) for names in ("ac", "bd"))
    assert effect == {2: rate_difference(sde, ode)}


def test_what_does_not_meet_the_constraints_is_excluded():
    slow, late = row("slow", 0.9, 500.0), row("late", 0.9, 60.0)
    drawn, fit = row("drawn", 0.9, deterministic=False), row("fit", 0.5, 10.0)
    constraints = Constraints(rate_hz=20, max_latency_ms=50, deterministic=True)
    found = advise([slow, late, drawn, fit], constraints)
    assert found.chosen is fit
    assert "keeps up with 16.0 Hz, 20 Hz were asked for (95 % of plans within 500.0 ms" in found.rejected[slow.label]
    assert found.rejected[late.label] == "95 % of plans within 60.0 ms, 50 ms were asked for"
    assert found.rejected[drawn.label] == "draws noise after the start, a deterministic plan was asked for"
    assert "leave out 3 of 4" in found.text
    assert "40.0 points less often" in found.text
    assert "a price of the constraints" in found.text
    assert "In code: use(fit)" in found.text
    assert found.text.startswith("Use fit with 2 evaluations: success on 50.0 % (40.4 to 59.6) of 100 episodes")


def test_of_those_that_cannot_be_told_apart_the_cheapest_is_preferred():
    best, cheap = row("best", 0.82, 40.0, evaluations=10.0), row("cheap", 0.80, 10.0, evaluations=2.0)
    poor = row("poor", 0.5, 4.0, evaluations=1.0)
    found = advise([best, cheap, poor])
    assert found.chosen is cheap
    assert "cannot tell the two apart" in found.text
    assert "2 evaluations of the network instead of 10" in found.text
    assert "2 of the 3 ways" in found.text
    assert "Telling 2 points apart would take about" in found.text
    assert "takes 10 evaluations instead of 2" in found.rejected[best.label]
    assert "30.0 points less often" not in found.rejected[poor.label]
    assert "32.0 points less often (−40.6 to −22.2, p = 0.001 or less) against the best" in found.rejected[poor.label]


def test_a_difference_of_rewards_alone_tells_apart():
    best = row("best", 0.8, evaluations=10.0, rewards=tuple(np.linspace(0.5, 1, 100)))
    cheap = row("cheap", 0.8, evaluations=1.0, rewards=tuple(np.linspace(0.5, 1, 100) - 0.02))
    found = advise([best, cheap])
    assert found.chosen is best
    assert found.rejected[cheap.label].startswith("mean reward −0.020")
    assert "Every other way that was measured did worse, told apart or by more than 5 points" in found.text


def test_few_discordant_episodes_do_not_tell_apart():
    """Four against none: the bootstrap interval leaves zero out, the exact test does not."""
    better, worse = row("better", 1.0, evaluations=9.0), row("worse", 0.96)
    assert paired_difference(worse.won, better.won).high < 0
    assert advise([better, worse]).chosen is worse


@pytest.mark.parametrize("episodes", [1, 2, 5])
def test_few_episodes_do_not_make_a_bad_one_as_good_as_the_best(episodes):
    """No test tells them apart, for five discordant pairs have p = 1/16."""
    good = row("good", won=(True,) * episodes, evaluations=10.0)
    bad = row("bad", won=(True,) * (episodes // 2) + (False,) * (episodes - episodes // 2), evaluations=1.0)
    dull = row("dull", won=good.won, evaluations=1.0, rewards=(0.9,) * episodes)
    found = advise([good, bad, dull])
    assert found.chosen is good
    assert f"{episodes} episodes are a first impression: repeat it with 100 or more" in found.text.split("\n\n")[0]
    assert "against the best, which so few episodes cannot tell from chance" in found.rejected[bad.label]
    assert found.rejected[dull.label].startswith("mean reward −0.100")
    assert "first impression" not in advise([row()]).text


def test_many_episodes_do_not_make_a_trifle_a_reason_for_fifty_evaluations():
    won = np.arange(20_000) < 16_000
    best = row("best-of-all", won=tuple(won), evaluations=50.0)
    near, far = (row(f"{n}", won=tuple(won & (np.arange(20_000) >= n)), evaluations=1.0) for n in (100, 300))
    found = advise([best, near])
    assert found.chosen is near
    assert "best-of-all" in found.text
    assert "a difference, but less than 1 point of success and 1% of the reward" in found.text
    assert "cannot tell" not in found.text
    assert advise([best, far]).chosen is best


@pytest.mark.parametrize(("b", "c"), [(0.0, 0.0), (0.02, 0.02), (0.1, 0.3), (0.4, 0.4)])
def test_intervals_of_paired_rates_hold_the_truth_as_often_as_they_say(b, c):
    n = 20
    counts = np.random.default_rng(0).multinomial(n, [b, c, 1 - b - c], 2000)
    found = [rate_difference([1] * i + [0] * (n - i), [0] * i + [1] * j + [0] * k) for i, j, k in counts]
    assert np.mean([low <= b - c <= high for _, low, high in found]) > 0.935
    assert all(high - low > 0.1 for _, low, high in found), "even where no seed differs"
    one, five = (rate_difference([1, 0, 1], [0, 0, 1], looks) for looks in (1, 5))
    assert one.value == five.value == pytest.approx(1 / 3)
    assert five.low < one.low


def test_a_plan_of_which_all_is_run_leaves_no_time_for_the_next(policy, probe):
    """While a plan of horizon 4 is made for d steps, d of its actions pass: what is left must be what is executed."""
    for execute, ahead in ((1, 1), (2, 2), (3, 1), (4, 1)):
        chosen = copy.copy(policy)
        chosen.spec = dataclasses.replace(SPEC, execute=execute)
        (found,) = compare(chosen, TASK, [Cell("", "ODE", DDIM(), 1)], [50_000], probe, repeats=2)
        assert found.rate_hz == ahead * found.replan_hz, execute


def test_at_equal_cost_the_better_one_is_preferred():
    a, b, twin = row("a", 0.80), row("b", 0.81, 12.0), row("twin", 0.81, 1.0)
    assert advise([a, b, twin]).chosen is b, "of equals the first, whatever the clock says"
    assert "at the same cost" in advise([a, b]).rejected[a.label]


def test_diverse_chooses_among_those_as_good_as_the_best():
    narrow, wide = row("narrow", 0.82, spread=1.0), row("wide", 0.8, evaluations=9.0, spread=3.0)
    poor = row("poor", 0.3, spread=9.0)
    found = advise([narrow, wide, poor], Constraints(diverse=True))
    assert found.chosen is wide
    assert "less diverse: spread 1.00 against 3.00" in found.rejected[narrow.label]
    assert advise([narrow, wide, poor]).chosen is narrow
    modes = [row("narrow", 0.82, mode_entropy=1.3), row("wide", 0.8, spread=3.0, mode_entropy=0.6)]
    found = advise(modes, Constraints(diverse=True))
    assert found.chosen is modes[0]
    assert "mode entropy 1.30 nats" in found.text


def test_spread_away_from_the_demonstrations_is_not_diversity():
    near, broken = row("near", 0.8, spread=1.0, energy=0.10), row("broken", 0.8, spread=3.0, energy=0.20)
    also = row("also", 0.8, spread=1.2, energy=0.105)
    found = advise([near, broken, also], Constraints(diverse=True))
    assert found.chosen is also
    assert "further from demonstrations" in found.rejected[broken.label]


def test_an_unsteady_clock_is_reported():
    text = advise([row(), row("b", ms=30)]).text
    assert "The clock was unsteady: plans of 2 evaluations took from 8.0 to 24.0 ms" in text
    assert "unsteady" not in advise([row(), row("b", ms=15)]).text


def test_where_nothing_fits_the_nearest_and_a_remedy_are_named():
    slow, slower = row("slow", 0.7, 60.0), row("slower", 0.9, 90.0)
    found = advise([slower, slow], Constraints(max_latency_ms=50))
    assert found.chosen is None
    assert set(found.rejected) == {slow.label, slower.label}
    assert "Slow with 2 evaluations comes nearest: it makes 95 % of plans within 60.0 ms, 50 ms were" in found.text
    assert "fewer evaluations, a warm start, a smaller network or a faster machine" in found.text
    drawn = advise([row("drawn", deterministic=False)], Constraints(deterministic=True))
    assert "What would help: an ODE sampler." in drawn.text
    with pytest.raises(ValueError, match="advise got no rows"):
        advise([])
    with pytest.raises(ValueError, match="rate_hz=0, expected a number above 0"):
        Constraints(rate_hz=0)


def test_without_a_difference_the_text_does_not_invent_one():
    lucky = row("a", evaluations=9.0, rewards=(1.0,) * 81 + (0.0,) * 19)
    text = advise([lucky, row("b")]).text
    assert "Use b" in text
    assert "succeeds as often (interval of the difference −1.9 to +1.9 points, p = 1.000)" in text
    assert "less often" not in text
    assert "about 600 episodes, four times out of five" in text, (
        "a hundred without a difference leave one of 3 % possible"
    )


def test_figures_draw_every_row():
    rows = [row(n, s, m, family=f) for n, s, m, f in (("a", 0.5, 2, "ODE"), ("b", 0.7, 4, "SDE"), ("c", 0.6, 8, "new"))]
    front = pareto_figure(rows, rows[1], 5.0).axes[0]
    (line,) = (x for x in front.get_lines() if x.get_label() == "nothing beats these")
    np.testing.assert_allclose(line.get_ydata(), [0.5, 0.7, 0.7])
    assert {t.get_text() for t in front.texts} == {"a 2", "b 2"}
    assert [a.get_title(loc="left") for a in families_figure(rows).axes] == ["ODE", "SDE", "new"]
    assert len(diversity_figure(rows).axes) == 1
    assert len(diversity_figure([dataclasses.replace(r, mode_entropy=1.0) for r in rows]).axes) == 2
    points = noise_figure({2: paired_difference(rows[1].won, rows[0].won)}).axes[0]
    assert [t.get_text() for t in points.texts] == ["+20.0"]


def test_the_page_holds_the_advice_and_every_row(tmp_path):
    rows = [row("a", 0.5, 2), row("b", 0.9, 4, family="SDE", deterministic=False), row("c", 0.88, 3, evaluations=1.0)]
    found, facts = advise(rows, Constraints(rate_hz=20)), {"observations": 9, "demonstrations": False}
    write_comparison(tmp_path / "p.html", "Title", rows, found, {}, facts, Constraints(rate_hz=20), "Footer.")
    page = (tmp_path / "p.html").read_text()
    assert "Use c with 2 evaluations" in page
    assert all(f"<td>{label}</td>" in page for label in found.rejected)
    assert "every step" in page


def test_a_long_table_is_folded_away(tmp_path):
    rows = [row(f"s{k}", 0.5) for k in range(20)]
    facts = {"observations": 9, "demonstrations": False}
    write_comparison(tmp_path / "p.html", "Title", rows, advise(rows), {}, facts, Constraints(), "Footer.")
    page = (tmp_path / "p.html").read_text()
    assert page.count("<details>") == page.count("</details>") == 3
    assert "<summary>All 20 rows</summary>" in page


RECIPE = """
import numpy as np
from poise import Episodes, PolicySpec, Recipe, Task, TrainingSpec


def read(path):
    rows = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    return Episodes({"position": rows, "goal": rows[::-1], "action": rows}, np.arange(6, 61, 6))


recipe = Recipe(
    PolicySpec({"position": (2,), "goal": (2,)}, 2, horizon=4, execute=2),
    TrainingSpec(),
    Task("poise.envs:poise/Navigate-v0", {"max_episode_steps": 6}, slots=2),
    read,
    validation=0.5,
)
"""


@pytest.fixture
def run(tmp_path):
    """Runs the verb on a small checkpoint."""
    (tmp_path / "recipe.py").write_text(RECIPE)
    small(0.1).save(tmp_path / "run", {})

    def started(*arguments: object) -> None:
        fixed = (tmp_path / "run", "--episodes", 2, "--seed", 50_000, "--evaluations", 2, *arguments)
        tyro.cli(compare_samplers, args=[str(a) for a in fixed])

    return started


def test_the_verb_ends_in_advice_and_measures_nothing_twice(run, tmp_path, capsys, monkeypatch):
    file, page, recipe = tmp_path / "r.json", tmp_path / "r.html", tmp_path / "recipe.py"
    options = ("--recipe", recipe, "--data", recipe, "--json", file, "--samplers")
    run(*options, "DDIM", "DDPM", "--html", page)
    out = capsys.readouterr().out
    results = json.loads(file.read_text())
    assert results["advice"]["text"] in out
    assert results["advice"]["text"].split("\n\n")[0] in page.read_text()
    assert [Row.of(r).label for r in results["rows"]] == ["DDIM with 2 evaluations", "DDPM with 2 evaluations"]
    assert results["rows"][0]["energy"] > 0
    assert set(results["facts"]) == {"observations", "demonstrations", "log_likelihood", "energy_floor"}
    assert list(results["noise_effect"]) == ["2"]

    asked = []

    def counted(policy, task, cells, *rest):
        asked.extend(cell.label for cell in cells)
        return compare(policy, task, cells, *rest)

    monkeypatch.setattr(sys.modules["poise.cli.compare"], "compare", counted)
    with monkeypatch.context() as patch:  # other constraints cost nothing: no episode, no likelihood
        patch.setattr(sys.modules["poise.cli.compare"], "_probe", None)
        run(*options, "DDIM", "DDPM", "--rate-hz", 1)
    again = json.loads(file.read_text())
    assert again["advice"] != results["advice"]
    assert (again["rows"], again["facts"]) == (results["rows"], results["facts"])
    run(*options, "DDIM", "DDPM", "UniPC", "--deterministic")
    again = json.loads(file.read_text())
    assert asked == ["UniPC with 2 evaluations"]
    assert again["rows"][:2] == results["rows"]
    assert again["advice"]["rejected"]["DDPM with 2 evaluations"].startswith("draws noise after the start")
    run(*options, "DDIM", "DDPM", "--diverse", "--max-latency-ms", 1e-6)
    again = json.loads(file.read_text())
    assert len(again["advice"]["rejected"]) == 2
    assert "1e-06 ms" in again["advice"]["rejected"]["DDIM with 2 evaluations"]
    assert again["constraints"]["diverse"]
    recipe.write_text(recipe.read_text().replace("6}, slots", "5}, slots"))  # another task under the same name
    capsys.readouterr()
    run(*options, "DDIM")
    assert "holds a comparison under other settings" in capsys.readouterr().out
    monkeypatch.setattr(sys.modules["poise.cli.compare"], "processor", lambda: "the robot's")
    run(*options, "DDIM")
    assert "holds a comparison under other settings" in capsys.readouterr().out, "its clock is another"
    assert asked[1:] == ["DDIM with 2 evaluations"] * 2


def test_the_verb_explains_what_it_cannot_do(run, tmp_path, capsys):
    environment = ("--environment", "poise.envs:poise/Navigate-v0")
    with pytest.raises(ValueError, match=r"got the samplers \['ddim'\], expected some of \['DDIM'"):
        run(*environment, "--samplers", "ddim")
    with pytest.raises(ValueError, match="got --data without a recipe"):
        run(*environment, "--data", tmp_path, "--samplers", "DDIM")
    in_units_of_the_data(Regression(SPEC)).save(tmp_path / "base", {})
    with pytest.raises(ValueError, match="holds a Regression, expected a DiffusionPolicy"):
        tyro.cli(compare_samplers, args=[str(tmp_path / "base"), *environment])
    with pytest.raises(SystemExit):
        tyro.cli(compare_samplers, args=["--help"])
    shown = capsys.readouterr().out
    for words in ("Ends in a recommendation", "--rate-hz", "--deterministic", "ODE-then-SDE", "Least control rate"):
        assert words in shown


CAMERA = """
import numpy as np
from poise import CNN, Crop, Episodes, Joint, MLP, PolicySpec, Recipe, SmallCNN, Task, TrainingSpec, Vector


def read(path):
    pictures = np.random.default_rng(0).integers(0, 255, (30, 8, 8, 3)).astype(np.uint8)
    rows = np.random.default_rng(1).normal(size=(30, 2)).astype(np.float32)
    return Episodes({"camera": pictures, "goal": rows, "action": rows}, np.arange(6, 31, 6))


def observe(raw):
    pictures = np.clip(10 * raw["position"][:, :, None, None] + 128, 0, 255).repeat(8, 2).repeat(3, 3)
    return {"camera": pictures.repeat(4, 1).astype(np.uint8)}  # the goal is optional, and not to be had


recipe = Recipe(
    PolicySpec(
        {"camera": (8, 8, 3), "goal": (2,)}, 2, optional={"goal": 0.5}, horizon=4, execute=2,
        encoder=Joint(CNN(SmallCNN((16,)), width=8), Vector()), augmentations=(Crop(("camera",), 6, 6),),
        network=MLP(16, 1, condition=8),
    ),
    TrainingSpec(),
    Task("poise.envs:poise/Navigate-v0", {"max_episode_steps": 6}, observe=observe, slots=2),
    read,
    validation=0.5,
)
"""


def test_the_verb_takes_policies_that_see_with_optional_goals_where_modes_are_known(tmp_path):
    (tmp_path / "recipe.py").write_text(CAMERA)
    recipe = load_recipe(tmp_path / "recipe.py")
    policy = DiffusionPolicy(recipe.policy)
    policy.fit(recipe.windows(recipe.read(None)))
    policy.save(tmp_path / "run", {})
    options = ("--episodes", 2, "--seed", 50_000, "--evaluations", 2, "--samplers", "DDIM", "warm-start")
    files = ("--recipe", tmp_path / "recipe.py", "--json", tmp_path / "r.json")
    arguments = [str(a) for a in (tmp_path / "run", *options, *files)]
    with pytest.raises(ValueError, match=r"sees \('camera',\), images, .* expected demonstrations"):
        tyro.cli(compare_samplers, args=arguments)
    tyro.cli(compare_samplers, args=[*arguments, "--data", str(tmp_path / "recipe.py")])
    results = json.loads((tmp_path / "r.json").read_text())
    assert all(r["mode_entropy"] is not None for r in results["rows"])
    assert all(r["spread"] > 0 and r["energy"] > 0 and r["sensitivity"] > 0 for r in results["rows"])
    assert results["facts"]["observations"] == 6


def test_the_lineup_has_every_kind():
    cells, notes = spendable(Tried().cells())
    assert not notes
    assert {cell.family for cell in cells} == {"ODE", "SDE", "hybrid", "warm start"}
    assert len({cell.label for cell in cells}) == len(cells) == 5 * 12 + 2
    assert set(TWINS) | set(TWINS.values()) <= set(LINEUP)
