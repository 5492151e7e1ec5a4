from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from poise.denoisers import Gaussian
from poise.evaluation import Task, film, latency, rollout
from poise.nn import MLP, EncoderSpec
from poise.nn.spec import Encoder
from poise.policies import DiffusionPolicy, Policy, PolicySpec, RecedingHorizon, Regression
from poise.policies.ensemble import TemporalEnsemble
from poise.policies.recorded import Delayed, Recorded
from poise.policies.warm import WarmStart
from poise.sampling import DDIM, Heun, Listed, State, gaussian

HORIZON, EXECUTE = 8, 3


class Nothing(Encoder):
    tokens = (1, 1)

    def forward(self, observation):
        raise NotImplementedError


@dataclass(frozen=True)
class _Blind(EncoderSpec):
    """For policies that look at the observation themselves."""

    def build(self, shapes, history):
        return Nothing()


class Counting(Policy):
    """Plans `1000 x + k` for the newest number x that it sees and index k, and remembers what it saw."""

    jitter = 0.0

    def loss(self, batch, generator=None):
        raise NotImplementedError

    def trace(self, observation, noise=None):
        self.windows.append({name: values.clone() for name, values in observation.items()})
        x = observation["x"][:, -1:, :1]
        plan = 1000 * x + torch.arange(float(self.spec.horizon))[None, :, None] + torch.zeros(1, 1, self.spec.action)
        yield State(plan + self.jitter * (noise or gaussian())(plan, 1.0, 1.0), 0.0, 1)


def counting(history: int = 3, jitter: float = 0.0, **more: Any) -> Counting:
    shapes = {"x": (1,), **more.pop("observations", {})}
    spec = PolicySpec(shapes, 2, history=history, horizon=HORIZON, execute=EXECUTE, encoder=_Blind(), **more)
    policy = Counting(spec)
    identity(policy)
    policy.jitter, policy.windows = jitter, []
    return policy


def identity(policy: Policy) -> None:
    for module in (*policy.observation_normalisers.values(), policy.action_normaliser):
        module.scale.fill_(1.0)
        module.offset.fill_(0.0)


def small(**more: Any) -> DiffusionPolicy:
    torch.manual_seed(0)
    spec = PolicySpec({"x": (1,)}, 2, horizon=HORIZON, execute=EXECUTE, network=MLP(16, 1, 8), bound=None, **more)
    policy = DiffusionPolicy(spec)
    identity(policy)
    for parameter in policy.parameters():  # gates begin at zero
        torch.nn.init.normal_(parameter, std=0.3)
    policy.action_normaliser.scale.fill_(0.5)
    policy.action_normaliser.offset.fill_(0.1)
    return policy.eval()


def at(*values: float) -> dict[str, np.ndarray]:
    return {"x": np.array(values, dtype=np.float32)[:, None]}


CONTROLS: dict[str, Callable[[Any, int], Any]] = {
    "RecedingHorizon": RecedingHorizon,
    "TemporalEnsemble": TemporalEnsemble,
    "WarmStart": partial(WarmStart, begin=0.4, evaluations=2),
    "Recorded": lambda policy, robots: Recorded(WarmStart(policy, robots)),
    "Delayed": lambda policy, robots: Delayed(RecedingHorizon(policy, robots), 2),
}


@pytest.mark.parametrize("control", CONTROLS.values(), ids=CONTROLS)
def test_a_robot_depends_on_its_own_seed_and_observations_alone(control):
    """Among three that start over and pause at other times it does what it does alone; a reset repeats it."""
    policy, rng = small(evaluations=4), np.random.default_rng(0)
    xs = rng.normal(size=(20, 3))
    many, one = control(policy, 3), control(policy, 1)
    assert (many.robots, one.robots) == (3, 1)
    runs = []
    for _ in range(2):
        many.reset([1, 7, 3])
        one.reset([7])
        run = []
        for t, x in enumerate(xs):
            if t in (4, 9):
                many.reset([50 + t], np.array([True, False, False]))
            which = np.array([t % 3 > 0, True, t % 2 > 0])
            got, alone = many.act(at(*x), which), one.act(at(x[1]))
            np.testing.assert_allclose(got[1], alone[0], rtol=0, atol=2e-5)
            assert many.fresh[1] == one.fresh[0]
            assert not many.fresh[~which].any()
            run.append(alone[0])
        runs.append(run)
    np.testing.assert_array_equal(runs[0], runs[1])
    one.reset([8])
    assert not np.allclose(one.act(at(xs[0, 1])), runs[0][0])


