"""Every solver against closed forms: its order, its papers' formulas, its budget, and its control of the error."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from poise.denoisers import Gaussian
from poise.dynamics import forward_sde, probability_flow
from poise.plain import concrete
from poise.policies import Consistency
from poise.sampling import (
    DDIM,
    DDPM,
    RK4,
    AdaptiveDPMSolver,
    AdaptiveSDE,
    BogackiShampine,
    Churn,
    DormandPrince,
    DPMSolver,
    DPMSolverPP,
    DPMSolverPPSingle,
    DPMSolverSingle,
    Euler,
    EulerMaruyama,
    ExponentialSDE,
    Heun,
    Midpoint,
    PredictorCorrector,
    Restart,
    Sampler,
    Switch,
    UniformLogSNR,
    UniformTime,
    UniPC,
    brownian,
    gaussian,
    sample,
    trace,
)
from poise.sampling.polynomials import exact_weights, moments
from poise.sampling.runge_kutta import moved, slopes
from poise.sampling.stochastic import _score_weight
from poise.sampling.unipc import _through
from poise.schedules import VE, Karras, Rectified, SubVP, Tabulated, VPCosine, VPLinear
from poise.testing import asymmetric_mixture, check_sampler, observed_order, strong_order, transport, weak_order

DOUBLE = torch.float64
COSINE, LINEAR, STRAIGHT, EXPLODING = VPCosine(), VPLinear(), Rectified(), VE()  # shared, as are their levels
ODE = [DDIM(), Euler(), Heun(), Midpoint(), RK4()] + [
    family(order)
    for family in (DPMSolver, DPMSolverPP, DPMSolverSingle, DPMSolverPPSingle, UniPC)
    for order in (1, 2, 3)
]
VARIANTS = [
    *[s for s in ODE if s not in (DDIM(), Euler(), Heun(), Midpoint(), RK4()) and s != type(s)()],
    *[DDIM(0.5), DDIM(1.0), DDPM(0.5), DDPM(1.0), EulerMaruyama(0.0)],
    *[DPMSolverPP(order, eta) for order in (1, 2, 3) for eta in (0.5, 1.0)],
    *[Switch(DPMSolverPP(eta=1.0), DPMSolverPP()), Switch(Heun(), DPMSolverPPSingle()), Restart(Heun(), repeats=2)],
    *[PredictorCorrector(Heun(), 2), PredictorCorrector(DDIM(1.0), 1, 0.1)],
    *[Churn(Midpoint()), Churn(DPMSolverPPSingle(), 0.5), Churn(DDIM(), 2.0, 0.1, 10.0)],
    AdaptiveDPMSolver(order=2),
]


@pytest.fixture(autouse=True)
def remember_all_levels(monkeypatch):
    """The grids of all these tests together are more levels than a schedule keeps."""
    monkeypatch.setattr("poise.schedules._CACHED_LEVELS", 10**6)


def name_of(value):
    return str(value) if isinstance(value, Sampler) else type(value).__name__


every_ode = pytest.mark.parametrize("sampler", ODE, ids=str)


# Consistency has the moments of the data for consistency functions only; its own law is in test_distillation.py.
OURS = [k for k in concrete(Sampler).values() if k.__module__.startswith("poise.") and k is not Consistency]


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_every_sampler_conforms(kind):
    check_sampler(kind(), COSINE)


@pytest.mark.parametrize("sampler", VARIANTS, ids=str)
def test_variants_conform(sampler):
    check_sampler(sampler, COSINE)


def test_euler_maruyama_conforms_where_it_is_not_stiff():
    """Near t = 1 of `VPCosine` the first of 250 strides overshoots, which half of the noise does not forget."""
    check_sampler(EulerMaruyama(0.5), LINEAR)


THEORY = [  # sampler, order, the coarser number of steps: asymptotic, and above rounding
    *[(DDIM(), 1, 200), (Euler(), 1, 200), (Heun(), 2, 100), (Midpoint(), 2, 50), (RK4(), 4, 40)],
    *[(family(k), k, 25) for family in (DPMSolverSingle, DPMSolverPPSingle) for k in (1, 2, 3)],
    *[(family(k), k, 200) for family in (DPMSolver, DPMSolverPP) for k in (1, 2)],
    *[(DPMSolver(3), 3, 400), (DPMSolverPP(3), 3, 200)],
    *[(UniPC(1), 2, 200), (UniPC(2), 3, 200), (UniPC(3), 4, 200)],
]


@pytest.mark.parametrize("schedule", [COSINE, LINEAR, STRAIGHT, EXPLODING], ids=name_of)
@pytest.mark.parametrize(("sampler", "order", "steps"), THEORY, ids=name_of)
def test_orders_of_the_theory(sampler, order, steps, schedule):
    targets = ["gaussian", "mixture"]
    if schedule == STRAIGHT and sampler in (Midpoint(), UniPC(3)):
        # There the midpoint rule gains an order by symmetry, and UniPC-3's error changes its sign near these steps.
        targets = ["mixture"]
    for target in targets:
        assert observed_order(sampler, schedule, target, steps) == pytest.approx(order, abs=0.2), target


@pytest.mark.parametrize("family", [DPMSolver, DPMSolverPP])
def test_from_a_cold_start_order_three_is_order_two(family):
    """The first step, without a past, errs by h squared; `observed_order` begins with short steps instead."""
    x, errors = torch.linspace(-1.5, 1.5, 7, dtype=DOUBLE)[:, None], []
    mixture = asymmetric_mixture(COSINE)
    exact = transport(mixture, x, 0.8, 0.2)
    for n in (400, 800):
        got = sample(mixture, COSINE, family(3), [0.8 - 0.6 * i / n for i in range(n + 1)], x).x
        errors.append((got - exact).abs().mean().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.2)


WEAK = [
    *[(sampler, 1) for sampler in (EulerMaruyama(), EulerMaruyama(0.5), ExponentialSDE(), DDIM(1.0), DDIM(0.5))],
    *[(sampler, 1) for sampler in (DDPM(0.0), DDPM(1.0), DPMSolverPP(1, 1.0))],
    *[(sampler, 2) for sampler in (DPMSolverPP(2, 1.0), DPMSolverPP(2, 0.5), Churn(Heun()))],
]


@pytest.mark.parametrize("schedule", [COSINE, LINEAR, STRAIGHT], ids=name_of)
@pytest.mark.parametrize(("sampler", "order"), WEAK, ids=name_of)
def test_weak_orders_by_the_exact_law_on_a_gaussian(sampler, order, schedule):
    assert weak_order(sampler, schedule, 50) == pytest.approx(order, abs=0.2)


def test_the_third_order_sde_solver_is_of_weak_order_two():
    for schedule in (COSINE, STRAIGHT):
        assert weak_order(DPMSolverPP(3, 1.0), schedule, 80) == pytest.approx(2, abs=0.2)


def moments_by_quadrature(sampler, mixture, steps):
    """Mean and variance at t = 0.2, from the exact density at t = 0.8, by the transitions of a one-step sampler."""
    grid = torch.linspace(-7, 7, 401, dtype=DOUBLE)[:, None]
    cell, times = (grid[1] - grid[0]).item(), [0.8 - 0.6 * i / steps for i in range(steps + 1)]
    density = mixture.log_prob(grid, 0.8).exp()
    for t, s in zip(times, times[1:], strict=False):
        mean, _ = sampler.step(mixture, mixture.schedule, grid, t, s, lambda x, t, s: torch.zeros_like(x))
        moved, _ = sampler.step(mixture, mixture.schedule, grid, t, s, lambda x, t, s: torch.ones_like(x))
        normal = torch.distributions.Normal(mean, moved - mean)
        density = cell * density @ normal.log_prob(grid.T).exp()  # rows: from, columns: to
    assert density.sum().item() * cell == pytest.approx(1, abs=1e-6)
    mean = (grid[:, 0] * density).sum() * cell
    return mean.item(), ((grid[:, 0] - mean).square() * density).sum().item() * cell


@pytest.mark.parametrize("sampler", [EulerMaruyama(), ExponentialSDE(), DDIM(1.0), DDPM(1.0)], ids=str)
def test_weak_order_on_a_mixture_by_quadrature(sampler):
    mixture, level = asymmetric_mixture(COSINE), COSINE.at(0.2)
    mean = (mixture.weights @ mixture.means).item()
    spread = (mixture.weights @ (mixture.means - mean).square()).item() + mixture.std**2
    exact = level.alpha * mean, level.alpha**2 * spread + level.sigma**2
    coarse, fine = (moments_by_quadrature(sampler, mixture, steps) for steps in (32, 64))
    for before, after, truth in zip(coarse, fine, exact, strict=True):
        assert math.log2((before - truth) / (after - truth)) == pytest.approx(1, abs=0.2)


STRONG = [EulerMaruyama(), ExponentialSDE(), DDIM(1.0), DDPM(0.0), DPMSolverPP(1, 1.0), DPMSolverPP(2, 1.0)]
_paths = {}


@pytest.mark.parametrize("sampler", STRONG, ids=str)
def test_strong_orders_on_brownian_paths(sampler, monkeypatch):
    """1, for the noise is additive; all of them on the same paths, which are drawn once."""
    monkeypatch.setattr("poise.testing.samplers.brownian", lambda seeds: _paths.setdefault(seeds, brownian(seeds)))
    assert strong_order(sampler, COSINE, 64, 256) == pytest.approx(1, abs=0.2)


def test_moments_of_the_exponential_integral():
    """Against Gauss and Legendre's rule of 80 nodes."""
    nodes, weights = np.polynomial.legendre.leggauss(80)
    u, weights = (nodes + 1) / 2, weights / 2
    for k in (-30, -3, -0.5, -0.051, -0.049, -1e-3, -1e-9, 1e-12, 1e-9, 1e-3, 0.049, 0.051, 0.5, 3, 30):
        for n, got in enumerate(moments(k, 4)):
            assert got == pytest.approx((weights * k * np.exp(-k * (1 - u)) * u**n).sum(), rel=1e-8), (k, n)


