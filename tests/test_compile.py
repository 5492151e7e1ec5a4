"""A compiled policy plans from the same noise what the eager one plans, and leaves it alone."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from poise.cli.running import SAMPLERS
from poise.data import Episodes, Windows
from poise.guidance import identity, vjp
from poise.nn import MLP, UNet1D
from poise.policies import Chunking, DiffusionPolicy, PolicySpec, Request, WarmStart, compiled, compiling
from poise.policies.graphs import Graphs
from poise.policies.tried import tried
from poise.sampling import DDIM, DDPM, Euler, per_sample
from poise.training.compiling import compiled as compiled_for_training

SMALL = MLP(width=32, depth=1, condition=16)
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA")


def fitted(network, **fields):
    torch.manual_seed(0)
    policy = DiffusionPolicy(PolicySpec({"o": (3,)}, 2, horizon=8, execute=4, network=network, evaluations=4, **fields))
    generator = np.random.default_rng(0)
    rows = {"o": generator.normal(size=(64, 3)), "action": generator.normal(size=(64, 2))}
    windows = Windows(Episodes(rows, np.array([64])), ("o",), 2, 8, 0)
    policy.fit(windows)
    for parameter in policy.parameters():  # norms and gates that begin at one or zero would hide what they do
        parameter.data += 0.05 * torch.randn(parameter.shape)
    return policy.eval(), windows[torch.arange(5)].observation


def rows(observation, count):
    return {name: values[:count] for name, values in observation.items()}


def gap(one, other, observation, count=1):
    seen, seeds = rows(observation, count), list(range(count))
    return (one.plan(seen, per_sample(seeds)) - other.plan(seen, per_sample(seeds))).abs().max().item()


@pytest.fixture(scope="module")
def pair():
    policy, observation = fitted(SMALL)
    before = copy.deepcopy(policy.state_dict())
    fast = compiled(policy)
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    return policy, fast, observation


def calls(fast, monkeypatch):
    """Counts the eager calls of the network inside a compiled policy."""
    counted, inner = [], fast.diffusion.network.network
    monkeypatch.setattr(inner, "forward", lambda *given: counted.append(1) or type(inner).forward(inner, *given))
    return counted


@pytest.mark.parametrize("count", [1, 3])
def test_the_plan_is_the_eager_one(pair, monkeypatch, count):
    policy, fast, observation = pair
    eager = calls(fast, monkeypatch)
    assert gap(policy, fast, observation, count) < 1e-5
    assert len(eager) == (0 if count == 1 else 4)  # other batches than those asked for run eagerly


def test_a_unet_plans_as_eagerly(monkeypatch):
    """Compiled, its convolutions, their strides and what doubles the steps are other code: products of windows."""
    # Trying templates takes a minute, and the MLP has done it.
    monkeypatch.setitem(compiling._WAYS, torch.float32, ({},))
    policy, observation = fitted(UNet1D(channels=(8, 16), groups=4, kernel=3, embedding=8))
    fast = compiled(policy)
    eager = calls(fast, monkeypatch)
    assert gap(policy, fast, observation) < 1e-5
    assert not eager


def test_every_sampler_plans_as_eagerly(pair):
    policy, fast, observation = pair
    for name, sampler in SAMPLERS.items():
        spent = 6 if sampler.evaluations else None
        one, other = (which.using(sampler=sampler, evaluations=spent) for which in (policy, fast))
        # Some divide by a small alpha, and an adaptive one may take another stride for a rounding.
        assert gap(one, other, observation) < (1e-4 if sampler.evaluations else 1e-3), name


def test_guides_warm_starts_and_gradients_work(pair):
    policy, fast, observation = pair

    def halved(denoise, observation):
        return lambda x, t: 0.5 * denoise(x, t)

    assert gap(policy.using(guide=halved), fast.using(guide=halved), observation) < 1e-5
    assert gap(policy.using(guide=halved), fast, observation) > 1e-3
    seen, previous = rows(observation, 1), torch.zeros(1, 8, 2)
    again = [which.replan(seen, previous, 0.5, per_sample([3])) for which in (policy, fast)]
    torch.testing.assert_close(again[0], again[1], atol=1e-5, rtol=0)
    density = [which.log_prob(seen, previous).value for which in (policy, fast)]
    torch.testing.assert_close(density[0], density[1], atol=1e-3, rtol=0)


def test_robots_that_plan_alone_or_together_keep_their_noise(pair):
    policy, fast, observation = pair
    acted = []
    for which in (policy, fast):
        control = WarmStart(which, robots=2, evaluations=2)
        control.reset([7, 8])
        seen = {"o": observation["o"][:2, -1].numpy()}
        acted.append(
            [control.act(seen, which=mask) for mask in (np.array([True, False]), None, None, None, None, None)]
        )
    np.testing.assert_allclose(acted[0], acted[1], atol=1e-5)


def test_the_method_of_modules_is_refused_with_the_remedy(pair):
    """PyTorch's own compiles what no plan goes through, and says nothing."""
    for which in pair[:2]:
        with pytest.raises(NotImplementedError, match=r"no plan goes through: take fast = poise.policies.compiled\("):
            which.compile(fullgraph=True)


