import copy
import dataclasses
import math
import platform
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from poise.data import Episodes, Windows
from poise.draws import Draws
from poise.nn import CNN, MLP, SmallCNN, UNet1D, Vector
from poise.policies import DiffusionPolicy, PolicySpec, Regression
from poise.training import EMA, Learner, TrainingSpec, loop, train, validate
from poise.training.loop import Objective
from poise.training.order import Order, noise_seed

SPEC = PolicySpec({"side": (1,)}, 1, history=1, horizon=2, execute=1, network=MLP(width=32, depth=2, condition=16))
FAST = TrainingSpec(steps=400, batch=64, warmup=20, learning_rate=3e-3, ema_maximum=0.98)


@pytest.fixture
def windows() -> Windows:
    """One-step episodes: the action is plus or minus the observed number, as often the one as the other."""
    side = np.random.default_rng(0).uniform(0.2, 1.0, (1000, 1)).astype(np.float32).repeat(2, axis=0)
    action = side * np.resize([1, -1], (2000, 1)).astype(np.float32)
    return Windows(Episodes({"side": side, "action": action}, np.arange(1, 2001)), ("side",), 1, 2, 1)


def learner(windows: Windows, spec: TrainingSpec = FAST) -> Learner:
    torch.manual_seed(0)
    policy = DiffusionPolicy(SPEC)
    policy.fit(windows)
    return Learner(policy, spec)


def trained(windows: Windows, spec: TrainingSpec = FAST) -> Learner:
    found = learner(windows, spec)
    for _ in train(found, windows):
        pass
    return found


def weights(found: Learner) -> torch.Tensor:
    parameters = (*found.policy.parameters(), *found.average.policy.parameters())
    return torch.cat([p.detach().flatten() for p in parameters])


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_policy_learns_a_conditional_bimodal_distribution(windows, bfloat16):
    """Both modes, in their proportions, at the place that the observation says: what regression cannot do."""
    average = trained(windows, dataclasses.replace(FAST, bfloat16=bfloat16)).average
    torch.manual_seed(1)
    for side in (0.4, 0.9):
        plans = average.policy.plan({"side": torch.full((400, 1, 1), side)})[:, 0, 0]
        assert (plans.abs() - side).abs().median() < 0.1
        assert 0.35 < (plans > 0).float().mean() < 0.65


def test_without_instructions_for_bfloat16_a_training_says_so_and_is_in_float32(windows, monkeypatch, capsys):
    few = dataclasses.replace(FAST, steps=3)
    plain = weights(trained(windows, few))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False})
    assert torch.equal(weights(trained(windows, dataclasses.replace(few, bfloat16=True))), plain)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bfloat16 was asked for, but this cpu has no instructions for it: computing in float32")


def test_with_instructions_for_bfloat16_a_training_uses_them(windows, monkeypatch):
    few = dataclasses.replace(FAST, steps=3)
    plain = weights(trained(windows, few))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    half = weights(trained(windows, dataclasses.replace(few, bfloat16=True)))
    assert 0 < (half - plain).abs().max() < 0.1


def test_a_training_is_compiled_when_it_is_asked_for(windows, monkeypatch):
    """The attempt, at which compilation happens, is a pass of the first step, and changes nothing of the training."""
    asked = []

    def attempted(policy, attempt):
        attempt()
        asked.append(all(p.grad is not None for p in policy.parameters()))
        policy.zero_grad()

    monkeypatch.setattr(loop, "compiled", attempted)
    few = dataclasses.replace(FAST, steps=3)
    plain = weights(trained(windows, few))
    assert not asked
    assert torch.equal(weights(trained(windows, dataclasses.replace(few, compile=True))), plain)
    assert asked == [True]


