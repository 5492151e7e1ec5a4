"""The baselines: what they converge to, what they cost, and where they draw from."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from poise.data import Batch, Episodes, Standard, Windows
from poise.draws import Draws
from poise.nn import CNN, MLP, SmallCNN
from poise.policies.baselines import NearestNeighbour, Regression, _comparable
from poise.policies.iterative import MinimalIterative
from poise.policies.mixture import MixtureRegression
from poise.policies.policy import Policy
from poise.policies.spec import PolicySpec
from poise.sampling import per_sample
from poise.training import Learner, TrainingSpec, train

SMALL = MLP(width=32, depth=2, condition=16)
SPEC = PolicySpec(
    {"side": (1,)}, 2, history=1, horizon=4, execute=1, network=SMALL, action_scaling=Standard(), bound=None
)
FAST = TrainingSpec(steps=250, batch=64, warmup=20, learning_rate=3e-3, ema_maximum=0.98)


@pytest.fixture
def windows() -> Windows:
    """Episodes that hold +side (30 %) or -side (70 %) throughout: two whole plans an observation, never a blend."""
    rng = np.random.default_rng(0)
    side, sign = rng.uniform(0.5, 1.0, 1000), np.where(rng.uniform(size=1000) < 0.3, 1.0, -1.0)
    action = np.stack([side * sign, 0.02 * rng.normal(size=1000)], 1)
    rows = {"side": side[:, None].repeat(4, 0), "action": action.repeat(4, 0)}
    return Windows(
        Episodes({k: v.astype(np.float32) for k, v in rows.items()}, 4 * np.arange(1, 1001)), ("side",), 1, 4, 0
    )


def trained(kind: Callable[[PolicySpec], Policy], windows: Windows, spec: PolicySpec = SPEC) -> Policy:
    torch.manual_seed(0)
    policy = kind(spec)
    policy.fit(windows)
    learner = Learner(policy, FAST)
    for _ in train(learner, windows):
        pass
    return learner.average.policy


def seen(side: float, batch: int) -> dict[str, torch.Tensor]:
    return {"side": torch.full((batch, 1, 1), side)}


def test_a_mixture_finds_both_modes_where_regression_plans_their_mean(windows):
    plans = trained(MixtureRegression, windows).plan(seen(0.8, 1000), per_sample(range(1000)))[..., 0]
    route = plans[:, 0] > 0
    assert ((plans > 0) == route[:, None]).all(1).float().mean() > 0.95  # a plan keeps to one mode
    assert (plans.abs() - 0.8).abs().median() < 0.05
    assert route.float().mean() == pytest.approx(0.3, abs=0.08)
    mean = trained(Regression, windows).plan(seen(0.8, 1))[..., 0]
    assert mean.sub(-0.4 * 0.8).abs().max() < 0.12


def test_the_loss_of_a_mixture_is_the_likelihood_of_an_independent_library(windows):
    """Its sum over a plan, and over the real part of one that ends in padding, is minus the log-density."""
    torch.manual_seed(0)
    policy = MixtureRegression(SPEC)
    policy.fit(windows)
    policy.double()
    torch.nn.init.normal_(policy.network.exit[1].weight)  # components that differ
    batch = windows[torch.arange(0, 400, 40)]
    batch = Batch({k: v.double() for k, v in batch.observation.items()}, batch.actions.double(), batch.real)
    log_weights, means, deviations = policy.components(batch.observation)
    assert log_weights.exp().std(1).min() > 0.02
    loss, actions = policy.loss(batch), policy.encoded(batch)
    assert loss.shape == actions.shape
    for real in (4, 2):
        normals = Independent(Normal(means[:, :, :real], deviations[:, :, :real]), 2)
        law = MixtureSameFamily(Categorical(logits=log_weights), normals)
        torch.testing.assert_close(loss[:, :real].sum((1, 2)), -law.log_prob(actions[:, :real]))


def test_a_mixture_draws_from_its_weights_and_deviations(windows, monkeypatch):
    policy = MixtureRegression(SPEC)
    policy.fit(windows)
    count, weights = 20_000, torch.tensor([0.1, 0.4, 0.05, 0.25, 0.2])
    means = 100.0 * torch.arange(5)[:, None, None].expand(5, 4, 2)
    deviations = torch.full((5, 4, 2), 2.0)
    law = (weights.log().expand(count, 5), means.expand(count, 5, 4, 2), deviations.expand(count, 5, 4, 2))
    monkeypatch.setattr(policy, "components", lambda observation: law)
    monkeypatch.setattr(policy, "decoded", lambda actions, observation: actions)
    generator = torch.Generator().manual_seed(0)
    noise = lambda x, t, s: torch.randn(x.shape, generator=generator)  # noqa: E731
    plans = policy.plan(seen(0.8, count), noise)
    drawn = (plans[:, 0, 0] / 100).round().long()
    share = torch.bincount(drawn, minlength=5) / count
    assert ((share - weights).abs() < 4 * (weights * (1 - weights) / count).sqrt()).all()
    rest = plans - 100.0 * drawn[:, None, None]
    assert rest.std() == pytest.approx(2.0, rel=0.02)
    assert abs(torch.corrcoef(torch.stack([drawn.float(), rest[:, 1, 1]]))[0, 1]) < 4 / math.sqrt(count)
    for temperature, bound, largest in ((0.0, None, 400.0), (0.0, 50.0, 50.0)):
        policy.spec = dataclasses.replace(SPEC, temperature=temperature, bound=bound)
        assert set(policy.plan(seen(0.8, count), noise).unique().tolist()) <= {0.0, 100.0, 200.0, 300.0, largest}
        assert policy.plan(seen(0.8, count), noise).max() == largest


@pytest.mark.parametrize("kind", [MixtureRegression, MinimalIterative, Regression])
def test_a_plan_depends_on_its_own_seed_and_observation_alone(kind, windows):
    torch.manual_seed(0)
    policy = kind(SPEC)
    policy.fit(windows)
    policy.eval()
    observation = {"side": torch.linspace(0.5, 1, 6)[:, None, None]}
    together = policy.plan(observation, per_sample(range(6)))
    alone = torch.cat([policy.plan({"side": observation["side"][i : i + 1]}, per_sample([i])) for i in range(6)])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-5)
    other = policy.plan(observation, per_sample(range(10, 16)))
    assert torch.equal(other, together) == (kind is not MixtureRegression)


def test_the_iterative_policy_guesses_the_mean_and_mends_it(windows):
    """Its first call is least squares; the second learned to mend errors of a tenth, and moves towards a mode."""
    policy = trained(MinimalIterative, windows)
    guess, plan = policy.trace(seen(0.8, 1))
    assert [guess.evaluations, plan.evaluations] == [1, 2]
    assert guess.x[..., 0].sub(-0.4 * 0.8).abs().max() < 0.12
    assert torch.equal(policy.plan(seen(0.8, 1)), plan.x)
    assert (plan.x[..., 0] + 0.8).abs().mean() < 0.8 * (guess.x[..., 0] + 0.8).abs().mean()
    batch = windows[torch.arange(0, 1000, 4)]
    a, mend = policy.encoded(batch), policy._calls(batch.observation)[1]
    rough = 0.1 * torch.randn(a.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (mend(a + rough) - a)[..., 0].square().mean() < 0.25 * rough[..., 0].square().mean()


def test_the_loss_of_the_iterative_policy_is_the_published_one(windows, monkeypatch):
    """A network that returns three times its input plus its log-SNR makes both terms readable."""
    policy = MinimalIterative(SPEC)
    policy.fit(windows)
    calls = []

    def network(x, log_snr, prepared):
        calls.append((x, log_snr))
        return 3 * x + log_snr[:, None, None]

    monkeypatch.setattr(policy.network, "forward", network)
    batch = windows[torch.arange(8)]
    got = policy.loss(batch, Draws(torch.Generator().manual_seed(3)))
    a, z = policy.encoded(batch), torch.randn(8, 4, 2, generator=torch.Generator().manual_seed(3))
    codes = [-7.0, math.log(10)]
    second = 3 * (a + 0.1 * z) + codes[1] - a
    torch.testing.assert_close(got, (codes[0] - a).square() / 0.9**2 + second.square() / 0.1**2)
    assert [call[1].unique().item() for call in calls] == pytest.approx(codes)
    plan = policy.plan(seen(0.8, 1))
    expected = policy.decoded(torch.full((1, 4, 2), 3 * codes[0] + codes[1]), seen(0.8, 1))
    torch.testing.assert_close(plan, expected)
    assert len(calls) == 4


def test_neighbours_are_averaged_on_request(windows):
    policy = NearestNeighbour(SPEC)
    policy.fit(windows)
    policy.remember(windows)
    sides, plans = windows.observations["side"][::4, 0], windows.actions.reshape(-1, 4, 2)
    nearest = (sides - 0.7).abs().argsort()
    for neighbours in (1, 3):
        expected = plans[nearest[:neighbours]].mean(0, keepdim=True)
        torch.testing.assert_close(policy.using(neighbours).plan(seen(0.7, 1)), expected, rtol=0, atol=1e-5)
    assert policy.neighbours == 1
    for wrong in (0, 1001):
        with pytest.raises(ValueError, match=f"neighbours={wrong}, expected 1 to the 1000 windows"):
            policy.using(wrong)


def test_pictures_are_compared_as_thumbnails_that_weigh_as_one_number():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(2, 1, 16, 16, 3, generator=generator)
    pictures = coarse.repeat_interleave(6, 2).repeat_interleave(6, 3)
    fine = pictures + torch.tensor([1.0, -1.0]).repeat(48)[:, None]  # stripes that average out
    vectors = _comparable(fine)
    assert vectors.shape == (2, 16 * 16 * 3)
    expected = (coarse[0] - coarse[1]).square().mean().sqrt()
    torch.testing.assert_close((vectors[0] - vectors[1]).norm(), expected)
    torch.testing.assert_close(_comparable(torch.ones(2, 3, 4)), torch.ones(2, 12))


def test_a_neighbour_is_found_by_pictures_of_bytes():
    """Flat pictures of growing brightness, each the only one to be followed by its action."""
    shades = np.linspace(10, 200, 20).astype(np.uint8)
    pictures = np.broadcast_to(shades[:, None, None, None], (20, 32, 32, 3)).copy()
    action = np.arange(20, dtype=np.float32)[:, None].repeat(2, 1)
    windows = Windows(Episodes({"camera": pictures, "action": action}, np.arange(1, 21)), ("camera",), 1, 4, 3)
    encoder = CNN(SmallCNN((16,)))
    policy = NearestNeighbour(dataclasses.replace(SPEC, observations={"camera": (32, 32, 3)}, encoder=encoder))
    policy.fit(windows)
    policy.remember(windows)
    assert policy.observed.shape == (20, 16 * 16 * 3)
    for row in (0, 7, 19):
        near = torch.as_tensor(pictures[row : row + 1, None] + 2)
        torch.testing.assert_close(policy.plan({"camera": near}), torch.full((1, 4, 2), float(row)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", [Regression, MinimalIterative, MixtureRegression, NearestNeighbour])
@pytest.mark.parametrize("bound", [0.5, None])
def test_every_policy_keeps_its_bound(kind, bound, windows):
    torch.manual_seed(0)
    policy = kind(dataclasses.replace(SPEC, bound=bound))
    policy.fit(windows)
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=1.0)
    if kind is NearestNeighbour:
        policy.remember(windows)
    *states, last = policy.eval().trace(seen(0.8, 64), per_sample(range(64)))
    for state in (*states, last):
        largest = policy.action_normaliser(state.x).abs().max()
        assert abs(largest - bound) < 1e-5 if bound else largest > 0.6


def test_a_neighbour_is_found_without_what_is_absent():
    """The nearest by side; by side and goal it is another one, and a goal of zero would be near the middle one."""
    rows = {"side": [0.0, 0.4, 1.0], "goal": [-1.0, 0.0, 1.0], "action": [1.0, 2.0, 3.0]}
    features = {name: np.float32(values)[:, None] for name, values in rows.items()}
    windows = Windows(Episodes(features, np.arange(1, 4)), ("side", "goal"), 1, 1, 0)
    shapes = {"side": (1,), "goal": (1,)}
    policy = NearestNeighbour(PolicySpec(shapes, 1, optional={"goal": 0.5}, history=1, horizon=1, execute=1))
    policy.fit(windows)
    policy.remember(windows)
    side, goal = torch.full((1, 1, 1), 0.1), torch.full((1, 1, 1), 1.0)
    assert policy.plan({"side": side}).item() == pytest.approx(1)
    assert policy.plan({"side": side + 0.5, "goal": goal}).item() == pytest.approx(3)