@pytest.mark.parametrize("k", [-4.0, -0.2, 0.01, 0.7, 5.0])
def test_exact_weights_integrate_every_polynomial_through_their_nodes(k):
    for nodes in ((0.0,), (0.0, -0.8), (0.0, 1 / 3, 2 / 3), (1.0, 0.0, -1.1, -2.5)):
        coefficients = [0.7, -1.3, 0.4, 2.0][: len(nodes)]
        values = [sum(c * u**n for n, c in enumerate(coefficients)) for u in nodes]
        integral = sum(c * i for c, i in zip(coefficients, moments(k, len(nodes)), strict=True))
        got = sum(w * v for w, v in zip(exact_weights(k, nodes), values, strict=True))
        assert got == pytest.approx(integral, rel=1e-9, abs=1e-12)


POINTS = torch.linspace(-1.5, 1.5, 5, dtype=DOUBLE)[:, None]


@pytest.mark.parametrize("schedule", [COSINE, LINEAR, STRAIGHT, EXPLODING], ids=name_of)
@pytest.mark.parametrize("family", [DPMSolver, DPMSolverPP, DPMSolverSingle, DPMSolverPPSingle])
def test_the_first_orders_are_ddim(family, schedule):
    mixture, times = asymmetric_mixture(schedule), UniformLogSNR().times(schedule, 7)
    ddim, other = (sample(mixture, schedule, sampler, times, POINTS).x for sampler in (DDIM(), family(1)))
    torch.testing.assert_close(other, ddim, rtol=1e-10, atol=1e-11)