@pytest.mark.parametrize("control", [RecedingHorizon, TemporalEnsemble, lambda p, n: Recorded(RecedingHorizon(p, n))])
def test_who_does_not_act_keeps_the_last_action_and_the_clock(control):
    policy = counting()
    controller = control(policy, 2)
    first = controller.act(at(1, 2))
    idle = controller.act(at(9, 3), np.array([False, True]))
    np.testing.assert_array_equal(idle[0], first[0])
    np.testing.assert_array_equal(controller.act(at(1, 4), np.array([True, False]), 1)[0], [1001, 1001])


@pytest.mark.parametrize("age", range(HORIZON))
def test_a_plan_is_entered_at_the_age_of_its_observation(age):
    controller = RecedingHorizon(counting())
    left = min(EXECUTE, HORIZON - age)
    actions, fresh = [], []
    for t in range(2 * left + 1):
        actions.append(controller.act(at(t), age=age)[0, 0])
        fresh.append(bool(controller.fresh[0]))
    plans = [[1000 * begin + k for k in range(HORIZON)] for begin in (0, left, 2 * left)]
    assert actions == [*plans[0][age : age + left], *plans[1][age : age + left], plans[2][age]]
    assert fresh == [t % left == 0 for t in range(2 * left + 1)]


def test_each_robot_has_its_own_age():
    controller = RecedingHorizon(counting(), 3)
    assert controller.act(at(1, 2, 3), age=np.array([0, 4, 7]))[:, 0].tolist() == [1000, 2004, 3007]
    # The third had one action left, so it plans again, from the newest moment that it may.
    assert controller.act(at(1, 2, 5), age=np.array([1, 0, 7]))[:, 0].tolist() == [1001, 2005, 5007]


def seen_by(policy: Counting) -> list[list[float]]:
    return [window["x"][0, :, 0].tolist() for window in policy.windows]


def test_histories_are_by_the_times_of_observation():
    """(value, age) of steps 0, 1, ...; equal values are the same observation."""
    policy = counting(history=3)
    controller = TemporalEnsemble(policy)  # which plans at every step
    for value, age in [(10, 0), (10, 1), (11, 1), (13, 0), (13, 1), (14, 1), (18, 0)]:
        controller.act(at(value), age=age)
    assert seen_by(policy) == [
        [10, 10, 10],  # the first fills it
        [10, 10, 10],  # the same again
        [10, 10, 11],
        [11, 11, 13],  # step 2 had none of its own, and holds that of step 1
        [11, 11, 13],
        [11, 13, 14],
        [14, 14, 18],
    ]
    for age in (1, 2, 3):  # a sensor that hangs
        controller.act(at(18), age=age)
    controller.act(at(20))
    assert seen_by(policy)[-2:] == [[14, 14, 18], [18, 18, 20]]


def test_a_constant_delay_leaves_the_history_whole():
    policy = counting(history=3)
    controller = TemporalEnsemble(policy)
    for t in range(5):
        controller.act(at(t), age=4)
    assert seen_by(policy)[-1] == [2, 3, 4]


def test_wrong_ages_are_explained_and_change_nothing():
    policy = counting()
    controller = RecedingHorizon(policy, 2)
    for age in (-1, HORIZON, np.array([0, 12])):
        with pytest.raises(ValueError, match=r"robot [01] of age (-1|8|12), expected 0 to 7: a plan of 8 actions"):
            controller.act(at(1, 1), age=age)
    for age in (1.5, np.zeros(3, int)):
        with pytest.raises(ValueError, match=r"an age of shape .*, expected whole control steps, one number or \(2,\)"):
            controller.act(at(1, 1), age=age)
    controller.act(at(1, 2))
    controller.act(at(1, 2), age=np.array([0, 1]))
    with pytest.raises(ValueError, match="robot 0 taken at its control step 0, expected none older .* of step 1: drop"):
        controller.act(at(1, 2), age=2)
    # Who does not act may say anything.
    got = controller.act(at(1, 2), np.array([False, True]), np.array([99, 0]))
    assert got[:, 0].tolist() == [1001, 2002]
    controller.reset([0], np.array([True, False]))
    assert controller.act(at(5, 2), np.array([True, False]), 2)[0, 0] == 5002