@pytest.mark.skipif(not shutil.which("g++"), reason="there is no compiler of C++")
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_compiled_training_ends_with_the_weights_of_one_that_is_not(windows, monkeypatch, capsys, bfloat16):
    """A U-Net, compiled for real; its convolutions have gradients of their own, which a compiler must get right."""
    real = torch.cpu.get_capabilities()  # which the compiler asks too, once a process
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {**real, "avx512_bf16": True})
    monkeypatch.setattr("poise.nn.convolution._WIDE", 1)  # the way of large ones, so that small ones take it too
    found, few = [], TrainingSpec(steps=4, batch=32, warmup=1, learning_rate=1e-3, bfloat16=bfloat16)
    spec = dataclasses.replace(SPEC, horizon=4, network=UNet1D(channels=(16,), groups=4, embedding=16))
    episodes = Episodes({"side": windows.observations["side"].numpy(), "action": windows.actions.numpy()}, [1000, 2000])
    data = Windows(episodes, ("side",), 1, 4, 3)
    for compile_ in (False, True):
        torch.manual_seed(0)
        policy = DiffusionPolicy(spec)
        policy.fit(data)
        learned = Learner(policy, dataclasses.replace(few, compile=compile_))
        losses = [now.loss for now in train(learned, data)]
        found.append((torch.tensor(losses), weights(learned)))
        compiled = [m for m in policy.modules() if m._compiled_call_impl is not None]
        assert bool(compiled) == compile_
    assert "goes on without compiling" not in capsys.readouterr().err
    (losses, plain), (other, fast) = found
    torch.testing.assert_close(other, losses, rtol=2e-2 if bfloat16 else 1e-4, atol=0)
    # Adam takes whole steps along gradients that are near zero: 4 steps of 1e-3 either way bound every weight.
    assert (fast - plain).abs().mean() < (5e-4 if bfloat16 else 2e-5)


def test_a_forgetful_training_encodes_twice_for_the_same_gradient(windows):
    found = []
    for forgetful in (False, True):
        torch.manual_seed(0)
        policy, calls = DiffusionPolicy(dataclasses.replace(SPEC, encoder=Vector(width=8))), []
        policy.fit(windows)
        policy.encoder.register_forward_pre_hook(lambda *_, calls=calls: calls.append(None))
        learned = Learner(policy, dataclasses.replace(FAST, steps=3, forgetful=forgetful))
        for _ in train(learned, windows):
            pass
        assert len(calls) == (3 * 8 * 2 if forgetful else 3)  # eight parts of a batch
        found.append(weights(learned))
    torch.testing.assert_close(*found, atol=1e-5, rtol=0)


