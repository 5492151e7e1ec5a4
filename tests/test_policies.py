import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from poise.data import Episodes, Normaliser, Standard, Windows
from poise.denoisers import Gaussian
from poise.likelihood import Rademacher
from poise.nn import MLP, UNet1D, Vector
from poise.plain import concrete, from_plain, to_plain
from poise.policies import (
    DiffusionPolicy,
    NearestNeighbour,
    Policy,
    PolicySpec,
    RecedingHorizon,
    Regression,
    Relative,
    load,
    load_checkpoint,
)
from poise.sampling import DDIM, RK4, DormandPrince, DPMSolverPP, Heun, UniformLogSNR, per_sample
from poise.schedules import Schedule, Tabulated, VPCosine
from poise.testing import check_encoder, check_network
from poise.training import Learner, TrainingSpec, train

SMALL = MLP(width=32, depth=2, condition=16)
SPEC = PolicySpec(observations={"arm.pose": (3,), "grip": (1,)}, action=2, horizon=8, execute=4, network=SMALL)


@pytest.fixture
def episodes() -> Episodes:
    rng = np.random.default_rng(0)
    features = {
        "arm.pose": rng.normal(size=(90, 3)),
        "grip": rng.normal(size=(90, 1)),
        "action": rng.normal(size=(90, 2)),
    }
    return Episodes({k: v.astype(np.float32) for k, v in features.items()}, np.array([30, 60, 90]))


def windows_of(episodes: Episodes, spec: PolicySpec) -> Windows:
    return Windows(episodes, tuple(spec.observations), spec.history, spec.horizon, spec.horizon - 1)


@pytest.fixture
def policy(episodes) -> DiffusionPolicy:
    torch.manual_seed(0)
    policy = DiffusionPolicy(SPEC)
    policy.fit(windows_of(episodes, SPEC))
    return policy.eval()


def observation(batch: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "arm.pose": torch.randn(batch, 2, 3, generator=generator),
        "grip": torch.randn(batch, 2, 1, generator=generator),
    }


@pytest.mark.parametrize(
    "spec", [SMALL, MLP(width=16, depth=1), UNet1D((16, 32), groups=4), UNet1D((8, 16, 24), kernel=3)]
)
def test_networks_conform(spec):
    check_network(spec)


@pytest.mark.parametrize("spec", [Vector(), Vector(width=12)])
def test_encoders_conform(spec):
    check_encoder(spec)


def test_plans_have_their_shape_and_depend_on_the_seed_alone(policy):
    together = policy.plan(observation(), per_sample([1, 2, 3]))
    assert together.shape == (3, 8, 2)
    alone = policy.plan({k: v[1:2] for k, v in observation().items()}, per_sample([2]))
    torch.testing.assert_close(alone[0], together[1], rtol=0, atol=1e-5)
    assert not torch.allclose(policy.plan(observation(), per_sample([4, 5, 6])), together)


def test_the_sampler_is_chosen_after_training(policy):
    for sampler in (DDIM(), DDIM(eta=1.0), DPMSolverPP(), Heun()):
        for evaluations in (1, 5, 8):
            chosen = policy.using(sampler=sampler, grid=UniformLogSNR(), evaluations=evaluations)
            *_, last = chosen.trace(observation(), per_sample([1, 2, 3]))
            assert last.evaluations == evaluations
    assert policy.spec == SPEC


def test_temperature_zero_gives_one_plan_an_observation(policy):
    cold = policy.using(temperature=0.0)
    assert torch.equal(cold.plan(observation(), per_sample([1, 2, 3])), cold.plan(observation(), per_sample([4, 5, 6])))


def test_plans_stay_within_the_bound_of_the_demonstrations(policy, episodes):
    plans = policy.plan({k: 100 * v for k, v in observation(64).items()}, per_sample(range(64)))
    actions = torch.as_tensor(episodes.features["action"])
    assert (plans >= actions.amin(0) - 1e-4).all()
    assert (plans <= actions.amax(0) + 1e-4).all()


def test_relative_actions_move_with_their_feature(episodes):
    relative = Episodes({**episodes.features, "tool": episodes.features["action"] * 0.5}, episodes.ends)
    spec = dataclasses.replace(
        SPEC, observations={"tool": (2,)}, space=Relative("tool"), action_scaling=Standard(), bound=None, history=1
    )
    policy = Regression(spec)
    policy.fit(windows_of(relative, spec))
    torch.nn.init.zeros_(policy.network.exit[1].weight)
    torch.nn.init.zeros_(policy.network.exit[1].bias)
    here, there = ({"tool": torch.full((1, 1, 2), v)} for v in (0.0, 5.0))
    torch.testing.assert_close(policy.plan(there) - policy.plan(here), torch.full((1, 8, 2), 5.0))
    batch = windows_of(relative, spec)[torch.arange(10)]
    torch.testing.assert_close(policy.decoded(policy.encoded(batch), batch.observation), batch.actions)


