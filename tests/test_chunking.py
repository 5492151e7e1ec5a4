"""Real-time chunking against closed forms, the paper's loop and, where POISE_PEERS names a venv, LeRobot's own."""

import dataclasses
import importlib
import itertools
import math
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from test_control import HORIZON, at, identity, small
from test_networks import NETWORKS

from poise.evaluation import Interval
from poise.evaluation.paired import rate_difference
from poise.guidance import clipped, vjp
from poise.guidance import identity as same
from poise.nn import MLP
from poise.policies import (
    Absolute,
    Chunking,
    Delta,
    DiffusionPolicy,
    ExponentialMask,
    LinearMask,
    OnesMask,
    PolicySpec,
    Relative,
    RelativePose,
    ZerosMask,
    afresh,
    chunked,
    simulated,
)
from poise.policies.carriers import Request
from poise.predictions import Clean, Epsilon, Flow, Velocity
from poise.sampling import DDIM, DPMSolverPP, Euler, Heun, UniformTime, UniPC, per_sample, sample
from poise.schedules import VE, Karras, Rectified, Tabulated, VPCosine
from poise.watchdog import repeated

DOUBLE = torch.float64
VECTORS = {
    LinearMask(): [1, 1, 0.8, 0.6, 0.4, 0.2, 0, 0],
    ExponentialMask(): [1, 1, 0.5706, 0.2871, 0.1145, 0.0258, 0, 0],
    OnesMask(): [1, 1, 1, 1, 1, 1, 0, 0],
    ZerosMask(): [1, 1, 0, 0, 0, 0, 0, 0],
}
SCHEDULES = VPCosine(), Rectified(), VE(), Karras(), Tabulated.squared_cosine(100)


def draw(*shape, seed=0, dtype=DOUBLE):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def near(a, b, atol=1e-9):
    torch.testing.assert_close(a, b.to(a), rtol=0, atol=atol)


class Exact:
    """The denoiser of plans from N(0, C), whose neighbours are correlated: alpha C (alpha^2 C + sigma^2)^-1 x."""

    def __init__(self, schedule, steps=8):
        self.schedule, i = schedule, torch.arange(steps, dtype=DOUBLE)
        self.covariance = torch.exp(-((i[:, None] - i) ** 2) / 8) + 1e-3 * torch.eye(steps, dtype=DOUBLE)

    def jacobian(self, t):
        level, c = self.schedule.at(t), self.covariance
        return level.alpha * c @ torch.linalg.inv(level.alpha**2 * c + level.sigma**2 * torch.eye(len(c), dtype=DOUBLE))

    def __call__(self, x, t):
        return self.jacobian(t) @ x


@pytest.mark.parametrize("mask", VECTORS, ids=lambda m: type(m).__name__)
def test_masks_are_those_of_lerobot(mask):
    """Vectors that the real one gave; a delay beyond the end counts as the end; each plan of a batch has its own."""
    got = mask.weights(torch.tensor([2, 5, 0]), torch.tensor([6, 3, 0]), 8)
    near(got[0].double(), torch.tensor(VECTORS[mask], dtype=DOUBLE), 6e-5)
    assert got[1].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
    assert not got[2].any()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("beta", [0.0, 5.0, 1e6])
def test_guidance_is_the_closed_form_for_a_gaussian(schedule, beta):
    """x0 + min(beta sigma, (alpha^2 + sigma^2) / alpha) J^T W (Y - x0), with the Jacobian by hand."""
    denoise, y, w = Exact(schedule), draw(3, 8, 1), draw(3, 8, seed=2).sigmoid()
    for t in (1.0, 0.9, 0.5, 0.2, 0.0):
        level = schedule.at(t)
        x = draw(3, 8, 1, seed=1) * math.hypot(level.alpha, level.sigma)
        error = w[..., None] * (y - denoise(x, t))
        factor = min(beta * level.sigma, (level.alpha**2 + level.sigma**2) / level.alpha)
        expected = denoise(x, t) + factor * denoise.jacobian(t).T @ error
        near(chunked(denoise, schedule, y, w, beta)(x, t), expected)
        with torch.inference_mode():
            near(chunked(denoise, schedule, y.clone(), w.clone(), beta)(x.clone(), t), expected)
        # The Jacobian that is left out is that in the units of the flow, where alpha + sigma = 1.
        got = chunked(denoise, schedule, y, w, beta, same)(x, t)
        near(got, denoise(x, t) + factor / (level.alpha + level.sigma) * error)