class Held(TorchDispatchMode):
    """Counts the bytes of tensors that were made and are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.peak, self._made = 0, dict[StorageWeakRef, int]()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        made = function(*arguments, **(keywords or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._made[StorageWeakRef(storage)] = storage.nbytes()
        self._made = {reference: size for reference, size in self._made.items() if not reference.expired()}
        self.peak = max(self.peak, sum(self._made.values()))
        return made


@pytest.mark.parametrize("rows", [40, 3])
def test_a_forgetful_policy_never_has_the_whole_batch_in_its_encoder(rows):
    """Not even at its gradient, which is the one of a policy that keeps everything."""
    torch.manual_seed(0)
    spec = PolicySpec({"eye": (24, 24, 3)}, 1, history=1, horizon=2, execute=1, encoder=CNN(SmallCNN((16, 16, 16))))
    policy = DiffusionPolicy(spec).train()
    seen = {"eye": torch.randint(0, 256, (rows, 1, 24, 24, 3), dtype=torch.uint8)}
    policy.set_constants("eye", torch.full((3,), 1 / 127.5), torch.full((3,), -1.0))
    peaks, gradients = [], []
    for forgetful in (False, True):
        policy.forgetful = forgetful
        policy.zero_grad()
        with Held() as held:
            policy.tokens(seen).square().sum().backward()
        peaks.append(held.peak)
        gradients.append([p.grad.clone() for p in policy.encoder.parameters() if p.grad is not None])
    assert len(gradients[0]) > 6
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5 * rows)
    assert rows < 8 or peaks[1] < 0.4 * peaks[0]


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
    for masked in (True, False):
        objective = Objective(regression, regression.loss, masked)
        assert bool(objective(batch, Draws()) == objective(other, Draws())) == masked


def test_two_runs_are_equal_bit_by_bit(windows):
    short = dataclasses.replace(FAST, steps=20)
    assert torch.equal(weights(trained(windows, short)), weights(trained(windows, short)))


@pytest.mark.parametrize("masked", [False, True])
def test_a_batch_in_parts_has_the_same_gradient(windows, masked):
    """Noise, levels and the mean belong to the whole batch, whatever part of it is computed at a time."""
    short = dataclasses.replace(FAST, steps=20, mask_padding=masked)
    whole = weights(trained(windows, short))
    for parts in (2, 3):
        in_parts = weights(trained(windows, dataclasses.replace(short, accumulate=parts)))
        torch.testing.assert_close(in_parts, whole, atol=1e-6, rtol=0)


def test_draws_of_a_part_are_those_of_the_whole():
    seeded = lambda *part: Draws(torch.Generator().manual_seed(1), *part)  # noqa: E731
    for draw in (
        lambda d, rows: d.normal(rows, 3),
        lambda d, rows: d.uniform(rows, 2),
        lambda d, rows: d.integers(1000, rows),
        lambda d, rows: d.stratified(rows, 4).T,
    ):
        whole = draw(seeded(), 10)
        parts = torch.cat([draw(seeded(0, 10), 3), draw(seeded(3, 10), 7)])
        assert torch.equal(parts, whole)
    once = [[draws.once() for draws in [seeded(*part)] * 3] for part in ((), (0, 10), (3, 10))]
    assert once[0] == once[1] == once[2]
    assert len(set(once[0])) == 3
    assert Draws(level=0.3).stratified(5, 2).tolist() == [[pytest.approx(0.3)] * 5] * 2


def test_every_epoch_sees_every_window_once():
    order = Order(20, 6, seed=3)
    seen = torch.cat([order(step) for step in range(10)])
    for epoch in range(3):
        assert sorted(seen[20 * epoch : 20 * epoch + 20].tolist()) == list(range(20))
    assert seen[:20].tolist() != seen[20:40].tolist()
    assert [Order(20, 6, seed=3)(step).tolist() for step in (7, 0)] == [seen[42:48].tolist(), seen[:6].tolist()]


def test_seeds_differ_in_order_and_noise():
    """PyTorch's generator looks at 32 bits of a seed: numbers beyond them must count too."""
    orders = {tuple(Order(50, 50, seed)(step).tolist()) for seed in (0, 1, 2**32) for step in (0, 1)}
    assert len(orders) == 6
    seeds = {noise_seed(seed, step) for seed in range(20) for step in range(500)}
    assert len(seeds) == 10_000
    assert max(seeds) < 2**32


def test_a_batch_of_more_windows_than_there_are_is_refused():
    with pytest.raises(ValueError, match="batch of 64 for 20 training windows, expected at most as many"):
        Order(20, 64, 0)