def test_a_bad_number_does_not_stay_in_the_history():
    policy = counting()
    controller = TemporalEnsemble(policy, 2)
    controller.act(at(1, 1))
    with pytest.raises(ValueError, match="NaN or infinity in feature 'x', expected finite numbers: check the sensor"):
        controller.act(at(1, np.nan))
    controller.act(at(2, np.nan), np.array([True, False]))
    controller.act(at(3, 3))
    assert policy.windows[-1]["x"][..., 0].tolist() == [[1, 2, 3], [1, 1, 3]]


def test_images_are_bytes_from_the_camera_to_the_policy():
    policy = counting(history=2, observations={"camera": (4, 5, 3)})
    controller = RecedingHorizon(policy)
    image = np.random.default_rng(0).integers(0, 256, (1, 4, 5, 3), np.uint8)
    for t in range(EXECUTE + 1):
        controller.act({**at(t), "camera": image + np.uint8(t)})
    window = policy.windows[-1]["camera"]
    assert window.dtype == torch.uint8
    np.testing.assert_array_equal(window[0], np.stack([image[0] + np.uint8(2), image[0] + np.uint8(3)]))
    with pytest.raises(ValueError, match=r"images 'camera' of float64, expected uint8 from 0 to 255, as the camera"):
        controller.act({**at(0), "camera": image / 255})
    with pytest.raises(ValueError, match=r"'camera' of shape \(1, 5, 4, 3\), expected \(1, 4, 5, 3\)"):
        controller.act({**at(0), "camera": image.swapaxes(1, 2)})
    with pytest.raises(ValueError, match=r"got the features \['x'\], expected also 'camera', which is missing"):
        controller.act(at(0))


@pytest.mark.parametrize("value", ["0.5", 0.5 + 1j, None], ids=["text", "complex", "nothing"])
def test_what_is_no_number_is_refused_by_name(value):
    policy = counting(history=1, observations={"torque": (1,)})
    with pytest.raises(ValueError, match="got feature 'torque' of .*, expected numbers"):
        RecedingHorizon(policy).act({**at(0), "torque": np.array([[value]])})


def test_an_optional_feature_may_go_and_begins_anew_when_it_is_back():
    policy = counting(history=3, observations={"goal": (1,)}, optional={"goal": 0.5})
    controller = TemporalEnsemble(policy)
    for t in range(6):
        goal = {"goal": np.full((1, 1), 10.0 * t)} if t not in (2, 3) else {}
        controller.act({**at(t), **goal})
    assert [w["goal"][0, :, 0].tolist() if "goal" in w else None for w in policy.windows] == [
        [0, 0, 0], [0, 0, 10], None, None, [40, 40, 40], [40, 40, 50],
    ]  # fmt: skip
    assert seen_by(policy)[-1] == [3, 4, 5]


@pytest.mark.parametrize("decay", [0.01, 0.0, 0.7, -2.0, -1e4])
def test_an_ensemble_is_the_weighted_mean_of_what_all_plans_say(decay):
    policy = counting()
    ensemble = TemporalEnsemble(policy, decay=decay)
    ages = [0, 0, 1, 0, 1, 2, 2, 0, 1, 2, 1, 0, 0, 0]
    plans: list[tuple[int, float]] = []  # (step of index 0, value observed)
    for t, age in enumerate(ages):
        got = ensemble.act(at(t**2 - 7 * t), age=age)[0]
        observed = dict(reversed(plans)).get(t - age, float(t**2 - 7 * t))
        plans.append((t - age, observed))
        said = [1000 * x + t - begin for begin, x in plans if t - begin < HORIZON]
        weights = np.exp(-decay * np.arange(len(said)) - max(-decay * (len(said) - 1), 0))
        np.testing.assert_allclose(got, np.full(2, weights @ said / weights.sum()), rtol=1e-5, atol=1e-2)
    assert len(policy.windows) == len(ages)
    ensemble.reset([0])
    assert ensemble.act(at(5))[0, 0] == 5000


