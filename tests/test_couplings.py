import dataclasses
import itertools
import sys
import warnings

import numpy as np
import pytest
import torch

from poise.data import Episodes, Windows
from poise.draws import Draws
from poise.nn import MLP
from poise.policies import DiffusionPolicy, Immiscible, Independent, OptimalTransport, PolicySpec, load

SMALL = MLP(width=8, depth=1, condition=4)
SPEC = PolicySpec({"side": (1,)}, 1, history=1, horizon=2, execute=1, network=SMALL)

pytest.importorskip("scipy", reason="couplings need scipy: pip install 'poise[transport]'")


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("coupling", "power"), [(Immiscible(), 1), (OptimalTransport(), 2)], ids=["distance", "squared"]
)
def test_the_assignment_is_the_cheapest_of_all(coupling, power, seed):
    x0, eps = normal(seed, 6, 2, 1), normal(seed + 100, 6, 2, 1)
    cost = lambda noise: (x0 - noise).flatten(1).norm(dim=1).pow(power).sum()  # noqa: E731
    paired = coupling.pair(x0, eps)
    cheapest = min(cost(eps[list(order)]) for order in itertools.permutations(range(6)))
    assert cost(paired) == pytest.approx(cheapest.item(), rel=1e-5)
    assert cost(paired) < cost(eps)
    rows = [(row == eps).all((1, 2)).nonzero().item() for row in paired]
    assert sorted(rows) == list(range(6))


def test_the_two_costs_differ():
    pairs = [(normal(seed, 6, 2, 1), normal(seed + 100, 6, 2, 1)) for seed in range(20)]
    assert any(not torch.equal(Immiscible().pair(*pair), OptimalTransport().pair(*pair)) for pair in pairs)


def test_over_a_batch_noise_stays_normal_but_tells_about_the_plan():
    """In one dimension the pairing is in order, and noise nearly the standardised plan."""
    x0, eps = 3 + 0.5 * normal(0, 2000, 1, 1), normal(1, 2000, 1, 1)
    paired = OptimalTransport().pair(x0, eps)
    assert torch.equal(paired.flatten().sort().values, eps.flatten().sort().values)
    assert torch.equal(x0.flatten().argsort(), paired.flatten().argsort())
    correlation = torch.corrcoef(torch.stack([x0.flatten(), paired.flatten()]))[0, 1]
    assert correlation > 0.99
    assert abs(torch.corrcoef(torch.stack([x0.flatten(), eps.flatten()]))[0, 1]) < 0.1
    expected = torch.special.ndtri(torch.linspace(0.05, 0.95, 19))
    torch.testing.assert_close(torch.quantile(paired, torch.linspace(0.05, 0.95, 19)), expected, atol=0.1, rtol=0)


def test_noise_is_biased_given_an_observation_as_the_warning_says():
    """Half of the observations ask for +1 and half for -1: in training their noise has a mean of +-sqrt(2 / pi)."""
    side = torch.tensor([1.0, -1.0]).repeat(500)[:, None, None]
    x0 = side + 0.01 * normal(0, 1000, 1, 1)
    paired = Immiscible().pair(x0, normal(1, 1000, 1, 1))
    for sign in (1, -1):
        assert sign * paired[side == sign].mean() == pytest.approx((2 / torch.pi) ** 0.5, abs=0.08)


@pytest.mark.parametrize("coupling", [Immiscible(), OptimalTransport()], ids=str)
def test_a_coupling_warns_of_its_bias(coupling):
    message = f"{type(coupling).__name__} pairs the noise .* plans depend on observations.* Keep Independent"
    with pytest.warns(UserWarning, match=message) as caught:
        dataclasses.replace(SPEC, coupling=coupling)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataclasses.replace(SPEC, coupling=Independent())


@pytest.mark.filterwarnings("ignore:Immiscible pairs")
def test_a_policy_learns_from_the_paired_noise(tmp_path, monkeypatch):
    side = np.linspace(-1, 1, 40, dtype=np.float32)[:, None]
    windows = Windows(Episodes({"side": side, "action": side}, np.arange(1, 41)), ("side",), 1, 2, 1)
    policy = DiffusionPolicy(dataclasses.replace(SPEC, coupling=Immiscible(), draws=2))
    policy.fit(windows)
    seen, loss = [], policy.diffusion.loss
    monkeypatch.setattr(
        policy.diffusion, "loss", lambda x0, eps, t, tokens: seen.append((x0, eps)) or loss(x0, eps, t, tokens)
    )
    policy.loss(windows[torch.arange(40)], Draws(torch.Generator().manual_seed(0)))
    (x0, eps), drawn = seen[0], Draws(torch.Generator().manual_seed(0))
    drawn.stratified(40, 2)
    fresh = drawn.normal(40, 2, 2, 1).transpose(0, 1).flatten(0, 1)
    assert not torch.equal(eps, fresh)
    assert torch.equal(eps, Immiscible().pair(x0, fresh))
    assert load(policy.save(tmp_path)).spec.coupling == Immiscible()


def test_without_scipy_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(
        ImportError,
        match=r"needs the extra 'transport' \(import of scipy.optimize halted.*\): pip install 'poise\[transport\]'",
    ):
        Immiscible().pair(normal(0, 2, 1, 1), normal(1, 2, 1, 1))
