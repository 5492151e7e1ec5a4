import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from poise.denoisers import Gaussian
from poise.guidance import clipped
from poise.plain import concrete
from poise.sampling import (
    DDIM,
    RK4,
    Churn,
    DPMSolverPP,
    DPMSolverPPSingle,
    Euler,
    Grid,
    Heun,
    KarrasGrid,
    Listed,
    Midpoint,
    Quadratic,
    Sampler,
    Trailing,
    UniformLogSNR,
    UniformTime,
    UniPC,
    gaussian,
    gaussian_law,
    optimised,
    per_sample,
    sample,
    start,
    trace,
)
from poise.schedules import VE, Karras, Rectified, Tabulated, VPCosine, VPLinear
from poise.testing import asymmetric_mixture, transport

SCHEDULES = [VPLinear(), VPCosine(), Rectified(), Tabulated.squared_cosine(100)]


def test_euler_on_straight_lines_is_ddim():
    schedule, x = Rectified(), torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    denoise, times = asymmetric_mixture(schedule), UniformTime().times(schedule, 7)
    ddim, euler = (sample(denoise, schedule, sampler, times, x).x for sampler in (DDIM(), Euler()))
    torch.testing.assert_close(ddim, euler, rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_ancestral_step_draws_from_the_posterior(schedule):
    """One step at eta = 1 has the mean and variance of q(x_s | x_t, x0), Ho et al. 2020, equations 6 and 7."""
    t, s, x0, x_t = 0.7, 0.4, 0.8, -0.3
    here, there = schedule.at(t), schedule.at(s)
    ratio = here.alpha / there.alpha  # of the chain from s to t
    step_variance = here.sigma**2 - ratio**2 * there.sigma**2
    mean = (ratio * there.sigma**2 * x_t + there.alpha * step_variance * x0) / here.sigma**2
    variance = there.sigma**2 * step_variance / here.sigma**2
    x = torch.full((2, 1), x_t, dtype=torch.float64)
    noise = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    got, _ = DDIM(eta=1.0).step(lambda x, t: torch.full_like(x, x0), schedule, x, t, s, lambda x, t, s: noise)
    assert got[0].item() == pytest.approx(mean, rel=1e-9)
    assert (got[1] - got[0]).item() == pytest.approx(math.sqrt(variance), rel=1e-9)


@pytest.mark.parametrize("sampler", [DDIM(), DPMSolverPP(), Heun(), Euler()], ids=str)
def test_the_whole_chain_converges_to_the_ode(sampler):
    schedule = VPCosine()
    mixture, x = asymmetric_mixture(schedule), torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    got = sample(mixture, schedule, sampler, UniformTime().times(schedule, 2000), x).x
    torch.testing.assert_close(got, transport(mixture, x, 1.0, 0.0), rtol=0, atol=5e-3)


def test_lqr_plan_is_recovered_by_every_exponential_integrator():
    """Chi et al. 2023, section 4.5: a constant denoiser, as that of a linear regulator, is integrated exactly."""
    a, b, k = 0.95, 0.2, 0.6
    state = torch.tensor([[1.3], [-0.4]], dtype=torch.float64)
    plan = -k * (a - b * k) ** torch.arange(16, dtype=torch.float64) * state
    schedule = Tabulated.squared_cosine(100)
    for sampler in (DDIM(), DDIM(eta=0.5), DDIM(eta=1.0), DPMSolverPP()):
        for evaluations in (2, 10, 100):
            samplers = sampler.budget(evaluations)
            x = start(schedule, plan, gaussian(torch.Generator().manual_seed(0)))
            times = UniformTime().times(schedule, len(samplers))
            got = sample(lambda x, t: plan, schedule, samplers, times, x).x
            # What remains is the noise of t = 0.
            assert (got - plan).abs().max() < 5 * schedule.sigma_min


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("grid", [UniformTime(), UniformLogSNR(), Trailing(100)], ids=str)
def test_grids_decrease_from_one_to_zero(grid, schedule):
    for steps in (1, 2, 7, 100):
        times = grid.times(schedule, steps)
        assert len(times) == steps + 1
        assert (times[0], times[-1]) == (1.0, 0.0)
        assert all(t > s for t, s in zip(times, times[1:], strict=False))


def test_uniform_log_snr_has_equal_strides():
    schedule = VPLinear()
    levels = [schedule.at(t).log_snr for t in UniformLogSNR().times(schedule, 9)]
    strides = [b - a for a, b in zip(levels, levels[1:], strict=False)]
    assert max(strides) - min(strides) < 1e-9


def test_trailing_visits_the_published_indices():
    """Lin et al. 2023: round(T - i T / N) - 1; 10 of 100 steps start at 99, where diffusers' `leading` starts at 90."""
    times = Trailing(100).times(Tabulated.squared_cosine(100), 10)
    assert [round(100 * t) - 1 for t in times[:-1]] == [99, 89, 79, 69, 59, 49, 39, 29, 19, 9]
    seven = Trailing(100).times(Tabulated.squared_cosine(100), 7)
    assert [round(100 * t) - 1 for t in seven[:-1]] == [99, 85, 70, 56, 42, 28, 13]


def test_budgets_of_heun_and_rk4_end_where_the_velocity_is_known():
    assert Heun().budget(5) == (Heun(), Heun(), Euler())
    assert Heun().budget(1) == (Euler(),)
    assert Heun().budget(6) == (Heun(), Heun(), Midpoint())
    assert RK4().budget(8) == (RK4(), Midpoint(), Midpoint())
    assert RK4().budget(7) == (RK4(), Midpoint(), Euler())
    schedule, x = VPCosine(), torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]

    def erring(x, t):
        return asymmetric_mixture(schedule)(x, t) + 0.02 * torch.sin(40 * x)

    def end(samplers):
        return sample(erring, schedule, samplers, UniformTime().times(schedule, len(samplers)), x).x

    exact = end([DDIM()] * 2000)
    for sampler in (Heun(), RK4()):
        for evaluations in range(12, 17):
            assert (end(sampler.budget(evaluations)) - exact).abs().max() < 0.2, (sampler, evaluations)
        assert not (end([sampler] * (12 // sampler.evaluations)) - exact).abs().max() < 1


def test_a_multistep_method_forgets_at_a_change_of_sampler():
    schedule = VPCosine()
    denoise, x = asymmetric_mixture(schedule), torch.ones(1, 1, dtype=torch.float64)
    times = [0.9, 0.7, 0.5, 0.3]
    mixed = sample(denoise, schedule, [DPMSolverPP(), DDIM(), DPMSolverPP()], times, x).x
    half = sample(denoise, schedule, [DPMSolverPP(), DDIM()], times[:3], x).x
    fresh = sample(denoise, schedule, DPMSolverPP(), times[2:], half).x
    assert torch.equal(mixed, fresh)


def test_start_has_the_variance_of_the_last_level():
    for schedule in SCHEDULES:
        level = schedule.at(1.0)
        x = start(schedule, torch.empty(50_000), gaussian(torch.Generator().manual_seed(0)))
        assert x.var().item() == pytest.approx(level.alpha**2 + level.sigma**2, rel=0.03)


def test_noise_of_a_sample_depends_on_its_own_seed_alone():
    one = per_sample([7])(torch.empty(1, 3), 1.0, 1.0)
    many = per_sample([5, 7, 9])(torch.empty(3, 3), 1.0, 1.0)
    assert torch.equal(one[0], many[1])
    source = per_sample([1])
    assert not torch.equal(source(torch.empty(1, 3), 1.0, 1.0), source(torch.empty(1, 3), 1.0, 1.0))
    with pytest.raises(ValueError, match="batch of 2 for 1 sources of noise"):
        source(torch.empty(2, 3), 1.0, 1.0)


def test_clipped_bounds_the_prediction_and_leaves_what_is_inside():
    schedule = VPCosine()
    denoise = Gaussian(schedule, torch.zeros(1), torch.ones(1))
    x = torch.tensor([[-9.0], [0.2], [9.0]])
    bounded = clipped(denoise, -1, 1)(x, 0.3)
    assert bounded[[0, 2]].flatten().tolist() == [-1, 1]
    assert torch.equal(bounded[1], denoise(x, 0.3)[1])


def test_bad_arguments_are_explained():
    schedule, x = VPCosine(), torch.zeros(1, 1)
    denoise = Gaussian(schedule, torch.zeros(1), torch.ones(1))
    with pytest.raises(ValueError, match=r"got times \[0.5, 0.5\], expected at least two that decrease"):
        list(trace(denoise, schedule, DDIM(), [0.5, 0.5], x))
    with pytest.raises(ValueError, match="1 samplers for 2 steps"):
        list(trace(denoise, schedule, [DDIM()], [1.0, 0.5, 0.0], x))
    with pytest.raises(ValueError, match="eta=2, expected a value from 0"):
        DDIM(eta=2)
    with pytest.raises(ValueError, match="budget of 0 evaluations"):
        Heun().budget(0)
    with pytest.raises(ValueError, match="0 steps from t = 1.0, expected at least 1"):
        UniformTime().times(schedule, 0)
    with pytest.raises(ValueError, match="200 steps, expected at most the 100 trained"):
        Trailing(100).times(schedule, 200)


class Watched(torch.Tensor):
    """A sample that no one may look at: a device would have to be waited for."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", str(func))
        if name in {"item", "tolist", "numpy", "cpu", "nonzero", "is_nonzero", "equal", "allclose", "unique"} or (
            name in {"__bool__", "__float__", "__int__", "__index__", "__contains__", "masked_select"}
        ):
            raise AssertionError(f"{name} waits for the device")
        return super().__torch_function__(func, types, args, kwargs or {})


@dataclass(frozen=True)
class _Looks(Sampler):  # the underscore keeps it out of `concrete(Sampler)`
    how: Callable
    order = 1
    evaluations = 1

    def step(self, denoise, schedule, x, t, s, noise, memory=None):
        self.how(x)
        return DDIM().step(denoise, schedule, x, t, s, noise)


def watched_trace(sampler):
    schedule, x = VPCosine(), torch.linspace(-1, 1, 4, dtype=torch.float64)[:, None]
    times = UniformTime().times(schedule, 6)
    return trace(asymmetric_mixture(schedule), schedule, sampler, times, x.as_subclass(Watched), gaussian())


FIXED = [sampler for kind in concrete(Sampler).values() if (sampler := kind()).evaluations]


@pytest.mark.parametrize(
    "sampler", [*FIXED, DPMSolverPP(3, 1.0), DPMSolverPPSingle(3), UniPC(3), Churn(Heun())], ids=str
)
def test_nothing_waits_for_the_device_between_steps(sampler):
    states = watched_trace(sampler)
    for _ in range(6):
        assert isinstance(next(states).x, Watched)
    with pytest.raises(AssertionError, match="waits for the device"):
        next(states)  # the one look, after the last step


@pytest.mark.parametrize(
    "how", [lambda x: x.sum().item(), lambda x: float(x.mean()), lambda x: bool(x.max() > 0), lambda x: x.tolist()]
)
def test_a_sampler_that_waits_for_the_device_is_noticed(how):
    with pytest.raises(AssertionError, match="waits for the device"):
        next(watched_trace(_Looks(how)))


def test_predictions_that_are_not_finite_are_named():
    schedule, x = VPCosine(), torch.ones(2, 1, dtype=torch.float64)
    mixture, times = asymmetric_mixture(schedule), [1.0, 0.7, 0.4, 0.1]
    for bad in (torch.nan, torch.inf):
        states = trace(lambda x, t, bad=bad: mixture(x, t) if t > 0.5 else x * bad, schedule, DDIM(), times, x)
        assert [next(states).t for _ in range(3)] == times[1:]
        level = re.escape(f"{schedule.at(0.4).log_snr:.4g}")
        with pytest.raises(ValueError, match=rf"NaN or infinity at step 3, t = 0.4, log-SNR {level}, expected finite"):
            next(states)
    one = torch.tensor([[torch.nan], [1.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match="at step 1, t = 1, .* and that the first sample was finite"):
        sample(mixture, schedule, DDIM(), times, one)


def test_predictions_of_another_shape_are_explained():
    schedule, x = VPCosine(), torch.ones(3, 1)
    for shape in ((1, 1), (3,), (3, 3), ()):  # all of which broadcast
        message = f"returned the shape {shape} for samples of shape (3, 1), expected the same"
        with pytest.raises(ValueError, match=re.escape(message)):
            sample(lambda x, t, shape=shape: torch.zeros(shape), schedule, DDIM(), [1.0, 0.0], x)


def test_times_that_do_not_decrease_are_explained():
    schedule, x = VPCosine(), torch.zeros(1, 1)
    for times in ([0.2, 0.5], [1.0], [1.0, 0.5, 0.5, 0.0]):
        with pytest.raises(ValueError, match=r"got times \[.*\], expected at least two that decrease, such as"):
            list(trace(asymmetric_mixture(schedule), schedule, DDIM(), times, x))


def test_the_karras_grid_is_equation_five():
    schedule, n, rho = Karras(), 10, 7
    low, high = 0.002 ** (1 / rho), 80.0 ** (1 / rho)
    expected = [(high + i / n * (low - high)) ** rho for i in range(n + 1)]
    got = [schedule.at(t).sigma for t in KarrasGrid().times(schedule, n)]
    assert got == pytest.approx(expected, rel=1e-9)
    assert [schedule.at(t).sigma for t in UniformTime().times(schedule, n)] == pytest.approx(expected, rel=1e-9)
    # On another schedule in sigma / alpha, the level of noise after scaling the signal to one.
    levels = [schedule.at(t) for schedule in [VPLinear()] for t in KarrasGrid(3.0).times(schedule, 9)]
    roots = [(level.sigma / level.alpha) ** (1 / 3) for level in levels]
    strides = [a - b for a, b in zip(roots, roots[1:], strict=False)]
    assert strides == pytest.approx([strides[0]] * 9, rel=1e-6)
    with pytest.raises(ValueError, match="KarrasGrid got rho=0, expected a value above zero, such as 7"):
        KarrasGrid(0)


def test_the_quadratic_grid():
    assert Quadratic().times(VPCosine(), 4) == pytest.approx([1.0, 9 / 16, 4 / 16, 1 / 16, 0.0])
    assert Quadratic().times(VPCosine(), 2, begin=0.64) == pytest.approx([0.64, 0.16, 0.0])


@pytest.mark.parametrize("schedule", [*SCHEDULES, VE(), Karras()], ids=lambda s: type(s).__name__)
def test_every_grid_begins_where_it_is_told(schedule):
    """By default at t = 1: pure noise at a level that is not noise would be the published flaw (Lin et al. 2023)."""
    for kind in set(concrete(Grid).values()) - {Listed}:
        for begin in (1.0, 0.5):
            times = kind().times(schedule, 8, begin)
            assert len(times) == 9
            assert (times[0], times[-1]) == (begin, 0.0)
            assert all(t > s for t, s in zip(times, times[1:], strict=False))
        assert kind().times(schedule, 8)[0] == 1.0
        for bad in (0.0, 1.1, -0.5):
            with pytest.raises(ValueError, match=f"{kind.__name__} got 8 steps from t = {bad}, expected at least 1"):
                kind().times(schedule, 8, bad)
    assert UniformTime().times(schedule, 5, begin=0.5) == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1, 0.0])


def test_listed_grids():
    grid = Listed(((1.0, 0.0), (1.0, 0.4, 0.1, 0.0)))
    assert grid.times(VPCosine(), 3) == [1.0, 0.4, 0.1, 0.0]
    assert grid.times(VPCosine(), 1) == [1.0, 0.0]
    with pytest.raises(ValueError, match=r"Listed got 2 steps from t = 1.0, expected 1.0 and one of \[1, 3\] steps"):
        grid.times(VPCosine(), 2)
    with pytest.raises(ValueError, match="Listed got 3 steps from t = 0.5, expected 1.0 and one"):
        grid.times(VPCosine(), 3, begin=0.5)
    for bad in ((1.0,), (1.0, 0.5), (0.9, 0.0), (1.0, 0.5, 0.5, 0.0), (0.0, 1.0)):
        with pytest.raises(ValueError, match=r"Listed got \(.*\), expected times that fall from 1.0 to 0.0"):
            Listed((bad,))


def wasserstein(sampler, schedule, times, spectrum):
    level = schedule.at(0.0)
    law = gaussian_law(sampler, schedule, times, spectrum)
    return (law.sqrt() - (level.alpha**2 * spectrum + level.sigma**2).sqrt()).square().sum().sqrt().item()


@pytest.mark.parametrize(("steps", "share"), [(10, 0.25), (5, 0.85)])
def test_an_optimised_grid_beats_the_common_ones(steps, share):
    """Fitted to 40 eigenvalues, log-uniform from 1e-4 to 200; judged by 300 unseen ones of the same density."""
    schedule, sampler = VPLinear(), DPMSolverPP()
    fitted = torch.logspace(-4, math.log10(200), 40, dtype=torch.float64)
    uniform = torch.rand(300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unseen = 1e-4 * 2e6**uniform
    times = optimised(schedule, sampler, fitted, steps)
    assert Listed((times,)).times(schedule, steps) == list(times)
    common = {grid: grid.times(schedule, steps) for grid in (UniformTime(), UniformLogSNR(), KarrasGrid(), Quadratic())}
    best = min(wasserstein(sampler, schedule, other, fitted) for other in common.values())
    assert wasserstein(sampler, schedule, times, fitted) < best
    plain = wasserstein(sampler, schedule, common[UniformLogSNR()], unseen)
    assert wasserstein(sampler, schedule, times, unseen) < share * plain


def test_one_step_has_nothing_to_optimise():
    assert optimised(VPCosine(), DDIM(), torch.ones(3), 1) == (1.0, 0.0)


@pytest.mark.parametrize("sampler", [DPMSolverPP(3, 1.0), DDIM(1.0), Churn(Heun()), DDIM()], ids=str)
def test_the_law_of_a_sampler_is_that_of_its_samples(sampler):
    """Also where noise of several steps meets in a memory; within five standard errors."""
    schedule, spectrum, count = VPCosine(), torch.tensor([0.05, 1.0, 4.0], dtype=torch.float64), 40_000
    times = UniformLogSNR().times(schedule, 7)
    noise = gaussian(torch.Generator().manual_seed(0))
    denoise = Gaussian(schedule, torch.zeros(3, dtype=torch.float64), spectrum)
    x = start(schedule, torch.empty(count, 3, dtype=torch.float64), noise)
    got = sample(denoise, schedule, sampler, times, x, noise).x.square().mean(0)
    law = gaussian_law(sampler, schedule, times, spectrum)
    assert ((got / law - 1).abs() < 5 * math.sqrt(2 / count)).all()
    begin = 0.5 * torch.ones(3, dtype=torch.float64)
    if sampler == DDIM():  # a linear map of its start
        torch.testing.assert_close(gaussian_law(sampler, schedule, times, spectrum, begin), begin * law)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_the_law_of_ddim_by_hand(eta):
    schedule, v, times = VPLinear(), 0.3, [1.0, 0.6, 0.25, 0.0]
    variance = schedule.at(1.0).alpha ** 2 + schedule.at(1.0).sigma ** 2
    for t, s in zip(times, times[1:], strict=False):
        here, there = schedule.at(t), schedule.at(s)
        gain = here.alpha * v / (here.alpha**2 * v + here.sigma**2)  # x0 = gain x
        ratio = (there.sigma / here.sigma) ** 2 * (1 - (here.alpha / there.alpha) ** 2)
        std = eta * math.sqrt(ratio)  # Song et al. 2021, equation 16, for alpha^2 + sigma^2 = 1
        factor = there.alpha * gain + math.sqrt(there.sigma**2 - std**2) * (1 - here.alpha * gain) / here.sigma
        variance = factor**2 * variance + std**2
    got = gaussian_law(DDIM(eta), schedule, times, torch.tensor([v], dtype=torch.float64))
    assert got.item() == pytest.approx(variance, rel=1e-9)