def test_a_warm_plan_starts_from_the_last_one_shifted_and_noisy(monkeypatch):
    starts, original = [], DiffusionPolicy._denoised

    def spy(self, observation, tokens, x, begin, noise):
        starts.append((begin, x.clone()))
        states = list(original(self, observation, tokens, x, begin, noise))
        plans.append(self.decoded(states[-1].x, observation))
        yield from states

    plans: list[torch.Tensor] = []
    monkeypatch.setattr(DiffusionPolicy, "_denoised", spy)
    policy = small(evaluations=6, sampler=DDIM(), temperature=0.7)
    calls = []
    policy.diffusion.network.register_forward_hook(lambda *_: calls.append(1))
    warm = WarmStart(policy, begin=0.3, evaluations=2)
    warm.reset([5])
    generator, level = torch.Generator().manual_seed(5), policy.spec.schedule.at(0.3)
    torch.randn(HORIZON, 2, generator=generator)  # of the first plan
    counted = []
    # Plans at steps 0, 3, 6 and 9 from observations of 0, 3, 4 and 9.
    for t, age in enumerate([0, 0, 0, 0, 0, 1, 2, 2, 2, 0]):
        warm.act(at(t), age=age)
        counted.append(len(calls))
    assert counted == [6, 6, 6, 8, 8, 8, 10, 10, 10, 12]
    assert [begin for begin, _ in starts] == [1.0, 0.3, 0.3, 0.3]
    for (_, x), previous, shift in zip(starts[1:], plans, (3, 1, 5), strict=False):
        shifted = torch.cat([previous[:, shift:], previous[:, -1:].expand(-1, shift, -1)], 1)
        eps = torch.randn(1, HORIZON, 2, generator=generator)
        expected = level.alpha * policy.action_normaliser(shifted) + level.sigma * 0.7 * eps
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-6)


def test_a_late_observation_that_goes_back_behind_the_last_plan_is_refused():
    warm = WarmStart(small())
    warm.act(at(0))
    warm.act(at(1))
    with pytest.raises(ValueError, match="expected none older than the newest"):
        warm.act(at(0), age=2)


def test_warm_starts_forget_with_a_reset_and_spend_a_share_by_default():
    policy = small(evaluations=10)
    calls = []
    policy.diffusion.network.register_forward_hook(lambda *_: calls.append(1))
    warm = WarmStart(policy, 2, begin=0.3)
    for _ in range(EXECUTE + 1):
        warm.act(at(0, 0))
    assert len(calls) == 10 + 3
    warm.reset([1], np.array([True, False]))
    warm.act(at(0, 0))
    assert len(calls) == 10 + 3 + 10
    for begin in (0.0, 1.0, -1.0):
        with pytest.raises(ValueError, match=r"begin=.*, expected 0 < begin < 1"):
            WarmStart(policy, begin=begin)
    with pytest.raises(ValueError, match="WarmStart got a Regression, expected a DiffusionPolicy: .* RecedingHorizon"):
        WarmStart(Regression(policy.spec))
    with pytest.raises(ValueError, match="Heun got a budget of 0 evaluations"):
        WarmStart(policy.using(sampler=Heun()), evaluations=0)
    with pytest.raises(ValueError, match="Listed got 1 steps from t = 0.8, expected 1.0"):
        WarmStart(policy.using(grid=Listed()), evaluations=1)