def test_real_time_chunking_runs_eagerly_only_where_it_differentiates(pair, monkeypatch):
    policy, fast, observation = pair
    one = np.zeros(1, int)
    previous = np.zeros((1, 8, 2), np.float32)
    eager = calls(fast, monkeypatch)
    for pull, count in ((vjp, 4), (identity, 0)):
        made, before = [], len(eager)
        for which in (policy, fast):
            request = Request(one, rows(observation, 1), per_sample([0]), previous, one + 4, one + 1, *[one] * 4)
            made.append(Chunking(pull=pull)(which, request))
        np.testing.assert_allclose(*made, atol=1e-5)
        assert len(eager) - before == count


def test_a_compiled_policy_is_not_saved(pair):
    with pytest.raises(ValueError, match="save the policy that it was compiled from"):
        pair[1].state_dict()


def test_bfloat16_plans_nearby_from_half_the_bytes(monkeypatch):
    real = torch.cpu.get_capabilities()  # which the compiler asks too, once a process
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {**real, "avx512_bf16": True})
    policy, observation = fitted(SMALL, sampler=DDIM())
    fast = compiled(policy, weights=torch.bfloat16)
    assert 0 < gap(policy, fast, observation) < 0.05
    assert 0 < gap(policy, fast, observation, 3) < 0.05
    kinds = {p.dtype for p in fast.diffusion.network.parameters() if p.ndim > 1}
    assert kinds == {torch.bfloat16}


def test_without_instructions_for_bfloat16_weights_stay_float32(monkeypatch, capsys):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    monkeypatch.setattr(compiling, "tried", lambda what, ways: False)
    fast = compiled(fitted(SMALL)[0], weights=torch.bfloat16)
    assert "no instructions for it: computing in float32" in capsys.readouterr().err
    assert {p.dtype for p in fast.diffusion.network.parameters()} == {torch.float32}


def test_what_does_not_compile_runs_eagerly_and_says_so(monkeypatch, capsys):
    policy, observation = fitted(SMALL)

    def refuse(*given, **settings):
        raise RuntimeError("no compiler\nand a long story")

    monkeypatch.setattr(torch, "compile", lambda *given, **settings: refuse)
    fast = compiled(policy, [1, 3])
    assert capsys.readouterr().err == "planning goes on without compiling, which failed: RuntimeError: no compiler\n"
    assert gap(policy, fast, observation, 3) == 0


@pytest.mark.parametrize(("batches", "weights"), [((), torch.float32), ((0,), torch.float32), ((1,), torch.float16)])
def test_what_cannot_be_compiled_is_refused(batches, weights):
    policy, _ = fitted(SMALL)
    with pytest.raises(ValueError, match="expected batch sizes of at least 1, and torch.float32 or torch.bfloat16"):
        compiled(policy, batches, weights)


def test_without_statistics_nothing_is_compiled():
    with pytest.raises(ValueError, match="statistics"):
        compiled(DiffusionPolicy(PolicySpec({"o": (3,)}, 2, network=SMALL)))


def test_attempts_end_with_the_first_that_goes_through(capsys):
    done = []

    def fails():
        done.append("failed")
        raise RuntimeError("no")

    before = torch.random.get_rng_state()
    assert tried("this", [fails, lambda: done.append(torch.randn(1)), fails])
    assert len(done) == 2
    assert torch.equal(torch.random.get_rng_state(), before)
    assert capsys.readouterr().err == ""


def test_training_shares_the_fall_back(capsys):
    policy, _ = fitted(SMALL)

    def fails():
        raise RuntimeError("no")

    assert not compiled_for_training(policy, fails)
    assert capsys.readouterr().err == "training goes on without compiling, which failed: RuntimeError: no\n"


def test_a_loop_that_cannot_be_captured_runs_eagerly_with_its_own_noise(monkeypatch, capsys):
    """Without a GPU the capture fails, which costs a line once, and no noise."""

    def fails():
        raise RuntimeError("no GPU")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", fails)
    policy, observation = fitted(SMALL, sampler=DDPM())
    fast = copy.deepcopy(policy)
    fast.loop = Graphs([1])
    assert gap(policy, fast, observation) == gap(policy, fast, observation) == gap(policy, fast, observation, 2) == 0
    assert capsys.readouterr().err.count("planning goes on without compiling") == 1


@CUDA
@pytest.mark.parametrize("sampler", [DDIM(), DDPM(), Euler()], ids=str)
def test_a_captured_loop_plans_as_eagerly(sampler):
    policy, observation = fitted(UNet1D(channels=(16, 32), kernel=3, embedding=16), sampler=sampler)
    policy, observation = policy.to("cuda"), {name: values.to("cuda") for name, values in observation.items()}
    fast = compiled(policy, [1, 3])
    for _ in range(3):
        for count in (1, 2, 3):
            assert gap(policy, fast, observation, count) < 1e-5
    nn.init.constant_(fast.diffusion.network.network.final_conv[1].bias, torch.nan)
    with pytest.raises(ValueError, match="NaN or infinity"):
        fast.plan(rows(observation, 1))