def test_ddpm_is_ddim_with_all_of_its_noise():
    mixture, times = asymmetric_mixture(COSINE), UniformTime().times(COSINE, 7)
    results = [
        sample(mixture, COSINE, sampler, times, POINTS, gaussian(torch.Generator().manual_seed(0))).x
        for sampler in (DDIM(1.0), DDPM(0.0), DPMSolverPP(1, 1.0))
    ]
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(results[2], results[0], rtol=0, atol=1e-12)


def noise_form(schedule, x, order, t, s, r1, r2=2 / 3):
    """DPM-Solver-2 and -3 (Lu et al. 2022, arXiv 2206.00927, algorithms 1 and 2), written as there."""
    mixture, here, there = asymmetric_mixture(schedule), schedule.at(t), schedule.at(s)
    h = there.log_snr - here.log_snr

    def noise(x, level):
        return (x - level.alpha * mixture(x, level.t)) / level.sigma

    eps, first = noise(x, here), schedule.at_log_snr(here.log_snr + r1 * h)
    u = first.alpha / here.alpha * x - first.sigma * math.expm1(r1 * h) * eps
    if order == 2:
        change = (noise(u, first) - eps) / (2 * r1)
        return there.alpha / here.alpha * x - there.sigma * math.expm1(h) * (eps + change)
    second, d1 = schedule.at_log_snr(here.log_snr + r2 * h), noise(u, first) - eps
    u = second.alpha / here.alpha * x - second.sigma * math.expm1(r2 * h) * eps
    u = u - second.sigma * r2 / r1 * (math.expm1(r2 * h) / (r2 * h) - 1) * d1
    d2 = noise(u, second) - eps
    x = there.alpha / here.alpha * x - there.sigma * math.expm1(h) * eps
    return x - there.sigma / r2 * (math.expm1(h) / h - 1) * d2


