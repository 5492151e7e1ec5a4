import math
from collections.abc import Sequence

import gymnasium
import numpy as np
import pytest
import torch

from poise.evaluation import (
    Episode,
    Latency,
    Task,
    bootstrap,
    entropy,
    film,
    jerk,
    latency,
    paired_difference,
    rollout,
    seam_jump,
    summary,
    wilson,
)
from poise.policies import Policy, PolicySpec
from poise.sampling import State, gaussian


class Homing(Policy):
    """Plans velocities straight at the goal, with a little noise from the given source."""

    def loss(self, batch, generator=None):
        raise NotImplementedError

    def trace(self, observation, noise=None):
        towards = observation["goal"][:, -1] - observation["position"][:, -1]
        plan = (3 * towards)[:, None].expand(-1, self.spec.horizon, -1)
        yield State(plan + 0.2 * (noise or gaussian())(plan, 1.0, 1.0), 0.0, 3)


def homing(execute: int = 4) -> Homing:
    policy = Homing(PolicySpec({"position": (2,), "goal": (2,)}, 2, horizon=8, execute=execute))
    for module in (*policy.observation_normalisers.values(), policy.action_normaliser):
        module.scale.fill_(1.0)
        module.offset.fill_(0.0)
    return policy


def ordered(episodes: Sequence[Episode]) -> list[Episode]:
    return sorted(episodes, key=lambda e: e.seed)


def test_every_seed_is_run_once_and_does_not_depend_on_the_slots():
    seeds = range(100, 112)
    few = ordered(list(rollout(homing(), Task("poise.envs:poise/Navigate-v0", slots=3), seeds)))
    many = ordered(list(rollout(homing(), Task("poise.envs:poise/Navigate-v0", slots=50), seeds)))
    assert [e.seed for e in few] == list(seeds)
    for a, b in zip(few, many, strict=True):
        np.testing.assert_allclose(a.actions, b.actions, rtol=0, atol=1e-5)
        assert (a.success, a.collision, a.mode) == (b.success, b.collision, b.mode)


def test_an_episode_records_what_was_seen_and_done():
    episode = next(iter(rollout(homing(), Task("poise.envs:poise/Navigate-v0"), [5])))
    steps = len(episode.actions)
    assert episode.fresh.tolist() == [t % 4 == 0 for t in range(steps)]
    assert episode.observations["position"].shape == (steps, 2)
    assert episode.collision is not None
    assert episode.collision != episode.success or not episode.collision
    # Straight at the goal from the left: either past the discs by luck, or into the first one.
    assert 0 <= episode.reward_max <= 1
    assert episode.reward_sum <= episode.reward_max * steps + 1e-9


