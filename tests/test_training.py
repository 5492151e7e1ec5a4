import copy
import dataclasses
import math

import numpy as np
import pytest
import torch

from poise.data import Episodes, Windows
from poise.nn import MLP
from poise.policies import DiffusionPolicy, PolicySpec, Regression
from poise.training import EMA, TrainingSpec, train, validate
from poise.training.loop import _loss, _order

SPEC = PolicySpec({"side": (1,)}, 1, history=1, horizon=2, execute=1, network=MLP(width=32, depth=2, condition=16))
FAST = TrainingSpec(steps=400, batch=64, warmup=20, learning_rate=3e-3, ema_maximum=0.98)


@pytest.fixture
def windows() -> Windows:
    """One-step episodes: the action is plus or minus the observed number, as often the one as the other."""
    side = np.random.default_rng(0).uniform(0.2, 1.0, (1000, 1)).astype(np.float32).repeat(2, axis=0)
    action = side * np.resize([1, -1], (2000, 1)).astype(np.float32)
    return Windows(Episodes({"side": side, "action": action}, np.arange(1, 2001)), ("side",), 1, 2, 1)


def trained(windows: Windows, spec: TrainingSpec = FAST) -> tuple[DiffusionPolicy, EMA]:
    torch.manual_seed(0)
    policy = DiffusionPolicy(SPEC)
    policy.fit(windows)
    average = EMA(policy, spec.ema_power, spec.ema_maximum)
    for _ in train(policy, windows, spec, average):
        pass
    return policy, average


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_policy_learns_a_conditional_bimodal_distribution(windows, bfloat16):
    """Both modes, in their proportions, at the place that the observation says: what regression cannot do."""
    _, average = trained(windows, dataclasses.replace(FAST, bfloat16=bfloat16))
    torch.manual_seed(1)
    for side in (0.4, 0.9):
        plans = average.policy.plan({"side": torch.full((400, 1, 1), side)})[:, 0, 0]
        assert (plans.abs() - side).abs().median() < 0.1
        assert 0.35 < (plans > 0).float().mean() < 0.65


def test_padding_counts_unless_it_is_masked(windows):
    """Change nothing but padded targets: the masked loss must not notice, the other one must."""
    policy = DiffusionPolicy(SPEC)
    policy.fit(windows)
    changed = copy.copy(windows)
    changed.actions = windows.actions.clone()
    changed._last = windows._last.clone() + 1  # the padded step now takes the action of the next episode
    changed._last[-1] -= 1
    batch, other = windows[torch.arange(64)], changed[torch.arange(64)]
    other = dataclasses.replace(other, real=batch.real)
    assert torch.equal(batch.actions[batch.real], other.actions[other.real])
    assert not torch.equal(batch.actions, other.actions)
    regression = Regression(SPEC)
    regression.load_state_dict({k: policy.state_dict().get(k, v) for k, v in regression.state_dict().items()})
    generator = torch.Generator()
    for masked in (True, False):
        spec = dataclasses.replace(FAST, mask_padding=masked)
        same = _loss(regression, batch, spec, generator) == _loss(regression, other, spec, generator)
        assert bool(same) == masked


def test_two_runs_are_equal_bit_by_bit(windows):
    short = dataclasses.replace(FAST, steps=20)
    first, second = trained(windows, short), trained(windows, short)
    for a, b in zip(first[0].parameters(), second[0].parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(first[1].policy.parameters(), second[1].policy.parameters(), strict=True):
        assert torch.equal(a, b)


def test_every_epoch_sees_every_window_once():
    spec = TrainingSpec(batch=6, seed=3)
    order = _order(20, spec, torch.device("cpu"))
    seen = torch.cat([next(order) for _ in range(10)])
    for epoch in range(3):
        assert sorted(seen[20 * epoch : 20 * epoch + 20].tolist()) == list(range(20))
    assert seen[:20].tolist() != seen[20:40].tolist()
    assert torch.equal(seen[:6], next(_order(20, spec, torch.device("cpu"))))


def test_the_average_follows_the_published_warm_up(windows):
    policy = DiffusionPolicy(SPEC)
    policy.fit(windows)
    average = EMA(policy, power=0.75, maximum=0.9)
    expected = [p.clone() for p in policy.parameters()]
    for n in range(30):
        with torch.no_grad():
            for p in policy.parameters():
                p.add_(0.1)
        decay = min(0.9, 1 - (1 + n) ** -0.75)
        expected = [decay * e + (1 - decay) * p for e, p in zip(expected, policy.parameters(), strict=True)]
        average.update(policy)
    for e, p in zip(expected, average.policy.parameters(), strict=True):
        torch.testing.assert_close(p, e)
    assert not any(p.requires_grad for p in average.policy.parameters())


def test_progress_reports_rates_and_validation(windows):
    policy = DiffusionPolicy(SPEC)
    policy.fit(windows)
    spec = TrainingSpec(steps=10, batch=32, warmup=4, learning_rate=1e-3, validate_every=4)
    steps = list(train(policy, windows, spec, EMA(policy), windows))
    assert [s.step for s in steps if s.validation is not None] == [4, 8, 10]
    assert [s.learning_rate for s in steps[:2]] == pytest.approx([0.25e-3, 0.5e-3 * 0.5 * (1 + math.cos(math.pi / 10))])
    assert steps[-1].fraction == 1
    assert steps[-1].samples == 320


def test_validation_uses_the_same_noise_every_time(windows):
    policy = DiffusionPolicy(SPEC)
    policy.fit(windows)
    first = validate(policy, windows, FAST)
    torch.manual_seed(99)
    assert validate(policy, windows, FAST) == first


def test_minutes_end_a_run(windows):
    policy = DiffusionPolicy(SPEC)
    policy.fit(windows)
    spec = TrainingSpec(steps=10**9, minutes=1 / 60, batch=32)
    last = list(train(policy, windows, spec, EMA(policy)))[-1]
    assert last.fraction == 1
    assert 0.9 < last.seconds < 10
    assert last.learning_rate < 1e-4


def test_bad_training_is_explained(windows):
    policy = DiffusionPolicy(SPEC)
    with pytest.raises(ValueError, match="'side' has no statistics"):
        next(train(policy, windows, FAST, EMA(policy)))
    policy.fit(windows)
    with torch.no_grad():
        next(iter(policy.diffusion.parameters())).fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="loss of nan at step 1, expected a finite number"):
        next(train(policy, windows, FAST, EMA(policy)))
    with pytest.raises(ValueError, match="steps=0, expected at least 1"):
        TrainingSpec(steps=0)