@pytest.mark.parametrize("schedule", [COSINE, LINEAR, STRAIGHT, EXPLODING], ids=name_of)
@pytest.mark.parametrize(("t", "s"), [(0.8, 0.3), (0.5, 0.45)])
def test_singlestep_formulas_of_the_papers(schedule, t, s):
    mixture, here, there = asymmetric_mixture(schedule), schedule.at(t), schedule.at(s)
    for order, r1 in ((2, 1 / 2), (3, 1 / 3)):
        got = sample(mixture, schedule, DPMSolverSingle(order), [t, s], POINTS).x
        torch.testing.assert_close(got, noise_form(schedule, POINTS, order, t, s, r1), rtol=1e-10, atol=1e-10)
    # DPM-Solver++(2S), arXiv 2211.01095, algorithm 1, r = 1/2.
    h = there.log_snr - here.log_snr
    middle = schedule.at_log_snr(here.log_snr + h / 2)
    u = middle.sigma / here.sigma * POINTS - middle.alpha * math.expm1(-h / 2) * mixture(POINTS, t)
    expected = there.sigma / here.sigma * POINTS - there.alpha * math.expm1(-h) * mixture(u, middle.t)
    got = sample(mixture, schedule, DPMSolverPPSingle(2), [t, s], POINTS).x
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("schedule", [COSINE, STRAIGHT, EXPLODING], ids=name_of)
def test_multistep_formulas_of_the_papers(schedule):
    """DPM-Solver++(2M), its SDE form, and UniPC-1 with its corrector, for two unequal strides."""
    times, mixture = (0.8, 0.55, 0.4), asymmetric_mixture(schedule)
    first, here, there = (schedule.at(t) for t in times)
    before, h = here.log_snr - first.log_snr, there.log_snr - here.log_snr

    def ddim(x, x0, a, b):
        return b.sigma / a.sigma * x - b.alpha * math.expm1(a.log_snr - b.log_snr) * x0

    old = mixture(POINTS, 0.8)
    x = ddim(POINTS, old, first, here)
    new, r = mixture(x, 0.55), before / h
    d = (1 + 1 / (2 * r)) * new - 1 / (2 * r) * old
    got = sample(mixture, schedule, DPMSolverPP(), times, POINTS).x
    torch.testing.assert_close(got, ddim(x, d, here, there), rtol=1e-10, atol=1e-11)
    corrected = ddim(POINTS, (old + new) / 2, first, here)
    got = sample(mixture, schedule, UniPC(1), times, POINTS).x
    torch.testing.assert_close(got, ddim(corrected, new, here, there), rtol=1e-10, atol=1e-11)

    def sde(x, x0, a, b):
        h = b.log_snr - a.log_snr
        kept, std = b.sigma / a.sigma * math.exp(-h), b.sigma * math.sqrt(-math.expm1(-2 * h))
        return kept * x - b.alpha * math.expm1(-2 * h) * x0 + std

    x = sde(POINTS, old, first, here)
    new = mixture(x, 0.55)
    d = (1 + 1 / (2 * r)) * new - 1 / (2 * r) * old
    got = sample(mixture, schedule, DPMSolverPP(eta=1.0), times, POINTS, lambda x, t, s: torch.ones_like(x)).x
    torch.testing.assert_close(got, sde(x, d, here, there), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("family", [DPMSolverSingle, DPMSolverPPSingle])
def test_the_singlestep_budget_of_the_paper(family):
    """Lu et al. 2022, section 3.4: with K = n // 3 + 1, K - 2 thirds, then 2 and 1; K - 1, then 1; K - 1, then 2."""
    one, two, three = (family(order) for order in (1, 2, 3))
    for n in range(3, 21):
        k = n // 3 + 1
        expected = {0: (three,) * (k - 2) + (two, one), 1: (three,) * (k - 1) + (one,), 2: (three,) * (k - 1) + (two,)}
        assert three.budget(n) == expected[n % 3]
    assert (three.budget(1), three.budget(2)) == ((one,), (two,))
    assert (two.budget(4), two.budget(5)) == ((two, two), (two, two, one))


@pytest.mark.parametrize("solver", [DPMSolver, DPMSolverPP, UniPC])
@pytest.mark.parametrize("order", [2, 3])
def test_a_last_stride_far_beyond_the_values_is_of_order_one(solver, order):
    """As on a uniform grid of time: there the last step is that of the same solver without a past; elsewhere not."""
    denoise, x = asymmetric_mixture(COSINE), torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    for grid, alone in ((UniformTime(), True), (UniformLogSNR(), False)):
        *most, t, s = grid.times(COSINE, 5)
        memory, levels = None, [*most, t]
        for before, after in zip(levels, levels[1:], strict=False):
            x, memory = solver(order).step(denoise, COSINE, x, before, after, None, memory)
        if solver is UniPC:  # its corrector still goes through all values
            here = (denoise(x, t), COSINE.at(t))
            y = _through(memory.x, memory.past[0][1], here[1], (here, *memory.past)[: order + 1])
            expected = _through(y, here[1], COSINE.at(s), (here,))
        else:
            expected, _ = solver(1).step(denoise, COSINE, x, t, s, None)
        last, _ = solver(order).step(denoise, COSINE, x, t, s, None, memory)
        assert torch.allclose(last, expected, atol=1e-12, rtol=0) == alone


@pytest.mark.parametrize(
    "sampler", [s for s in (*ODE, *VARIANTS) if s.evaluations and not isinstance(s, Restart | PredictorCorrector)]
)
def test_every_budget_is_spent_to_the_last_evaluation(sampler):
    for n in range(1, 21):
        samplers = sampler.budget(n)
        times = UniformTime().times(COSINE, len(samplers))
        last = sample(asymmetric_mixture(COSINE), COSINE, samplers, times, POINTS, gaussian())
        assert (last.evaluations, last.t) == (n, 0.0)


def test_budgets_that_cannot_be_spent_are_explained():
    for sampler in ODE:
        with pytest.raises(ValueError, match=f"{type(sampler).__name__} got a budget of 0 evaluations, expected 0 and"):
            sampler.budget(0)
    with pytest.raises(
        ValueError, match="Restart got a budget of 3 evaluations, expected 3 and at least one step of 1"
    ):
        Restart().budget(3)
    assert Restart().budget(4) == (Restart(),)
    with pytest.raises(ValueError, match="budget of 9 evaluations, expected 4 and at least one step of 2, without a"):
        Restart(Heun(), steps=2).budget(9)
    assert len(Restart(Heun(), steps=2).budget(10)) == 3
    # Corrections come with a step: what is left of a budget is spent on plain steps.
    assert PredictorCorrector(DDIM(), 2).budget(8) == (*[PredictorCorrector(DDIM(), 2)] * 2, DDIM(), DDIM())
    assert DormandPrince().budget(7) == (DormandPrince(),)


SCHEDULES = [
    *[COSINE, LINEAR, STRAIGHT, EXPLODING, SubVP(), Karras()],
    *[Tabulated.linear(100, 1e-3, 0.2), Tabulated.squared_cosine(100), Tabulated.sigmoid(50, 1e-3, 0.3)],
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{type(s).__name__}{len(getattr(s, 'betas', ())) or ''}")
def test_every_solver_converges_on_every_schedule(schedule):
    """Over the whole way, to the exact flow of a Gaussian; in single precision, to what double precision gives."""
    mean, variance = torch.tensor([0.7, -0.2], dtype=DOUBLE), torch.tensor([0.2, 1.5], dtype=DOUBLE)
    denoise, level = Gaussian(schedule, mean, variance), schedule.at(1.0)
    unit = torch.tensor([[-1.5, 0.3], [0.2, 2.0], [1.0, -1.0]], dtype=DOUBLE)
    x = math.hypot(level.alpha, level.sigma) * unit
    exact = denoise.flow(x, 1.0, 0.0)
    coarse, fine = (UniformLogSNR().times(schedule, steps) for steps in (25, 50))
    for sampler in ODE:
        errors = [(sample(denoise, schedule, sampler, times, x).x - exact).abs().max() for times in (coarse, fine)]
        assert errors[1] < (1.0 if sampler.order == 1 else 0.08), sampler
        # A table has kinks, which cost order within the strides.
        assert errors[1] < errors[0] / 1.6 or errors[1] < 1e-3 or isinstance(schedule, Tabulated), sampler
        single = Gaussian(schedule, mean.float(), variance.float())
        got = sample(single, schedule, sampler, coarse, x.float()).x
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), sample(denoise, schedule, sampler, coarse, x).x, rtol=0, atol=5e-4)