def test_regression_learns_the_conditional_mean(episodes):
    """Two equally likely actions, plus and minus one: least squares plans their mean, zero."""
    sign = np.where(np.arange(90) // 30 % 2 == 0, 1.0, -1.0).astype(np.float32)
    bimodal = Episodes(
        {**{k: np.zeros_like(v) for k, v in episodes.features.items()}, "action": np.stack([sign, sign], 1)},
        [30, 60, 90],
    )
    two = bimodal.select([0, 1])
    policy = Regression(SPEC)
    windows = windows_of(two, SPEC)
    policy.fit(windows)
    for _ in train(Learner(policy, TrainingSpec(steps=150, batch=32, warmup=10, learning_rate=3e-3)), windows):
        pass
    assert policy.eval().plan({k: 0 * v for k, v in observation(1).items()}).abs().max() < 0.2


def test_nearest_neighbour_returns_what_followed(episodes):
    policy, windows = NearestNeighbour(SPEC), windows_of(episodes, SPEC)
    policy.fit(windows)
    policy.remember(windows)
    batch = windows[torch.tensor([3, 40, 71])]
    torch.testing.assert_close(policy.plan(batch.observation), batch.actions, rtol=1e-4, atol=1e-5)
    assert policy.loss(batch).max() < 1e-8


class Counter(Regression):
    """Plans 0, 1, 2, ... plus the first observed number, so that what was executed can be read off."""

    calls: int = 0

    def trace(self, observation, noise=None):
        for state in super().trace(observation, noise):
            self.calls += 1
            steps = torch.arange(8.0)[None, :, None].expand_as(state.x)
            yield state._replace(x=steps + 100 * observation["grip"][:, -1:, :1])


def counter(episodes) -> Counter:
    policy = Counter(SPEC)
    policy.fit(windows_of(episodes, SPEC))
    return policy


def step_of(grip: float, robots: int = 1) -> dict[str, np.ndarray]:
    return {"arm.pose": np.zeros((robots, 3), np.float32), "grip": np.full((robots, 1), grip, np.float32)}


def test_receding_horizon_executes_and_plans_again(episodes):
    policy = counter(episodes)
    control = RecedingHorizon(policy)
    got, fresh = [], []
    for t in range(9):
        got.append(control.act(step_of(t))[0, 0])
        fresh.append(bool(control.fresh[0]))
    assert got == [0, 1, 2, 3, 400, 401, 402, 403, 800]
    assert fresh == [t % 4 == 0 for t in range(9)]
    assert policy.calls == 3
    control.reset([0])
    assert control.act(step_of(7))[0, 0] == 700


def test_history_holds_the_newest_steps_and_starts_full(episodes):
    seen = []

    class Spy(Counter):
        def trace(self, observation, noise=None):
            seen.append(observation["grip"][0, :, 0].tolist())
            yield from super().trace(observation, noise)

    policy = Spy(SPEC)
    policy.fit(windows_of(episodes, SPEC))
    control = RecedingHorizon(policy)
    for t in range(5):
        control.act(step_of(t))
    assert seen == [[0, 0], [3, 4]]


def test_robots_are_independent_of_each_other(policy):
    rng = np.random.default_rng(0)
    steps = [{"arm.pose": rng.normal(size=(2, 3)), "grip": rng.normal(size=(2, 1))} for _ in range(10)]
    both, one = RecedingHorizon(policy, 2), RecedingHorizon(policy, 1)
    both.reset([5, 6])
    one.reset([6])
    for t, step in enumerate(steps):
        if t == 3:  # the first robot starts over; the second must not notice
            both.reset([9], np.array([True, False]))
        expected = one.act({k: v[1:] for k, v in step.items()})
        np.testing.assert_allclose(both.act(step)[1], expected[0], rtol=0, atol=1e-5)


def test_checkpoints_round_trip(policy, tmp_path):
    spec = dataclasses.replace(
        SPEC, schedule=Tabulated.squared_cosine(20), encoder=Vector(8), sampler=DDIM(eta=0.5), grid=UniformLogSNR()
    )
    other = DiffusionPolicy(spec)
    for key, value in policy.state_dict().items():
        if "normaliser" in key:
            other.state_dict()[key].copy_(value)
    file = other.eval().save(tmp_path / "run", {"data": "mine"})
    again, notes = load_checkpoint(tmp_path / "run")
    assert file == tmp_path / "run/policy.safetensors"
    assert [p.name for p in file.parent.iterdir()] == ["policy.safetensors"]
    assert again.spec == spec
    assert notes == {"data": "mine"}
    noise = [1, 2, 3]
    assert torch.equal(again.plan(observation(), per_sample(noise)), other.plan(observation(), per_sample(noise)))


def test_nearest_neighbour_checkpoints_hold_the_demonstrations(episodes, tmp_path):
    policy, windows = NearestNeighbour(SPEC), windows_of(episodes, SPEC)
    policy.fit(windows)
    policy.remember(windows)
    policy.save(tmp_path)
    again = load(tmp_path)
    assert torch.equal(again.plan(observation()), policy.plan(observation()))


def header_of(file) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return dict(opened.metadata())


def test_bad_checkpoints_are_explained(policy, tmp_path):
    file = policy.save(tmp_path)
    header, whole = header_of(file), file.read_bytes()
    tensors = {k: v.clone() for k, v in load_file(file).items()}  # the file, mapped into memory, is overwritten below
    with pytest.raises(FileNotFoundError, match="does not exist, expected a checkpoint"):
        load_checkpoint(tmp_path / "none.safetensors")

    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is truncated or no safetensors file"):
        load_checkpoint(file)

    name = "action_normaliser.scale"
    save_file({k: v for k, v in tensors.items() if k != name}, file, header)
    with pytest.raises(ValueError, match=r"tensors \['action_normaliser.scale'\] are missing"):
        load_checkpoint(file)

    save_file({**tensors, name: tensors[name] * 2}, file, header)
    with pytest.raises(ValueError, match="differ from those that were written"):
        load_checkpoint(file)

    described = json.loads(header["policy"])
    described["spec"]["schedule"] = {"type": "Evil", "command": "rm"}
    save_file(tensors, file, {**header, "policy": json.dumps(described)})
    with pytest.raises(ValueError, match=r"class name 'Evil', expected one of \["):
        load_checkpoint(file)

    save_file(tensors, file, {**header, "policy": json.dumps({**described, "type": "os.system"})})
    with pytest.raises(ValueError, match="policy class 'os.system', expected one of"):
        load_checkpoint(file)

    save_file(tensors, file)
    with pytest.raises(ValueError, match="has the format None, expected 'poise 1'"):
        load_checkpoint(file)


def test_a_failed_save_keeps_the_old_checkpoint(policy, tmp_path, monkeypatch):
    file = policy.save(tmp_path)
    before = file.read_bytes()
    monkeypatch.setattr("poise.policies.saving.os.fsync", lambda fd: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        policy.save(tmp_path)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_specs_are_plain_data_and_back():
    known = concrete(Schedule)
    for schedule in (VPCosine(margin=0.01), Tabulated.linear(5)):
        assert from_plain(json.loads(json.dumps(to_plain(schedule))), known) == schedule
    with pytest.raises(ValueError, match=r"fields \['gamma'\] of VPCosine"):
        from_plain({"type": "VPCosine", "gamma": 1}, known)
    with pytest.raises(TypeError, match="expected dataclasses, mappings"):
        to_plain(object())


KINDS = {name: kind for name, kind in concrete(Policy).items() if kind.__module__.startswith("poise.")}


@pytest.mark.parametrize("name", KINDS)
def test_a_policy_without_statistics_says_so_whatever_it_is_asked_for(name, episodes, tmp_path):
    policy, batch = KINDS[name](SPEC).eval(), windows_of(episodes, SPEC)[torch.arange(3)]
    asked = {"plan": lambda: policy.plan(batch.observation), "loss": lambda: policy.loss(batch)}
    asked["save"] = lambda: policy.save(tmp_path / "run")
    if isinstance(policy, DiffusionPolicy):
        asked["replan"] = lambda: policy.replan(batch.observation, batch.actions, 0.5)
        asked["log_prob"] = lambda: policy.log_prob(batch.observation, batch.actions)
    for call in asked.values():
        with pytest.raises(ValueError, match=r"('arm.pose' has no statistics|has no demonstrations).*policy\.fit\("):
            call()
    assert not (tmp_path / "run").exists()
    policy.fit(windows_of(episodes, SPEC))
    policy.constants("grip")[0].fill_(torch.nan)
    with pytest.raises(ValueError, match="'grip' has no statistics"):
        asked["plan"]()


def test_that_there_are_statistics_is_found_once_and_costs_a_plan_nothing(policy, monkeypatch):
    policy.ready()
    monkeypatch.setattr(Normaliser, "check", lambda self: pytest.fail("a control step has no time for this"))
    policy.plan(observation())
    policy.using(evaluations=2).plan(observation())


def test_a_nearest_neighbour_without_demonstrations_names_what_is_missing(episodes, tmp_path):
    policy, windows = NearestNeighbour(SPEC), windows_of(episodes, SPEC)
    policy.fit(windows)
    policy.save(tmp_path)
    for empty in (policy, load(tmp_path)):
        with pytest.raises(ValueError, match=r"NearestNeighbour has no demonstrations .*: call policy.remember"):
            empty.plan(observation())
        with pytest.raises(ValueError, match=r"call policy.remember"):
            empty.loss(windows[torch.arange(3)])


def test_bad_observations_are_explained(policy):
    with pytest.raises(
        ValueError, match=r"\['grip'\], expected also 'arm.pose', which is missing: give .* or list it in"
    ):
        policy.plan({"grip": torch.zeros(1, 2, 1)})
    with pytest.raises(ValueError, match=r"'arm.pose' of shape \(1, 2, 4\), expected \(batch, 2, 3\): a batch of hist"):
        policy.plan({"arm.pose": torch.zeros(1, 2, 4), "grip": torch.zeros(1, 2, 1)})
    with pytest.raises(ValueError, match="NaN or infinity in feature 'grip'"):
        policy.plan({"arm.pose": torch.zeros(1, 2, 3), "grip": torch.full((1, 2, 1), torch.nan)})
    with pytest.raises(ValueError, match=r"batches of \{'arm.pose': 1, 'grip': 2\} rows, expected one number"):
        policy.plan({"arm.pose": torch.zeros(1, 2, 3), "grip": torch.zeros(2, 2, 1)})
    control = RecedingHorizon(policy)
    with pytest.raises(ValueError, match=r"'grip' of shape \(3,\), expected \(1, 1\): one current observation"):
        control.act({"arm.pose": np.zeros((1, 3)), "grip": np.zeros(3)})


def test_bad_specs_are_explained(episodes):
    with pytest.raises(ValueError, match="horizon=8 and execute=9, expected 1 <= execute <= horizon"):
        dataclasses.replace(SPEC, execute=9)
    with pytest.raises(ValueError, match="history=0"):
        dataclasses.replace(SPEC, history=0)
    with pytest.raises(ValueError, match=r"expected sizes of at least 1: the shape of a single number is \(1,\)"):
        dataclasses.replace(SPEC, observations={"grip": ()})
    for wrong in ({"bound": -1.0}, {"bound": 0.0}, {"temperature": -0.1}):
        with pytest.raises(ValueError, match="expected a bound above 0 or None, and a temperature of at least 0"):
            dataclasses.replace(SPEC, **wrong)
    with pytest.raises(ValueError, match="3 resolutions got horizon=6, expected a multiple of 4"):
        DiffusionPolicy(dataclasses.replace(SPEC, network=UNet1D(), horizon=6))
    wrong = dataclasses.replace(SPEC, observations={"arm.pose": (3,), "grip": (2,)})
    with pytest.raises(ValueError, match=r"feature 'grip' has the shape \(1,\), expected \(2,\)"):
        DiffusionPolicy(wrong).fit(windows_of(episodes, wrong))
    more = dataclasses.replace(SPEC, observations={**SPEC.observations, "wrist": (3,)})
    with pytest.raises(ValueError, match=r"\['action', 'arm.pose', 'grip'\], expected also 'wrist': name it among"):
        DiffusionPolicy(more).fit(windows_of(episodes, SPEC))
    with pytest.raises(ValueError, match="'arm.pose' has no statistics"):
        RecedingHorizon(DiffusionPolicy(SPEC))


@pytest.mark.parametrize("units", [1.0, 10.0])
def test_log_prob_is_the_conditional_density_in_the_units_of_the_data(units, monkeypatch):
    """Demonstrations a = W o + noise: their exact denoiser in the place of the network, for actions 1 or 10 times."""
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    spec = dataclasses.replace(SPEC, horizon=3, execute=1, history=1, action_scaling=Standard())
    weight = torch.randn(1, 2, generator=generator, dtype=torch.float64)
    features = {"arm.pose": rng.normal(size=(90, 3)), "grip": rng.normal(size=(90, 1))}
    features["action"] = units * (features["grip"] @ weight.numpy() + 0.3 * rng.normal(size=(90, 2)) + [3.0, -1.0])
    policy = DiffusionPolicy(spec)
    policy.fit(windows_of(Episodes(features, np.array([30, 60, 90])), spec))
    policy = policy.double().eval()
    seen = {
        name: torch.randn(4, 1, *shape, generator=generator, dtype=torch.float64)
        for name, shape in spec.observations.items()
    }
    mean = units * (seen["grip"] @ weight + torch.tensor([3.0, -1.0])).expand(4, 3, 2)
    deviation = units * torch.tensor([[0.3, 0.5], [0.2, 0.4], [0.1, 0.7]], dtype=torch.float64)
    actions = mean + deviation * torch.randn(4, 3, 2, generator=generator, dtype=torch.float64)

    scale, level, start = policy.action_normaliser.scale, spec.schedule.at(0.0), spec.schedule.at(1.0)
    exact = Gaussian(spec.schedule, policy.action_normaliser(mean), (scale * deviation).square())
    monkeypatch.setattr(policy.diffusion, "given", lambda tokens: exact)
    found = policy.log_prob(seen, actions)

    def marginal(level):  # of normalised plans
        spread = (level.alpha**2 * exact.variance + level.sigma**2).sqrt()
        return torch.distributions.Normal(level.alpha * exact.mean, spread)

    x = policy.action_normaliser(actions)
    latent = exact.flow(x, 0.0, 1.0)
    density = marginal(level).log_prob(x).sum((1, 2)) + 3 * scale.log().sum()
    prior = torch.distributions.Normal(0.0, np.hypot(start.alpha, start.sigma)).log_prob(latent)
    shift = (prior - marginal(start).log_prob(latent)).sum((1, 2))  # the known error of the start
    torch.testing.assert_close(found.value, density + shift, rtol=0, atol=1e-3)
    assert shift.abs().max() < 0.05
    # The noise of t = 0 aside, it is the density of the demonstrations.
    torch.testing.assert_close(
        found.value, torch.distributions.Normal(mean, deviation).log_prob(actions).sum((1, 2)), rtol=0, atol=0.06
    )


def test_log_prob_shifts_with_the_units_alone(policy):
    """Actions in units ten times smaller: the density falls by log 10 an entry."""
    actions = torch.randn(3, 8, 2, generator=torch.Generator().manual_seed(0)).double()
    policy = policy.double()
    seen = {name: values.double() for name, values in observation().items()}
    value = policy.log_prob(seen, actions, solver=RK4(), steps=4).value
    policy.action_normaliser.scale /= 10
    other = policy.log_prob(seen, 10 * actions, solver=RK4(), steps=4).value
    torch.testing.assert_close(other, value - 16 * np.log(10))


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # Mish's derivative, under vmap
@pytest.mark.parametrize(("network", "probes"), [(SMALL, 256), (UNet1D((8, 16), groups=4), 32)], ids=["MLP", "UNet1D"])
def test_log_prob_of_networks_by_every_divergence_and_solver(network, probes, episodes):
    torch.manual_seed(0)
    spec = dataclasses.replace(SPEC, network=network, schedule=VPCosine(margin=0.1))
    policy = DiffusionPolicy(spec)
    policy.fit(windows_of(episodes, spec))
    for parameter in policy.diffusion.parameters():  # gates begin at zero
        torch.nn.init.normal_(parameter, std=0.15) if parameter.abs().sum() == 0 else None
    actions = torch.randn(2, 8, 2, generator=torch.Generator().manual_seed(0))
    exact = policy.eval().log_prob(observation(2), actions, solver=RK4(), steps=2)
    signs = Rademacher(probes, torch.Generator().manual_seed(0))
    found = policy.log_prob(observation(2), actions, signs, RK4(), 2)
    assert found.evaluations == exact.evaluations == 8
    assert exact.standard_error.abs().max() == 0
    assert (found.standard_error > 0).all()
    assert ((found.value - exact.value).abs() < 4 * found.standard_error + 1e-3).all()
    assert not exact.value.requires_grad
    if network == SMALL:
        adaptive = policy.log_prob(observation(2), actions, solver=DormandPrince(1e-4, 1e-4))
        fine = policy.log_prob(observation(2), actions, solver=RK4(), steps=24)
        torch.testing.assert_close(adaptive.value, fine.value, rtol=0, atol=0.05)


def test_the_spectrum_is_that_of_normalised_plans(policy, episodes):
    windows = windows_of(episodes, SPEC)
    plans = policy.encoded(windows[torch.arange(len(windows))]).flatten(1).double().numpy()
    got = policy.spectrum(windows)
    assert got.shape == (16,)
    np.testing.assert_allclose(got, np.linalg.eigvalsh(np.cov(plans.T)).clip(0), rtol=1e-5, atol=1e-9)
    assert got.sum().item() == pytest.approx(np.var(plans, axis=0, ddof=1).sum())
