import math

import pytest
import torch

from poise.schedules import Rectified, Tabulated, VPCosine, VPLinear
from poise.testing import check_schedule

SCHEDULES = [VPLinear(), VPCosine(), Rectified(), Tabulated.linear(1000), Tabulated.squared_cosine(100)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_conformance(schedule):
    check_schedule(schedule)


@pytest.mark.parametrize("schedule", SCHEDULES[:2] + SCHEDULES[3:], ids=lambda s: type(s).__name__)
def test_variance_preserving_schedules_keep_unit_power(schedule):
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, torch.ones_like(t))


def test_vp_linear_follows_its_sde():
    """Song et al. 2021: d log(alpha) / du = -beta(u) / 2."""
    schedule, t = VPLinear(beta_min=0.1, beta_max=20.0, t_min=1e-3), torch.linspace(0.01, 1, 50, dtype=torch.float64)
    u = 1e-3 + (1 - 1e-3) * t
    beta = 0.1 + u * (20.0 - 0.1)
    torch.testing.assert_close(schedule.rates(t)[0] / schedule.alpha(t), -beta / 2 * (1 - 1e-3))
    end = schedule.at(1.0)
    assert end.alpha == pytest.approx(math.exp(-(0.1 + 20) / 4), rel=1e-12)


@pytest.mark.parametrize(("table", "steps"), [(Tabulated.linear(1000), 1000), (Tabulated.squared_cosine(100), 100)])
def test_tabulated_is_exact_on_the_grid(table, steps):
    level = torch.cumprod(1 - torch.tensor(table.betas, dtype=torch.float64), 0)
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    torch.testing.assert_close(table.alpha(t) ** 2, level, rtol=1e-9, atol=1e-15)
    assert table.at(0.0).sigma == pytest.approx(table.sigma_min)


def test_published_betas():
    """First and last values of the squared cosine table of Nichol and Dhariwal with 100 steps."""
    betas = Tabulated.squared_cosine(100).betas

    def f(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    assert betas[0] == pytest.approx(1 - f(0.01) / f(0.0))
    assert betas[-1] == 0.999
    linear = Tabulated.linear(1000).betas
    assert (linear[0], linear[-1]) == (1e-4, 0.02)


def test_levels_are_computed_once_and_work_under_inference_mode():
    schedule = VPCosine()
    with torch.inference_mode():
        level = schedule.at(0.3)
    assert schedule.at(0.3) is level
    assert level.alpha_rate == pytest.approx(-(math.pi / 2 - 2e-3) * level.sigma)


def test_the_cache_of_levels_is_bounded(monkeypatch):
    monkeypatch.setattr("poise.schedules._CACHED_LEVELS", 8)
    schedule = Rectified()
    for i in range(50):
        schedule.at(i / 50)
    assert len(schedule._levels) <= 8


def test_bad_tables_are_refused():
    with pytest.raises(ValueError, match=r"betas in \(0, 1\), got \(0.1, 1.5\)"):
        Tabulated((0.1, 1.5))
    with pytest.raises(ValueError, match="sigma_min=0.5, expected a value between 0 and the first noise level 0.01"):
        Tabulated((1e-4, 0.02), sigma_min=0.5)