@pytest.mark.parametrize("sampler", [*ODE, BogackiShampine(), AdaptiveDPMSolver()], ids=str)
def test_every_solver_takes_samples_of_any_shape(sampler):
    mean, variance = torch.linspace(-1, 1, 24, dtype=DOUBLE), torch.linspace(0.1, 2, 24, dtype=DOUBLE)
    x, times = torch.linspace(-2, 2, 72, dtype=DOUBLE).reshape(3, 24), UniformTime().times(COSINE, 4)
    flat = sample(Gaussian(COSINE, mean, variance), COSINE, sampler, times, x).x
    for shape in ((4, 6), (2, 3, 4), (24, 1)):
        denoise = Gaussian(COSINE, mean.reshape(shape), variance.reshape(shape))
        got = sample(denoise, COSINE, sampler, times, x.reshape(3, *shape)).x
        torch.testing.assert_close(got.reshape(3, 24), flat, rtol=1e-12, atol=1e-12)
    column = Gaussian(COSINE, mean[:1], variance[:1])
    expected = sample(column, COSINE, sampler, times, x[:, :1]).x
    got = sample(Gaussian(COSINE, mean[0], variance[0]), COSINE, sampler, times, x[:, 0]).x
    torch.testing.assert_close(got, expected[:, 0], rtol=1e-12, atol=1e-12)


