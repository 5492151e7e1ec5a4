"""Novelty: scores against closed forms, and p-values against the uniform law that they promise."""

import dataclasses
import importlib.util
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from poise.data import Episodes, Standard, Windows
from poise.denoisers import Gaussian
from poise.diagnostics import kolmogorov_smirnov
from poise.evaluation import Episode
from poise.nn import CNN, MLP, SmallCNN
from poise.policies.diffusion import DiffusionPolicy
from poise.policies.novelty import Novelty, OutsideRange, PlanSurprise, TokenDistance
from poise.policies.spec import PolicySpec
from poise.sampling import RK4, per_sample

SPEC = PolicySpec(
    {"arm": (3,), "grip": (1,)},
    2,
    history=2,
    horizon=4,
    execute=1,
    network=MLP(width=16, depth=1, condition=8),
    observation_scaling=Standard(),
    action_scaling=Standard(),
)
MIX = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.3, 0.2], [0.0, 0.0, 2.0]])


def rows(count: int, seed: int) -> dict[str, np.ndarray]:
    """Correlated Gaussian features, one-step episodes."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "arm": (torch.randn(count, 3, generator=generator) @ MIX + 5).numpy(),
        "grip": torch.randn(count, 1, generator=generator).numpy(),
        "action": torch.randn(count, 2, generator=generator).numpy(),
    }


def windows_of(count: int, seed: int) -> Windows:
    return Windows(Episodes(rows(count, seed), np.arange(1, count + 1)), ("arm", "grip"), 2, 4, 3)


def policy_for(windows: Windows) -> DiffusionPolicy:
    torch.manual_seed(0)
    policy = DiffusionPolicy(SPEC)
    policy.fit(windows)
    return policy.eval()


@pytest.fixture(scope="module")
def training() -> Windows:
    return windows_of(4000, 0)


@pytest.fixture(scope="module")
def novelty(training) -> Novelty:
    return Novelty.fit(policy_for(training), training, windows_of(2000, 1))


def observed(count: int, seed: int, shift: float = 0.0) -> dict[str, torch.Tensor]:
    observation = windows_of(count, seed)[torch.arange(count)].observation
    return {**observation, "arm": observation["arm"] + shift}


def test_p_values_are_uniform_for_observations_like_the_held_out_ones(novelty):
    verdict = novelty(observed(2000, 2))
    p = verdict.p_values["tokens"]
    # Two samples of 2000: the distance between their empirical laws passes 1.95 sqrt(2 / n) once in a thousand.
    distance = kolmogorov_smirnov(p[:, None].float(), lambda u: u.clamp(0, 1)).statistic
    assert distance < 1.95 * math.sqrt(2 / 2000)
    for rate in (0.01, 0.05, 0.2):
        for values in (*verdict.p_values.values(), verdict.p):
            assert (values <= rate).double().mean() < rate + 4 * math.sqrt(2 * rate / 2000)


def test_p_values_count_the_held_out_scores_that_are_no_smaller():
    scores = {"given": lambda observation: observation["x"], "flat": lambda observation: 0 * observation["x"]}
    held_out = {"given": torch.tensor([0.0, 1.0, 1.0, 2.0]), "flat": torch.zeros(4)}
    verdict = Novelty(scores, held_out)({"x": torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0, 2.5])})
    p = torch.tensor([5, 5, 4, 4, 2, 1], dtype=torch.float64) / 5
    assert torch.equal(verdict.p_values["given"], p)
    assert (verdict.p_values["flat"] == 1).all()
    assert torch.equal(verdict.p, (2 * p).clamp(max=1))


def test_a_shifted_observation_has_the_smallest_p_value(novelty):
    verdict = novelty(observed(50, 3, shift=50.0))
    assert (verdict.p_values["tokens"] == 1 / 2001).all()
    assert (verdict.p_values["range"] == 1 / 2001).all()
    assert (verdict.scores["range"] == 6 / 8).all()
    assert (verdict.p == 2 / 2001).all()


def test_an_odd_combination_of_ordinary_numbers_is_noticed_by_the_distance_alone(training):
    """Only the sum of two features varied; their difference was constant up to a hundredth."""
    common = np.random.default_rng(0).normal(size=(3000, 1)).astype(np.float32)
    small = 0.01 * np.random.default_rng(1).normal(size=(3000, 2)).astype(np.float32)
    data = {**rows(3000, 0), "arm": np.concatenate([common + small, np.zeros_like(common)], 1)}
    windows = Windows(Episodes(data, np.arange(1, 3001)), ("arm", "grip"), 2, 4, 3)
    novelty = Novelty.fit(policy_for(windows), windows, windows)
    odd = {"arm": torch.tensor([1.0, -1.0, 0.0]).expand(1, 2, 3), "grip": torch.zeros(1, 2, 1)}
    verdict = novelty(odd)
    assert verdict.p_values["tokens"].item() == 1 / 3001
    assert verdict.p_values["range"].item() == 1


@pytest.mark.parametrize("shrinkage", [1e-3, 0.3, 1.0])
def test_the_distance_is_mahalanobis_in_closed_form(training, shrinkage):
    policy = policy_for(training)
    score = TokenDistance.fit(policy, training, shrinkage)
    seen = observed(20, 4)
    tokens = [policy.tokens(o).detach().flatten(1).double().numpy() for o in (seen, observed(4000, 0))]
    covariance = np.cov(tokens[1].T, bias=True)
    shrunk = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / 8 * np.eye(8)
    gap = tokens[0] - tokens[1].mean(0)
    exact = np.sqrt(np.einsum("bi,ij,bj->b", gap, np.linalg.inv(shrunk), gap))
    np.testing.assert_allclose(score(seen).numpy(), exact, rtol=1e-9)
    if shrinkage == 1:  # what is left is the distance in units of the common deviation
        np.testing.assert_allclose(exact, np.linalg.norm(gap, axis=1) / np.sqrt(np.trace(covariance) / 8))


def test_the_share_outside_the_quantiles_is_exact():
    """1001 steps of 0, 1, ..., 1000: quantiles of 0.1 % are 1 and 999, and neither lies outside of itself."""
    line = np.arange(1001, dtype=np.float32)
    data = {"arm": np.stack([line, -line, line / 10], 1), "grip": np.zeros((1001, 1), np.float32)}
    data["action"] = np.zeros((1001, 2), np.float32)
    windows = Windows(Episodes(data, np.array([1001])), ("arm", "grip"), 2, 4, 3)
    score = OutsideRange.fit(DiffusionPolicy(SPEC), windows)
    assert score.low["arm"].tolist() == pytest.approx([1, -999, 0.1])
    assert score.high["arm"].tolist() == pytest.approx([999, -1, 99.9])
    cases = {(1, -1, 50, 0): 0, (0, -1, 50, 0): 1, (0, 0, 100, 0): 3, (1000, -1000, 0, 1e-3): 4}
    for (a, b, c, grip), count in cases.items():
        arm = torch.tensor([[[500.0, -500.0, 50.0], [a, b, c]]])
        assert score({"arm": arm, "grip": torch.tensor([[[0.0], [grip]]])}).item() == count / 8


def test_the_range_is_that_of_numpy_without_a_copy_of_all_rows():
    arm = np.random.default_rng(0).normal(size=(100_000, 8, 2)).astype(np.float32)
    windows = Windows(
        Episodes({"arm": arm, "action": np.zeros((len(arm), 2), np.float32)}, [len(arm)]), ("arm",), 2, 4, 3
    )
    policy = DiffusionPolicy(dataclasses.replace(SPEC, observations={"arm": (8, 2)}))
    tracemalloc.start()
    score = OutsideRange.fit(policy, windows, tail=0.01)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < arm.nbytes / 4
    low, high = torch.as_tensor(np.quantile(arm, [0.01, 0.99], axis=0)).float()
    assert torch.equal(score.low["arm"], low)
    assert torch.equal(score.high["arm"], high)


def test_the_surprise_of_a_plan_is_its_log_density(training, monkeypatch):
    """With an exact Gaussian denoiser in the place of the network: plans far from its mean surprise more."""
    policy = policy_for(training).double()
    deviation = torch.linspace(0.3, 0.9, 8, dtype=torch.float64).reshape(4, 2)
    exact = Gaussian(SPEC.schedule, torch.zeros(4, 2, dtype=torch.float64), deviation.square())
    monkeypatch.setattr(policy.diffusion, "given", lambda tokens: exact)
    seen = {k: v.double() for k, v in observed(3, 5).items()}
    policy.spec = dataclasses.replace(SPEC, bound=None)
    score = PlanSurprise(policy, solver=RK4(), steps=12, seed=7)
    got = score(seen)
    assert (got == got[0]).all()  # the noise is the same for every observation
    plan = policy.plan(seen, per_sample([7] * 3))
    x, scale = policy.action_normaliser(plan), policy.action_normaliser.scale
    law = torch.distributions.Normal(torch.zeros_like(deviation), deviation)
    density = law.log_prob(x).sum((1, 2)) + 4 * scale.log().sum()
    torch.testing.assert_close(got, -density, rtol=0, atol=0.05)
    novelty = Novelty.fit(
        policy, training, training, {"plan": lambda o: score({k: v.double() for k, v in o.items()})}, 4
    )
    assert list(novelty(seen).p_values) == ["plan"]


def test_bad_input_is_explained(training):
    policy = policy_for(training)
    with pytest.raises(ValueError, match="shrinkage=0, expected a number in"):
        TokenDistance.fit(policy, training, shrinkage=0)
    with pytest.raises(ValueError, match=r"tail=0.5, expected a share in \[0, 0.5\)"):
        OutsideRange.fit(policy, training, tail=0.5)
    still = Windows(
        Episodes({**rows(5, 0), "arm": np.zeros((5, 3)), "grip": np.zeros((5, 1))}, [5]), ("arm", "grip"), 2, 4, 3
    )
    with pytest.raises(ValueError, match="5 windows with the same tokens, expected tokens that vary"):
        TokenDistance.fit(policy, still)
    score = TokenDistance.fit(policy, training)
    with pytest.raises(ValueError, match="NaN or infinity in feature 'grip'"):
        score({**observed(1, 0), "grip": torch.full((1, 2, 1), torch.nan)})


def test_changed_colours_are_noticed():
    """Grey pictures in training; the same ones in blue are novel, whatever an encoder makes of colours."""
    grey = np.random.default_rng(0).integers(0, 255, (300, 8, 8, 1)).repeat(3, 3).astype(np.uint8)
    episodes = Episodes({"camera": grey, "action": np.zeros((300, 2), np.float32)}, np.arange(1, 301))
    parts = [Windows(part, ("camera",), 1, 4, 3) for part in episodes.split(0.3)]
    encoder = CNN(SmallCNN((16,)), width=8)
    policy = DiffusionPolicy(dataclasses.replace(SPEC, observations={"camera": (8, 8, 3)}, history=1, encoder=encoder))
    policy.fit(parts[0])
    novelty = Novelty.fit(policy, *parts)
    seen = parts[1][torch.arange(90)].observation["camera"]
    blue = novelty({"camera": seen * torch.tensor([0, 0, 1], dtype=torch.uint8)})
    assert (blue.scores["range"] >= 4 / 6).all()  # mean and deviation of red and of green
    assert (blue.p_values["range"] == 1 / 91).all()
    assert novelty({"camera": seen}).scores["range"].mean() < 0.05
    assert novelty({"camera": seen}).p_values["tokens"].median() == pytest.approx(0.5, abs=0.02)


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("shift", Path(__file__).parents[1] / "benchmarks" / "shift.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_benchmark_measures_how_well_a_score_tells_failures(benchmark):
    scores, failed = np.array([1.0, 2.0, 2.0, 3.0, 0.0]), np.array([False, True, False, True, False])
    assert benchmark.auroc(scores, failed) == pytest.approx((1 + 0.5 + 1 + 1 + 1 + 1) / 6)
    assert benchmark.auroc(-scores, failed) == pytest.approx(0.5 / 6)
    assert benchmark.auroc(scores, np.zeros(5, bool)) is None


def test_the_benchmark_scores_the_histories_that_plans_were_made_from(benchmark, training):
    fresh = np.array([True, False, False, True])
    seen = {"arm": np.arange(12.0).reshape(4, 3), "grip": np.arange(4.0)[:, None]}
    episode = Episode(0, True, 1.0, 1.0, None, None, {}, np.zeros((4, 2), np.float32), fresh, seen)
    found = benchmark.planned_from(policy_for(training), episode, None)
    assert found["grip"][..., 0].tolist() == [[0, 0], [2, 3]]
    assert found["arm"].dtype == torch.float32
    assert benchmark.lit(np.array([[[10, 20, 90]]], np.uint8), 0.5).tolist() == [[[50, 15, 55]]]