def test_one_flow_underlies_every_schedule():
    """At equal log-SNR the guided prediction is the same function of x / (alpha + sigma)."""
    flow, y, w, z = Rectified(), draw(2, 8, 1), draw(2, 8, seed=2).sigmoid(), draw(2, 8, 1, seed=1)
    for pull in (vjp, same):
        expected = chunked(Exact(flow), flow, y, w, pull=pull)(z, 0.6)
        for schedule in SCHEDULES:
            t = schedule.time(torch.tensor(flow.at(0.6).log_snr, dtype=DOUBLE)).item()
            scale = schedule.at(t).alpha + schedule.at(t).sigma
            near(chunked(Exact(schedule), schedule, y, w, pull=pull)(scale * z, t), expected, 1e-6)


def wanted(policy, x=(0.3,), left=5, delay=2, seed=0):
    """A request of robots that saw x twice."""
    count, rng = len(x), np.random.default_rng(seed)
    previous = rng.normal(size=(count, policy.spec.planned, policy.spec.action)).astype(np.float32)
    seen = {"x": torch.tensor(x, dtype=torch.float32)[:, None, None].expand(-1, 2, 1)}
    steps, zero = np.array(np.broadcast_to(left, count)), np.zeros(count, int)
    return Request(zero, seen, per_sample([*range(count)]), previous, steps, zero + delay, zero, zero, zero, zero)


@pytest.mark.parametrize("pull", [vjp, same])
@pytest.mark.parametrize("fade", [None, 2, 9])
def test_it_is_the_papers_loop(pull, fade):
    """Five Euler steps of the flow, written with the velocity and a full Jacobian by differentiation."""
    policy = small(schedule=Rectified(), prediction=Flow(), sampler=Euler(), evaluations=5)
    request = wanted(policy)
    got = Chunking(LinearMask(), 5.0, pull, fade)(policy, request)

    schedule, denoise = policy.spec.schedule, policy.denoiser(request.observation)
    scale, offset = policy.constants("action")
    y = torch.as_tensor(request.previous) * scale + offset
    w = torch.tensor([1, 1, 2 / 3, 1 / 3, 0, 0, 0, 0] if fade == 2 else [1, 1, 0.75, 0.5, 0.25, 0, 0, 0])[:, None]
    x = per_sample([0])(torch.empty(1, HORIZON, 2), 1.0, 1.0) * math.hypot(
        schedule.at(1.0).alpha, schedule.at(1.0).sigma
    )
    for k in range(5):
        t, s = 1 - k / 5, 1 - (k + 1) / 5
        tau = schedule.at(t).alpha

        def estimate(x, t=t, tau=tau):
            velocity = (denoise(x, t) - x) / (1 - tau)
            return x + (1 - tau) * velocity

        x1 = estimate(x).detach()
        error = ((y - x1) * w).flatten()
        jacobian = torch.autograd.functional.jacobian(estimate, x).reshape(16, 16)
        pulled = (jacobian.T @ error if pull is vjp else error).reshape(x.shape)
        bound = min(5.0, (1 - tau) / tau * (tau**2 + (1 - tau) ** 2) / (1 - tau) ** 2)
        x = x + (schedule.at(s).alpha - tau) * ((x1 - x) / (1 - tau) + bound * pulled)
    near(torch.as_tensor(got), (x - offset) / scale, 2e-5)
    assert np.abs(got - afresh(policy, wanted(policy))).max() > 0.01