def test_a_step_that_is_not_finite_changes_nothing(windows, monkeypatch):
    found, steps = learner(windows, dataclasses.replace(FAST, steps=30, patience=3)), []
    plain, bad = found.policy.loss, {5, 6, 9}
    monkeypatch.setattr(found.policy, "loss", lambda *a: plain(*a) * (torch.nan if found.step in bad else 1.0))
    before = weights(found)
    for now in train(found, windows):
        after = weights(found)
        assert torch.equal(before, after) == bool(now.skipped)
        before = after
        if now.skipped:
            steps.append(now.step)
            assert torch.tensor(now.skipped).equal(Order(len(windows), FAST.batch, FAST.seed)(now.step - 1))
    assert steps == [6, 7, 10]
    assert found.step == 30


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_a_training_keeps_what_it_frees():
    """Memory that was freed is not handed back, so that to take it again faults no page."""
    code = """
import resource, torch
from poise.training.allocation import keep_freed
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        [torch.ones(2**18) for _ in range(32)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults())
keep_freed()
faults()
print(faults())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before > 20 * 100
    assert after < 100


def test_the_time_of_a_step_is_divided_among_its_phases(windows):
    *_, last = train(learner(windows, dataclasses.replace(FAST, steps=5)), windows)
    assert set(last.shares) == {"data", "forward", "backward", "optimiser", "else"}
    assert sum(last.shares.values()) == pytest.approx(1)
    assert last.shares["else"] < 0.5


def test_time_between_steps_is_in_the_rate_and_in_a_share_of_its_own(windows, monkeypatch):
    """Validation, and whatever the caller does, such as saving: both count as seconds."""
    monkeypatch.setattr(loop, "_validated", lambda *arguments: time.sleep(0.1))
    spec = dataclasses.replace(FAST, steps=5, validate_every=2)
    for last in train(learner(windows, spec), windows, windows):
        time.sleep(0.05 if last.step < 5 else 0.0)
    assert sum(last.shares.values()) == pytest.approx(1)
    assert 0.4 <= last.shares["else"] * last.seconds < 0.4 + 0.2 * last.seconds


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
    spec = TrainingSpec(steps=10, batch=32, warmup=4, learning_rate=1e-3, validate_every=4)
    steps = list(train(learner(windows, spec), windows, windows))
    assert [s.step for s in steps if s.validation is not None] == [4, 8, 10]
    assert [s.learning_rate for s in steps[:2]] == pytest.approx([0.25e-3, 0.5e-3 * 0.5 * (1 + math.cos(math.pi / 10))])
    assert steps[-1].fraction == 1
    assert steps[-1].samples == 320


def test_validation_uses_the_same_noise_every_time(windows):
    policy = learner(windows).average.policy
    first = validate(policy, windows, FAST)
    torch.manual_seed(99)
    assert validate(policy, windows, FAST) == first


def test_validation_tells_levels_of_noise_apart(windows):
    """The mean of the losses at the levels is the loss, and they are listed from the least noise on."""
    found = validate(trained(windows).average.policy, windows, FAST)
    assert found.loss == pytest.approx(sum(loss for _, loss in found.levels) / len(found.levels))
    log_snr = [level for level, _ in found.levels]
    assert log_snr == sorted(log_snr, reverse=True)
    assert len({loss for _, loss in found.levels}) == len(found.levels)


def test_the_action_error_is_that_of_the_best_of_several_plans(windows):
    """Both ways are right: a policy that takes either has a small error, one that takes the mean has not."""
    diffusion = validate(trained(windows).average.policy, windows, FAST).action_error
    torch.manual_seed(0)
    regression = Regression(SPEC)
    regression.fit(windows)
    found = Learner(regression, FAST)
    for _ in train(found, windows):
        pass
    assert diffusion < 0.15
    assert validate(found.average.policy, windows, FAST).action_error > 0.4


def test_minutes_end_a_run(windows):
    last = list(train(learner(windows, TrainingSpec(steps=10**9, minutes=1 / 60, batch=32)), windows))[-1]
    assert last.fraction == 1
    assert 0.9 < last.seconds < 10
    assert last.learning_rate < 1e-4


def test_bad_training_is_explained(windows):
    policy = DiffusionPolicy(SPEC)
    with pytest.raises(ValueError, match="'side' has no statistics"):
        Learner(policy, FAST)
    policy.fit(windows)
    with torch.no_grad():
        next(iter(policy.diffusion.parameters())).fill_(torch.nan)
    with pytest.raises(
        FloatingPointError,
        match="at step 3, the last of 3 such steps in a row, expected finite numbers: check the data, or begin",
    ):
        list(train(Learner(policy, dataclasses.replace(FAST, patience=3)), windows))


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("steps", 0, "at least 1"),
        ("warmup", -1, "at least 0"),
        ("learning_rate", -1e-3, "at least 0"),
        ("learning_rate", math.nan, "at least 0"),
        ("minutes", 0.0, "more than 0"),
        ("minutes", -1.0, "more than 0"),
        ("clip", 0.0, "more than 0"),
        ("clip", -1.0, "more than 0"),
    ],
)
def test_numbers_that_train_nothing_are_refused(field, value, expected):
    with pytest.raises(ValueError, match=rf"TrainingSpec got {field}={value}, expected {expected}"):
        TrainingSpec(**{field: value})


def test_without_a_warm_up_the_rate_begins_at_its_peak(windows):
    spec = TrainingSpec(steps=4, batch=32, warmup=0, learning_rate=1e-3)
    rates = [now.learning_rate for now in train(learner(windows, spec), windows)]
    assert rates == pytest.approx([0.5e-3 * (1 + math.cos(math.pi * step / 4)) for step in range(4)])