class Countdown(gymnasium.Env):
    """Ends after as many steps as its seed says; the reward of step t is t."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left, self.t = seed % 10 + 1, 0
        return np.array([float(self.left)]), {}

    def step(self, action):
        assert (np.abs(action) <= 1).all()
        self.t += 1
        self.left -= 1
        return np.array([float(self.left)]), float(self.t), self.left == 0, False, {}


@pytest.fixture
def countdown():
    gymnasium.register("poise_test/Countdown-v0", Countdown)
    yield "poise_test/Countdown-v0"
    del gymnasium.registry["poise_test/Countdown-v0"]


def test_any_gymnasium_environment_works_through_adapters(countdown):
    def observe(state):
        return {"position": np.repeat(state, 2, 1), "goal": 9 + 0 * np.repeat(state, 2, 1)}

    episodes = ordered(list(rollout(homing(), Task(countdown, observe=observe, slots=2), range(10, 17))))
    assert [len(e.actions) for e in episodes] == [1, 2, 3, 4, 5, 6, 7]
    assert [e.reward_max for e in episodes] == [1, 2, 3, 4, 5, 6, 7]
    assert all(e.success and e.collision is None and e.mode is None for e in episodes)


def test_actions_are_adapted_and_clipped(countdown):
    """`Countdown.step` asserts that every action lies in its space."""
    seen = []

    def act(actions):
        seen.append(actions.copy())
        return 100 * actions

    def observe(state):
        return {"position": np.repeat(state, 2, 1), "goal": 9 + 0 * np.repeat(state, 2, 1)}

    list(rollout(homing(), Task(countdown, observe=observe, act=act), [3]))
    assert len(seen) == 4


def test_a_film_has_a_tile_an_episode_and_holds_the_last_picture():
    task, seeds = Task("poise.envs:poise/Navigate-v0"), [1, 2, 3]
    lengths = {e.seed: len(e.actions) for e in rollout(homing(), task, seeds)}
    frames = list(film(homing(), task, seeds))
    assert len(frames) == max(lengths.values()) + 1
    height, width = (n // 2 for n in frames[0].shape[:2])
    assert (frames[0][height:, width:] == 255).all()
    tiles = {1: np.s_[:height, :width], 2: np.s_[:height, width:], 3: np.s_[height:, :width]}
    for seed, tile in tiles.items():
        assert not np.array_equal(frames[0][tile], frames[lengths[seed] // 2][tile])
        assert np.array_equal(frames[lengths[seed]][tile], frames[-1][tile])


def test_what_does_not_fit_is_explained(countdown):
    with pytest.raises(ValueError, match=r"gives the features \{'state': \(1,\)\}, but the policy expects"):
        list(rollout(homing(), Task(countdown), [1]))
    with pytest.raises(ValueError, match="environment 'Nowhere-v0', expected an id that Gymnasium knows"):
        list(rollout(homing(), Task("Nowhere-v0"), [1]))
    with pytest.raises(ImportError, match=r"'no_such_package:X-v0' needs a package .* pip install 'poise\[pusht\]'"):
        list(rollout(homing(), Task("no_such_package:X-v0", extra="pusht"), [1]))


def test_wilson_against_its_definition():
    """The bounds are the rates p at which the observed count is 1.96 standard errors of p away."""
    for k, n in ((0, 10), (3, 10), (480, 500), (10, 10)):
        value, low, high = wilson(k, n)
        assert value == k / n
        for bound in (low, high):
            if 1e-9 < bound < 1 - 1e-9:
                assert abs(value - bound) == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / n), rel=1e-5)
    assert wilson(0, 10).low == 0
    assert wilson(10, 10).high == pytest.approx(1)
    with pytest.raises(ValueError, match="11 successes in 10 trials"):
        wilson(11, 10)


def test_bootstrap_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for i in range(200):
        interval = bootstrap(rng.normal(3.0, 1.0, 60), seed=i, resamples=400)
        hits += interval.low <= 3.0 <= interval.high
    assert 0.89 <= hits / 200 <= 0.99
    with pytest.raises(ValueError, match="no values"):
        bootstrap([])


def test_paired_seeds_find_a_small_difference_that_unpaired_ones_hide():
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 1, 200)
    first, second = hard + 0.1 + rng.normal(0, 0.05, 200), hard
    paired = paired_difference(first, second)
    assert paired.low > 0
    assert bootstrap(first).low < bootstrap(second).high
    with pytest.raises(ValueError, match="the same seeds in both"):
        paired_difference([1, 2], [1])


def test_entropy_of_known_distributions():
    assert entropy([3, 3, 3]) == 0
    assert entropy([0, 1, 4, 5] * 7) == pytest.approx(math.log(4))
    assert entropy([0, 0, 0, 1]) == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert entropy([]) == 0


def test_jerk_and_seams_of_known_sequences():
    t = np.arange(10.0)[:, None]
    assert jerk(t**2) == pytest.approx(0)
    assert jerk(t**3) == pytest.approx(6)
    assert math.isnan(jerk(t[:3]))
    fresh = np.arange(10) % 5 == 0
    assert seam_jump(t, fresh) == pytest.approx(1)
    assert seam_jump(t + 3 * (t >= 5), fresh) == pytest.approx(4)
    assert math.isnan(seam_jump(t, np.zeros(10, bool)))


def test_summary_has_the_published_keys():
    episodes = list(rollout(homing(), Task("poise.envs:poise/Navigate-v0"), range(30)))
    figures = summary(episodes, latency(homing(), 5), math.log(4))
    assert {
        "success", "success_low", "success_high", "reward_max_mean", "collision", "mode_entropy", "plan_ms_median",
        "plan_ms_p95", "evaluations", "episodes",
    } <= set(figures)  # fmt: skip
    assert figures["evaluations"] == 3
    assert figures["episodes"] == 30
    assert figures["success"] == pytest.approx(np.mean([e.success for e in episodes]))
    assert figures["success_low"] <= figures["success"] < figures["success_high"]
    modes = [e.mode for e in episodes if e.success]
    assert figures["mode_entropy"] == pytest.approx(entropy(modes) / math.log(4))
    assert figures["plan_ms_median"] <= figures["plan_ms_p95"]


def test_diversity_counts_successes_only():
    def episode(success: bool, mode: int) -> Episode:
        still = np.zeros((5, 2), np.float32)
        return Episode(0, success, 0.0, 0.0, not success, mode, {}, still, np.zeros(5, bool), {})

    episodes = [episode(True, 0), episode(True, 0), episode(False, 1), episode(False, 2)]
    figures = summary(episodes, Latency(1.0, 1.0, 1), math.log(4))
    assert figures["mode_entropy"] == 0
    assert figures["collision"] == 0.5
    assert summary(episodes, Latency(1.0, 1.0, 1))["mode_entropy"] is None


def test_pusht_through_its_package(pusht_path):
    pytest.importorskip("gym_pusht", reason="the extra pusht is not installed")
    from pathlib import Path

    from poise.policies import NearestNeighbour
    from poise.recipe import load_recipe

    recipe = load_recipe(Path(__file__).parents[1] / "recipes/pusht.py")
    windows = recipe.windows(recipe.read(pusht_path))
    policy = NearestNeighbour(recipe.policy)
    policy.fit(windows)
    policy.remember(windows)
    episodes = list(rollout(policy, recipe.task, range(4)))
    # Copying demonstrations moves the block towards the goal; standing still would leave the reward at its start.
    assert np.mean([e.reward_max for e in episodes]) > 0.3
    assert torch.isfinite(policy.followed).all()