def test_a_record_is_what_was_seen_and_done():
    ticks = iter(np.arange(100) / 4)
    recorded = Recorded(RecedingHorizon(counting(), 2), lambda: next(ticks))
    with pytest.raises(ValueError, match="no step to give episodes of"):
        recorded.episodes()
    actions, scratch = [], {"x": np.zeros((2, 1), np.float32), "unused": np.zeros((2, 2), np.uint8)}
    for t in range(7):
        if t == 4:
            recorded.reset([3], np.array([False, True]))
        scratch["x"][:] = [[t], [10 * t]]  # one buffer, as sensors have it
        actions.append(recorded.act(scratch, np.array([True, t != 2]), np.array([0, t % 2])).copy())
    first, second = recorded.episodes(0), recorded.episodes(1)
    assert first.ends.tolist() == [7]
    assert second.ends.tolist() == [3, 6]
    assert first.features["x"][:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert second.features["x"][:, 0].tolist() == [0, 10, 30, 40, 50, 60]
    assert second.features["unused"].dtype == np.uint8
    np.testing.assert_array_equal(first.features["action"], [a[0] for a in actions])
    np.testing.assert_array_equal(second.features["action"], [actions[t][1] for t in (0, 1, 3, 4, 5, 6)])
    assert first.features["control.fresh"].tolist() == [t % EXECUTE == 0 for t in range(7)]
    assert second.features["control.fresh"].tolist() == [True, False, False, True, False, False]
    assert second.features["control.time"].tolist() == [0, 0.25, 0.75, 1, 1.25, 1.5]
    assert second.features["control.age"].tolist() == [0, 1, 1, 0, 1, 0]
    together = recorded.episodes()
    assert together.ends.tolist() == [7, 10, 13]
    np.testing.assert_array_equal(together.features["x"][7:], second.features["x"])


def test_a_record_leaves_out_what_was_not_always_there():
    recorded = Recorded(RecedingHorizon(counting(observations={"goal": (1,)}, optional={"goal": 0.5})))
    recorded.act({**at(0), "goal": np.zeros((1, 1))})
    recorded.act(at(1))
    assert sorted(recorded.episodes().features) == ["action", "control.age", "control.fresh", "control.time", "x"]


def test_no_delay_is_no_difference():
    policy, rng = counting(jitter=1.0), np.random.default_rng(0)
    plain, delayed = RecedingHorizon(policy, 2), Delayed(RecedingHorizon(policy, 2), 0)
    for t in range(8):
        if t == 5:
            for controller in (plain, delayed):
                controller.reset([9], np.array([True, False]))
        x, which = at(*rng.normal(size=2)), np.array([True, t != 3])
        np.testing.assert_array_equal(plain.act(x, which), delayed.act(x, which))
        np.testing.assert_array_equal(plain.fresh, delayed.fresh)


def test_delays_refuse_nonsense():
    with pytest.raises(ValueError, match="steps=-1, expected 0 or more"):
        Delayed(RecedingHorizon(counting()), -1)
    delayed = Delayed(RecedingHorizon(counting(), 2), 3)
    with pytest.raises(ValueError, match=r"shapes \{'x': \(1, 1\)\}, expected \(2, ...\)"):
        delayed.act(at(1))
    for _ in range(3):  # what is refused does not count as a step
        with pytest.raises(ValueError, match="NaN or infinity"):
            delayed.act(at(np.nan, 1))
    assert [delayed.act(at(t, t))[0, 0] for t in range(9)] == [0, 1, 2, 3, 4, 5, 3003, 3004, 3005]


def delayed_action(t: int, delay: int) -> float:
    """The action of step t where step t is observed as t: planned every EXECUTE steps from what has come through."""
    planned = t - t % EXECUTE
    taken = max(0, planned - delay)
    return 1000 * taken + t - taken


class Clock(gymnasium.Env):
    """Shows the step, as a number and as a picture, but never a goal; ends after 11 steps."""

    observation_space = gymnasium.spaces.Dict(
        x=gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32),
        camera=gymnasium.spaces.Box(0, 255, (4, 4, 3), np.uint8),
    )
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def look(self):
        return {"x": np.full(1, self.t, np.float32), "camera": np.full((4, 4, 3), self.t, np.uint8)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.look(), {}

    def step(self, action):
        self.t += 1
        return self.look(), 0.0, self.t == 11, False, {}

    def render(self):
        return np.full((2, 2, 3), self.t, np.uint8)


@pytest.fixture
def clock():
    gymnasium.register("poise_test/Clock-v0", Clock)
    yield "poise_test/Clock-v0"
    del gymnasium.registry["poise_test/Clock-v0"]


@pytest.mark.parametrize("delay", range(5))
def test_delayed_rollouts_follow_index_arithmetic(clock, delay):
    policy = counting(observations={"camera": (4, 4, 3), "goal": (1,)}, optional={"goal": 0.5})
    delayed = lambda policy, robots: Delayed(RecedingHorizon(policy, robots), delay)  # noqa: E731
    episodes = list(rollout(policy, Task(clock, slots=2), range(3), control=delayed))
    assert len(episodes) == 3
    for episode in episodes:
        assert episode.actions[:, 0].tolist() == [delayed_action(t, delay) for t in range(11)]
        assert episode.observations["x"][:, 0].tolist() == list(range(11))
        assert sorted(episode.observations) == ["x"]
    for window in policy.windows:
        assert "goal" not in window
        assert window["camera"].dtype == torch.uint8
        assert torch.equal(window["camera"][:, :, 0, 0, :1].float(), window["x"])
    assert latency(policy, 1).evaluations == 1
    assert policy.windows[-1]["camera"].dtype == torch.uint8


def test_films_and_rollouts_take_any_controller(clock):
    frames = list(film(counting(observations={"camera": (4, 4, 3)}), Task(clock), [1, 2], control=TemporalEnsemble))
    assert len(frames) == 12
    policy = counting(observations={"camera": (4, 4, 3)})
    episodes = list(rollout(policy, Task(clock), [1, 2], TemporalEnsemble))
    assert all(episode.fresh.all() for episode in episodes)
    # All plans agree on `1000 begin + t - begin`, whose mean over equal weights is known.
    begins = np.arange(3, 11)
    weights = np.exp(-0.01 * np.arange(8))
    expected = (weights @ (999.0 * begins) / weights.sum()) + 10
    assert episodes[0].actions[10, 0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("temperature", [0.25, 0.5, 1.0])
def test_a_warm_plan_has_the_temperature_of_the_plan_before(temperature, monkeypatch):
    """Plans N(m, v): cold ones have the deviation T sqrt(v), and so have those that start from them again."""
    policy = small(evaluations=40, temperature=temperature, sampler=Heun())
    mean = torch.tensor([0.3, -1.0]).expand(HORIZON, 2)
    exact = Gaussian(policy.spec.schedule, mean, torch.tensor([0.1, 0.6]).expand(HORIZON, 2))
    monkeypatch.setattr(policy.diffusion, "given", lambda tokens: exact)
    seen, noise = {"x": torch.zeros(4000, 2, 1)}, gaussian(torch.Generator().manual_seed(0))
    plans = [policy.plan(seen, noise)]
    for begin in (0.3, 0.6, 0.9):
        plans.append(policy.replan(seen, plans[-1], begin, noise))
    for plan in plans:
        normal = (policy.action_normaliser(plan) - mean) / exact.variance.sqrt() / temperature
        assert normal.mean((0, 1)).abs().max() < 0.05
        torch.testing.assert_close(normal.std((0, 1)), torch.ones(2), rtol=0, atol=0.03)
    # What is left of the last plan: nearly all of it from 0.3, hardly anything from 0.9.
    kept = [torch.corrcoef(torch.stack([a[:, 0, 1], b[:, 0, 1]]))[0, 1] for a, b in zip(plans, plans[1:], strict=False)]
    levels = [policy.spec.schedule.at(begin) for begin in (0.3, 0.6, 0.9)]
    expected = [l.alpha * (0.6 / (l.alpha**2 * 0.6 + l.sigma**2)) ** 0.5 for l in levels]  # noqa: E741
    assert kept == pytest.approx(expected, abs=0.05)


def test_a_controller_that_cannot_be_made_leaves_no_environment_open(clock, monkeypatch):
    made = []
    monkeypatch.setattr(Task, "make", lambda *arguments: made.append(arguments))
    spec = PolicySpec({"x": (1,)}, 2, network=MLP(16, 1, 8))
    with pytest.raises(ValueError, match="'x' has no statistics"):
        next(rollout(DiffusionPolicy(spec), Task(clock), [1]))
    assert not made