class Counted:
    """A denoiser that counts its calls."""

    def __init__(self, denoise):
        self.denoise, self.calls = denoise, 0

    def __call__(self, x, t):
        self.calls += 1
        return self.denoise(x, t)


@pytest.mark.parametrize("kind", [BogackiShampine, DormandPrince, AdaptiveDPMSolver])
@pytest.mark.parametrize(("begin", "end"), [(0.9, 0.1), (0.1, 0.9)], ids=["down", "up"])
def test_the_error_follows_the_tolerance(kind, begin, end):
    mixture, errors = asymmetric_mixture(COSINE), []
    exact = transport(mixture, POINTS, begin, end)
    for tolerance in (1e-3, 1e-5, 1e-7):
        *_, last = kind(tolerance, tolerance).steps(mixture, COSINE, POINTS, begin, end, gaussian())
        assert last.position == (end if kind is not AdaptiveDPMSolver else COSINE.at(end).log_snr)
        errors.append((last.x - exact).abs().max().item())
        assert errors[-1] < 20 * tolerance
    assert errors[0] > 5 * errors[1] > 25 * errors[2]


@pytest.mark.parametrize(
    ("sampler", "once", "accepted", "rejected"),
    [  # evaluations at the begin, and of every try; a pair whose last stage is the next one's first needs one less
        (BogackiShampine(1e-7, 1e-7), 1, 3, 3),
        (DormandPrince(1e-11, 1e-11), 1, 6, 6),
        (AdaptiveDPMSolver(1e-8, 1e-8), 0, 3, 2),
        (AdaptiveDPMSolver(1e-5, 1e-5, order=2), 0, 2, 1),
        (AdaptiveSDE(1e-2, 1e-2), 0, 2, 1),
    ],
    ids=str,
)
def test_rejected_steps_are_counted(sampler, once, accepted, rejected):
    denoise = Counted(asymmetric_mixture(COSINE))
    steps = list(sampler.steps(denoise, COSINE, POINTS, 0.9, 0.1, gaussian(torch.Generator().manual_seed(0))))
    assert steps[-1].rejected > 0
    assert [s.rejected for s in steps] == sorted(s.rejected for s in steps)
    assert denoise.calls == once + accepted * len(steps) + rejected * steps[-1].rejected
    noise = gaussian(torch.Generator().manual_seed(0))
    last = sample(asymmetric_mixture(COSINE), COSINE, sampler, [0.9, 0.1], POINTS, noise)
    assert last.evaluations == denoise.calls
    assert torch.equal(last.x, steps[-1].x)