@pytest.mark.parametrize("sampler", [DDIM(), DPMSolverPP(), Heun(), UniPC()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("schedule", [VPCosine(), Rectified()], ids=lambda s: type(s).__name__)
def test_plans_begin_as_the_last_one_goes_on(schedule, sampler):
    """From x = 0, since all is linear: the means of 200 plans. Where nothing holds them, they follow what does."""
    denoise, steps = Exact(schedule), 10
    y = torch.linalg.cholesky(denoise.covariance) @ draw(200, 8, 1)
    w = ZerosMask().weights(torch.full((200,), 3), torch.full((200,), 5), 8)
    times = UniformTime().times(schedule, len(sampler.budget(steps)))
    guided = chunked(denoise, schedule, y, w)
    plans = sample(guided, schedule, sampler.budget(steps), times, torch.zeros(200, 8, 1, dtype=DOUBLE)).x
    power = y.square().mean()
    assert (plans[:, :3] - y[:, :3]).square().mean() < 0.02 * power
    known = denoise.covariance[3:, :3] @ torch.linalg.solve(denoise.covariance[:3, :3], y[:, :3])
    assert (plans[:, 3:5] - known[:, :2]).square().mean() < 0.4 * known[:, :2].square().mean()


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: type(n).__name__)
@pytest.mark.parametrize("prediction", [Epsilon(), Clean(), Velocity(), Flow()], ids=lambda p: type(p).__name__)
def test_every_prediction_has_the_true_jacobian(prediction, network):
    """That of a network, by central differences."""
    spec = PolicySpec({"x": (1,)}, 2, horizon=HORIZON, execute=3, network=network, schedule=VPCosine(), bound=None)
    policy = DiffusionPolicy(dataclasses.replace(spec, prediction=prediction)).double().eval()
    identity(policy)
    for parameter, seed in zip(policy.parameters(), itertools.count()):  # gates begin at zero
        parameter.data = 0.3 * draw(*parameter.shape, seed=seed)
    denoise = policy.denoiser({"x": torch.full((1, 2, 1), 0.3, dtype=DOUBLE)})
    x, y, w = draw(1, HORIZON, 2), draw(1, HORIZON, 2, seed=1), torch.rand(1, HORIZON, dtype=DOUBLE)
    with torch.no_grad():
        columns = [(denoise(x + 1e-5 * e, 0.5) - denoise(x - 1e-5 * e, 0.5)).flatten() / 2e-5 for e in units(x)]
        x0, level = denoise(x, 0.5), policy.spec.schedule.at(0.5)
        pulled = (torch.stack(columns, 1).T @ (w[..., None] * (y - x0)).flatten()).reshape(x.shape)
        got = chunked(denoise, policy.spec.schedule, y, w, 2.0)(x, 0.5)
    near(got, x0 + 2 * level.sigma * pulled, 1e-6)
    assert (got - x0).abs().max() > 1e-3


def units(x):
    return torch.eye(x.numel(), dtype=x.dtype).reshape(-1, *x.shape)


def test_without_a_running_plan_it_is_a_plan_afresh():
    """Also beside robots that have one, and with weights of zero the guidance changes nothing."""
    policy = small(evaluations=3)
    for left in (0, [0, 4]):
        guided, plain = (way(policy, wanted(policy, (0.3, -0.2), left)) for way in (Chunking(), afresh))
        np.testing.assert_allclose(guided[0], plain[0], atol=1e-5)
        assert (np.abs(guided[1] - plain[1]).max() > 0.01) == (left != 0)
    assert policy.guide is None


def test_the_guidance_of_the_policy_stays_inside():
    """Clipping at 0.1 by the policy's own guide bounds what the running plan pulls away from."""
    policy = small(evaluations=3)
    y = policy.learned(torch.as_tensor(wanted(policy).previous), wanted(policy).observation)
    w = ExponentialMask().weights(torch.tensor([2]), torch.tensor([5]), HORIZON)
    inside = policy.using(guide=lambda d, o: clipped(d, -0.1, 0.1))
    got = Chunking()(inside, wanted(policy))
    whole = policy.using(guide=lambda d, o: chunked(clipped(d, -0.1, 0.1), policy.spec.schedule, y, w))
    np.testing.assert_allclose(got, afresh(whole, wanted(policy)), atol=1e-6)


SPACES = {"absolute": Absolute(), "relative": Relative("x"), "delta": Delta("x")}


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("lead", [0, 1])
def test_what_is_left_is_measured_from_the_new_observation(space, lead):
    torch.manual_seed(0)
    more = {"horizon": HORIZON, "execute": 3, "network": MLP(16, 1, 8), "bound": None, "evaluations": 3}
    spec = PolicySpec({"x": (2,)}, 2, space=space, lead=lead, **more)
    policy = DiffusionPolicy(spec)
    identity(policy)
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    policy.action_normaliser.scale.fill_(0.5)
    policy.action_normaliser.offset.fill_(0.1)
    policy.eval()
    seen = {"x": draw(1, 2, 2, dtype=torch.float32)}
    request = wanted(policy)._replace(observation=seen)
    previous, here = torch.as_tensor(request.previous), seen["x"][:, -1:]
    by_hand = {
        "absolute": lambda a: a,
        "relative": lambda a: a - here,
        "delta": lambda a: torch.cat([a[:, :1] - here, a[:, 1:] - a[:, :-1]], 1),
    }[next(name for name, s in SPACES.items() if s == space)]
    whole = torch.cat([previous[:, :1]] * lead + [previous], 1)
    known = 0.5 * by_hand(whole) + 0.1
    near(policy.learned(previous, seen), known, 1e-6)
    near(policy.decoded(known, seen), previous, 1e-5)
    weights = ExponentialMask().weights(torch.tensor([2]), torch.tensor([5]), HORIZON - lead)
    weights = torch.cat([torch.zeros(1, lead), weights], 1)
    guide = policy.using(guide=lambda d, o: chunked(d, spec.schedule, known, weights))
    again = wanted(policy)._replace(observation=seen)
    np.testing.assert_allclose(Chunking()(policy, request), afresh(guide, again), atol=1e-5)


def test_poses_are_taken_to_the_frame_of_the_new_observation():
    spec = PolicySpec({"tool": (9,)}, 9, space=RelativePose("tool"), horizon=HORIZON, network=MLP(16, 1, 8), bound=None)
    policy = DiffusionPolicy(spec)
    identity(policy)
    turn = torch.linalg.qr(draw(3, 3, dtype=torch.float32))[0]
    turn = turn * torch.linalg.det(turn)
    pose = torch.cat([torch.tensor([1.0, 2.0, 3.0]), turn[:, 0], turn[:, 1]]).expand(1, 2, 9)
    plan = pose[:, :1].expand(1, HORIZON, 9)
    learned = policy.learned(plan, {"tool": pose})
    near(learned, torch.tensor([0.0, 0, 0, 1, 0, 0, 0, 1, 0]).expand(1, HORIZON, 9), 1e-5)
    near(policy.decoded(learned, {"tool": pose}), plan, 1e-5)


class Known(torch.nn.Module):
    """In place of what is learned: the exact denoiser, whatever is seen."""

    def __init__(self, schedule):
        super().__init__()
        self.exact = Exact(schedule)

    def given(self, tokens):
        return lambda x, t: self.exact(x.double(), t).float()


@pytest.mark.parametrize("delay", [0, 1, 2])
def test_it_halves_the_seams_of_late_plans(delay):
    """Smooth plans that have nothing to do with each other: the change of action at the seams."""
    policy, jumps = small(evaluations=5, schedule=Rectified()), {}
    policy.diffusion = Known(Rectified())
    for name, way in {"plain": afresh, "vjp": Chunking(), "identity": Chunking(pull=same)}.items():
        controller = simulated(policy, 200, hold=repeated, delays=(delay,), way=way)
        controller.reset(range(200))
        actions, fresh = [], []
        for _ in range(16):
            actions.append(controller.act(at(*[0.0] * 200)))
            fresh.append(controller.fresh.all())
        change = np.linalg.norm(np.diff(actions, axis=0), axis=2).mean(1)
        jumps[name] = change[np.array(fresh[1:])].mean() / change[~np.array(fresh[1:])].mean()
    print(delay, jumps)
    assert jumps["plain"] > 2
    assert jumps["vjp"] < jumps["plain"] / 2
    assert jumps["identity"] < jumps["plain"] / 2


def test_shapes_and_weights_that_do_not_fit_are_refused():
    denoise, schedule, y = Exact(Rectified()), Rectified(), draw(2, 8, 1)
    for weights in (torch.ones(8), torch.ones(2, 7), torch.full((2, 8), 1.5), torch.full((2, 8), math.nan)):
        with pytest.raises(ValueError, match=r"expected \(batch, steps, action\), and \(batch, steps\) in \[0, 1\]"):
            chunked(denoise, schedule, y, weights)
    with pytest.raises(ValueError, match="got beta=-1, expected 0 or more"):
        chunked(denoise, schedule, y, torch.ones(2, 8), -1)
    with pytest.raises(ValueError, match="got fade=-1, expected actions, 0 or more"):
        Chunking(fade=-1)


def test_the_benchmark_sets_every_row_beside_plain_switching(monkeypatch):
    """Seed by seed: of 8, 3 are won and 1 is lost. Without plain switching of that delay there is nothing to say."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    realtime = importlib.import_module("realtime")

    def row(controller, delay, won, seam, sampler=""):
        found = {name: Interval(seam, seam, seam) for name in realtime.COLUMNS}
        kind = {"controller": controller, "delay": delay, "sampler": sampler}
        return {**kind, "won": won, "held": 0.0, "ms": 1.0, **found}

    plain = row(realtime.PLAIN, 2, [1, 1, 1, 1, 0, 0, 0, 0], 2.0)
    guided = row("chunking, vjp", 2, [1, 1, 1, 0, 1, 1, 1, 0], 1.5)
    others = row(realtime.PLAIN, 0, [0] * 8, 1.0), row("ensemble", 2, [0] * 8, 1.0)
    noisy = row(realtime.PLAIN, 2, [0] * 8, 1.0, "DDPM")
    got = realtime.compared([others[0], noisy, plain, others[1], guided])
    beside = got["against_plain"]
    assert beside == {"success": rate_difference(guided["won"], plain["won"]), "jump": 0.75, "seam": 0.75}
    assert beside["success"].value == 0.25
    assert "| +25.0% | " in realtime.line(got)
    assert realtime.line(got).endswith(" | 0.75 | 0.75 |")
    for alone in ([plain], [others[0], guided], [others[1], guided], [noisy, guided]):
        assert "against_plain" not in realtime.compared(alone)
        assert realtime.line(alone[-1]).count("|") == realtime.HEAD.splitlines()[0].count("|")
    without = realtime.compared([plain | {"seam": None, "jump": Interval(0.0, 0.0, 0.0)}, guided])
    assert without["against_plain"].keys() == {"success"}


PEER = """
import sys
import numpy as np
import torch
from lerobot.configs.types import RTCAttentionSchedule
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.policies.rtc.modeling_rtc import RTCProcessor

data = {name: torch.as_tensor(values) for name, values in np.load(sys.argv[1]).items()}
found = {}
for name in ("LINEAR", "EXP", "ONES", "ZEROS"):
    config = RTCConfig(True, RTCAttentionSchedule[name], float(data["beta"]), 5)
    processor = RTCProcessor(config)
    for k, t in enumerate(data["times"]):
        field = lambda x: x @ data["field"]
        found[f"{name}{k}"] = processor.denoise_step(data["x"], data["previous"], 2, t, field).numpy()
np.savez(sys.argv[2], **found)
"""


def test_the_identity_form_is_that_of_lerobot(tmp_path):
    venv = os.environ.get("POISE_PEERS")
    if not venv:
        pytest.skip("set POISE_PEERS to a venv with lerobot 0.4 to compare with its real-time chunking")
    schedule, beta = Rectified(), 10.0
    field, x, previous = 0.7 * draw(2, 2), draw(3, 8, 2, seed=1), draw(3, 5, 2, seed=2)
    times = [0.05, 0.3, 0.5, 0.8, 0.95]
    arrays = {"field": field, "x": x, "previous": previous, "times": torch.tensor(times, dtype=DOUBLE)}
    np.savez(tmp_path / "in.npz", beta=beta, **{name: values.numpy() for name, values in arrays.items()})
    command = [f"{venv}/bin/python", "-c", PEER, str(tmp_path / "in.npz"), str(tmp_path / "out.npz")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)  # noqa: S603
    assert done.returncode == 0, done.stderr[-3000:]
    theirs, padded = np.load(tmp_path / "out.npz"), torch.nn.functional.pad(previous, (0, 0, 0, 3))

    def denoise(x, t):
        return x - schedule.at(t).sigma * x @ field

    for name, mask in {
        "LINEAR": LinearMask(),
        "EXP": ExponentialMask(),
        "ONES": OnesMask(),
        "ZEROS": ZerosMask(),
    }.items():
        weights = mask.weights(torch.full((3,), 2), torch.full((3,), 5), 8)
        for k, sigma in enumerate(times):
            t = (sigma - schedule.margin) / (1 - 2 * schedule.margin)
            x0 = chunked(denoise, schedule, padded, weights, beta, same)(x, t)
            near((x - x0) / sigma, torch.as_tensor(theirs[f"{name}{k}"]), 1e-5)
            true = chunked(denoise, schedule, padded, weights, beta)(x, t)
            assert ((x - true) / sigma - torch.as_tensor(theirs[f"{name}{k}"])).abs().max() > 0.05
