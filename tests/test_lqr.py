"""The linear-quadratic anchor of Diffusion Policy, section 4.5: plan and denoiser against the closed form."""

import importlib.util
from pathlib import Path

import pytest
import torch

from poise.predictions import Epsilon
from poise.sampling import (
    DDIM,
    DDPM,
    RK4,
    AdaptiveDPMSolver,
    BogackiShampine,
    DormandPrince,
    DPMSolver,
    DPMSolverPP,
    DPMSolverPPSingle,
    DPMSolverSingle,
    Euler,
    Heun,
    Midpoint,
    Switch,
    UniformTime,
    UniPC,
    gaussian,
    sample,
    start,
)
from poise.schedules import VE, Karras, Rectified, VPCosine, VPLinear

FILE = Path(__file__).parents[1] / "benchmarks" / "lqr.py"


def load():
    spec = importlib.util.spec_from_file_location("lqr", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


lqr = load()
STATES = lqr.drawn(5, 0)
EXPONENTIAL = [
    DDIM(),
    DPMSolver(1),
    DPMSolver(2),
    DPMSolver(3),
    DPMSolverSingle(2),
    DPMSolverSingle(3),
    DPMSolverPP(1),
    DPMSolverPP(2),
    DPMSolverPP(3),
    DPMSolverPPSingle(2),
    DPMSolverPPSingle(3),
    UniPC(2),
    UniPC(3),
    Switch(DDIM(), DPMSolverPP()),
]
RUNGE_KUTTA = [Euler(), Midpoint(), Heun(), RK4(), BogackiShampine(), DormandPrince(), AdaptiveDPMSolver()]


def denoiser(schedule, states=STATES):
    """The published optimal noise predictor, in the form of every schedule, as a denoiser of whole plans.

    `eps* = (a - alpha (-K (A - B K)^k s)) / sigma`: the paper's own form has alpha = 1, that of DDPM a root.
    """
    target = lqr.plans(states)

    def denoise(x, t):
        level = schedule.at(t)
        eps = (x - level.alpha * target) / level.sigma
        return Epsilon().clean(schedule, x, eps, torch.full((len(x),), t, dtype=torch.float64))

    return denoise


def test_the_gain_solves_the_riccati_equation_and_the_plan_is_the_closed_loop():
    k = lqr.gain()
    closed, value = lqr.A - lqr.B @ k, torch.zeros(2, 2, dtype=torch.float64)
    cost, power = torch.eye(2, dtype=torch.float64) + 0.1 * k.T @ k, torch.eye(2, dtype=torch.float64)
    for _ in range(200):  # the cost of the closed loop, summed up
        value, power = value + power.T @ cost @ power, closed @ power
    best = torch.linalg.solve(0.1 + lqr.B.T @ value @ lqr.B, lqr.B.T @ value @ lqr.A)
    torch.testing.assert_close(k, best, rtol=1e-8, atol=0)
    torch.testing.assert_close(lqr.plans(STATES), lqr.simulate(STATES)[1], rtol=0, atol=1e-14)


def drawn_plan(sampler, schedule, steps, states=STATES):
    """The first and the last sample of a plan."""
    x = start(schedule, lqr.plans(states), gaussian(torch.Generator().manual_seed(0)))
    samplers = sampler.budget(steps * sampler.evaluations + sampler.extra)
    times = UniformTime().times(schedule, len(samplers))
    return x, sample(denoiser(schedule, states), schedule, samplers, times, x, gaussian(torch.Generator())).x


def check_exact(sampler, schedule):
    """A point mass keeps its noise along the flow, so the solution is known: plan and noise of the last level."""
    target, first, last = lqr.plans(STATES), schedule.at(1.0), schedule.at(0.0)
    for steps in (1, 5):
        x, found = drawn_plan(sampler, schedule, steps)
        eps = (x - first.alpha * target) / first.sigma
        torch.testing.assert_close(found, last.alpha * target + last.sigma * eps, rtol=0, atol=1e-8)


@pytest.mark.parametrize("schedule", [VPCosine(), VPLinear(), Rectified(), VE(), Karras()], ids=str)
@pytest.mark.parametrize("sampler", EXPONENTIAL, ids=str)
def test_exponential_samplers_are_exact_with_the_published_denoiser(sampler, schedule):
    check_exact(sampler, schedule)


@pytest.mark.parametrize("sampler", RUNGE_KUTTA, ids=str)
def test_runge_kutta_methods_are_exact_on_straight_lines(sampler):
    check_exact(sampler, Rectified())


@pytest.mark.parametrize("sampler", [DDIM(), DDPM(), DDIM(eta=1.0)], ids=str)
def test_what_is_left_without_noise_is_the_plan(sampler):
    """The last level has noise of 1e-7; also what DDPM adds on the way is gone there."""
    for steps in (1, 2, 10, 100):
        found = drawn_plan(sampler, Rectified(margin=1e-7), steps)[1]
        torch.testing.assert_close(found, lqr.plans(STATES), rtol=0, atol=2e-6)


def test_planning_anew_at_every_step_repeats_the_first_plan():
    states, schedule, done = STATES, Rectified(margin=1e-7), []
    for _ in range(lqr.HORIZON):
        done.append(drawn_plan(DDIM(), schedule, 5, states)[1][:, 0])
        states = states @ lqr.A.T + done[-1] @ lqr.B.T
    torch.testing.assert_close(torch.stack(done, 1), lqr.plans(STATES), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("prediction", "tolerance"), [("clean", 0.1), ("flow", 0.3)])
def test_a_policy_learns_the_regulator(prediction, tolerance):
    """A few hundred steps; `benchmarks/lqr.py` trains longer and its plans are within 2 %. Zeros would be off by 1."""
    policy = lqr.learned(prediction, steps=200, batch=64, rate=4e-3)
    assert lqr.plan_error(policy, 200) < tolerance
    denoised, _ = lqr.denoiser_errors(policy, 200)
    assert sum(denoised) / lqr.LEVELS < tolerance
    assert lqr.loop_error(policy, 50) < 2 * tolerance


@pytest.mark.parametrize("name", list(lqr.PREDICTIONS))
def test_the_outputs_error_is_told_in_the_predictions_own_units(name, monkeypatch):
    """A denoiser that is off by delta puts out `(a - b alpha / sigma) delta`: epsilon's worst level is nearest data."""
    policy, delta = lqr.learned(name, steps=1, batch=8, rate=1e-3), 1e-3
    states = lqr.drawn(100, 2)
    x0 = policy.action_normaliser(lqr.plans(states)).float()
    monkeypatch.setattr(lqr.DiffusionPolicy, "denoiser", lambda *_: lambda x, t: x0 + delta)
    denoised, outputs = lqr.denoiser_errors(policy, 100)
    size = x0.square().mean().sqrt().item()
    assert denoised == pytest.approx([delta / size] * lqr.LEVELS, rel=1e-3)
    for i, found in enumerate(outputs):
        t = torch.tensor((i + 0.5) / lqr.LEVELS, dtype=torch.float64)
        level = policy.spec.schedule.at(t.item())
        a, b = policy.spec.prediction.row(policy.spec.schedule, t)
        gap, exact = abs(a - b * level.alpha / level.sigma) * delta, torch.hypot(a * size, b)
        assert found == pytest.approx((gap / exact).item(), rel=0.1)  # normal noise of finite number in the exact size


def test_epsilon_begins_where_its_output_is_worth_a_plan():
    """Of the same weights: a share of the error, and with no clamp. What is published was not chosen on."""
    assert lqr.PREDICTIONS["epsilon"].begin == 0.95
    assert lqr.CHOOSING != lqr.PUBLISHED
    policy = lqr.learned("epsilon", steps=200, batch=64, rate=4e-3)
    assert policy.spec.bound is None
    by_begin = {row["begin"]: row["plan"] for row in lqr.choices(policy) if row["bound"] is None}
    assert by_begin[0.95] < by_begin[1.0] / 10