@pytest.mark.parametrize(("pair", "steps"), [(BogackiShampine(), 40), (DormandPrince(), 25)], ids=str)
def test_both_methods_of_a_pair_have_their_order(pair, steps):
    mixture = asymmetric_mixture(COSINE)
    velocity, exact = probability_flow(mixture, COSINE), transport(mixture, POINTS, 0.8, 0.2)
    lower = tuple(b - e for b, e in zip(pair.tableau.b, pair.tableau.error, strict=True))
    for weights, order in ((pair.tableau.b, pair.order), (lower, pair.order - 1)):
        errors = []
        for n in (steps, 2 * steps):
            x, times = POINTS, [0.8 - 0.6 * i / n for i in range(n + 1)]
            for t, s in zip(times, times[1:], strict=False):
                x = moved(x, s - t, weights, slopes(pair.tableau, velocity, x, t, s, velocity(x, t)))
            errors.append((x - exact).abs().mean().item())
        assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize("sampler", [BogackiShampine(), DormandPrince(), AdaptiveDPMSolver(), AdaptiveSDE()], ids=str)
def test_an_adaptive_solver_gives_up_on_what_is_not_finite(sampler):
    mixture = asymmetric_mixture(COSINE)

    def denoise(x, t):
        return mixture(x, t) if t > 0.5 else torch.full_like(x, torch.nan)

    with pytest.raises(ValueError, match=r"stride fell to .* with rtol=.* expected a smooth and finite denoiser"):
        sample(denoise, COSINE, sampler, [1.0, 0.0], POINTS)


def test_adaptive_solvers_explain_their_parameters():
    for kind in (BogackiShampine, DormandPrince, AdaptiveDPMSolver, AdaptiveSDE):
        with pytest.raises(ValueError, match=f"{kind.__name__} got rtol=0, atol=.* expected both above zero"):
            kind(rtol=0)
    with pytest.raises(ValueError, match="AdaptiveDPMSolver got order=1, expected 2 or 3"):
        AdaptiveDPMSolver(order=1)


def test_the_adaptive_sde_has_the_moments_of_the_data():
    denoise, count = Gaussian(LINEAR, torch.tensor([0.4], dtype=DOUBLE), torch.tensor([0.3], dtype=DOUBLE)), 4000
    noise = gaussian(torch.Generator().manual_seed(0))
    x = noise(torch.empty(count, 1, dtype=DOUBLE), 1.0, 1.0)
    # Brownian noise is not needed: few steps are rejected.
    got = sample(denoise, LINEAR, AdaptiveSDE(), [1.0, 0.0], x, noise).x
    variance = 0.3 * LINEAR.at(0.0).alpha ** 2 + LINEAR.at(0.0).sigma ** 2
    assert got.mean().item() == pytest.approx(0.4, abs=5 * math.sqrt(variance / count) + 0.005)
    assert got.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / count) + 0.02)


def test_the_adaptive_sde_follows_its_brownian_path():
    mixture, x = asymmetric_mixture(COSINE), torch.linspace(-1.5, 1.5, 16, dtype=DOUBLE)[:, None]
    noise = brownian(range(16))
    fine = sample(mixture, COSINE, EulerMaruyama(), [0.8 - 0.6 * i / 512 for i in range(513)], x, noise).x
    distances = []
    for tolerance in (3e-2, 3e-3):
        got = sample(mixture, COSINE, AdaptiveSDE(tolerance, tolerance), [0.8, 0.2], x, noise).x
        distances.append((got - fine).abs().max().item())
    assert distances[0] < 0.2
    assert distances[1] < distances[0] / 3
    other = sample(mixture, COSINE, AdaptiveSDE(3e-3, 3e-3), [0.8, 0.2], x, brownian(range(16, 32))).x
    assert (other - fine).abs().max() > 0.5


@pytest.mark.parametrize(("t", "s"), [(0.9, 0.1), (0.5, 0.49), (1.0, 0.0)])
def test_the_weight_of_a_constant_score(t, s):
    for schedule in (LINEAR, COSINE, Tabulated.squared_cosine(50)):
        ratio = schedule.at(s).alpha / schedule.at(t).alpha
        closed = 2 * (ratio - 1)
        assert _score_weight(schedule, t, s) == pytest.approx(closed, rel=1e-12 if t < 1 else 1e-7)
    for schedule in (STRAIGHT, SubVP(), EXPLODING, Karras()):
        if t == 1 and schedule != EXPLODING:
            continue  # a rule of equal strides needs too many of them
        # alpha_s times the integral of g squared over alpha, by Simpson's rule in log-SNR.
        first, last = (schedule.at(time).log_snr for time in (t, s))
        log_snr = torch.linspace(first, last, 20_001, dtype=DOUBLE)
        levels = [schedule.at(time) for time in schedule.time(log_snr[:: 20_000 // 2]).tolist()]
        alpha = schedule.alpha(schedule.time(log_snr))
        values = 2 * (alpha * torch.exp(-log_snr)).square() / alpha  # g^2 dt = -2 sigma^2 d log-SNR
        weights = torch.full_like(values, 2.0)
        weights[1::2], weights[0], weights[-1] = 4.0, 1.0, 1.0
        integral = (values * weights).sum().item() * (last - first) / 20_000 / 3
        assert _score_weight(schedule, t, s) == pytest.approx(schedule.at(s).alpha * integral, rel=1e-5)
        middle = levels[1]
        rate = -2 * middle.sigma**2 * (middle.alpha_rate / middle.alpha - middle.sigma_rate / middle.sigma)
        assert forward_sde(schedule)[1](middle.t) ** 2 == pytest.approx(rate, rel=1e-9)


@dataclass(frozen=True)
class _Ends:
    """What every sampler must do with a last step to a level without noise."""

    sampler: Sampler
    deterministic: bool = True


ENDS = [
    *[_Ends(sampler) for sampler in ODE if sampler not in (Euler(), Heun(), Midpoint(), RK4())],
    *[_Ends(s) for s in (DDIM(1.0), DDPM(), DPMSolverPP(1, 1.0), DPMSolverPP(2, 1.0), DPMSolverPP(3, 0.5))],
    *[_Ends(s, deterministic=False) for s in (DDPM(1.0), ExponentialSDE())],  # their last step draws noise
]


@pytest.mark.parametrize("end", ENDS, ids=lambda end: str(end.sampler))
def test_exponential_samplers_step_to_a_level_without_noise(end):
    schedule = VPLinear(t_min=0.0)
    mixture, noise = asymmetric_mixture(schedule), gaussian(torch.Generator().manual_seed(0))
    times = [1.0, 0.6, 0.3, 0.0]
    *_, before, last = trace(mixture, schedule, end.sampler, times, POINTS, noise)
    assert torch.isfinite(last.x).all()
    if end.deterministic and not isinstance(end.sampler, UniPC):
        torch.testing.assert_close(last.x, mixture(before.x, 0.3), rtol=0, atol=1e-9)


def test_orders_and_shares_out_of_range_are_explained():
    for family in (DPMSolver, DPMSolverPP, DPMSolverSingle, DPMSolverPPSingle, UniPC):
        for order in (0, 4):
            with pytest.raises(ValueError, match=f"{family.__name__} got order={order}, expected 1, 2 or 3"):
                family(order)
    for build, message in (
        (lambda: DDIM(-0.1), r"DDIM got eta=-0.1, expected a value from 0"),
        (lambda: DDPM(1.5), r"DDPM got upper=1.5, expected a value from 0"),
        (lambda: DPMSolverPP(eta=-1), r"DPMSolverPP got eta=-1, expected 0 \(the ODE\) or more"),
        (lambda: EulerMaruyama(math.nan), r"EulerMaruyama got eta=nan, expected 0 \(the ODE\) or more"),
        (lambda: Churn(churn=-1), r"Churn got churn=-1, expected 0 \(none\) or more"),
        (
            lambda: sample(asymmetric_mixture(COSINE), COSINE, Churn(DPMSolverPP()), [1.0, 0.5, 0.0], torch.ones(1, 1)),
            r"Churn got DPMSolverPP.*, expected a sampler that remembers nothing, such as Heun\(\)",
        ),
        (
            lambda: sample(
                asymmetric_mixture(VPLinear(t_min=0.0)),
                VPLinear(t_min=0.0),
                AdaptiveDPMSolver(),
                [1.0, 0.0],
                torch.ones(1, 1),
            ),
            "AdaptiveDPMSolver got VPLinear.*, expected noise at both ends: raise its margin or t_min",
        ),
        (lambda: PredictorCorrector(corrections=0), r"corrections=0 and snr=0.16, expected at least one correction"),
        (lambda: PredictorCorrector(snr=0), r"corrections=1 and snr=0, expected at least one correction"),
    ):
        with pytest.raises(ValueError, match=message):
            build()
