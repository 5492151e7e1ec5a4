"""Meta-World through Gymnasium: seeds, success, the scripted experts, and what is said where the extra is missing."""

import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded

from poise import Episodes, NearestNeighbour, PolicySpec, Task, Windows, rollout
from poise.envs.metaworld import MetaWorld, collect

TASK = "pick-place-v3"


@pytest.fixture(scope="module")
def metaworld():
    return pytest.importorskip("metaworld", reason="the extra manipulation is not installed")


@pytest.fixture(scope="module")
def demonstrated(metaworld):
    return collect(TASK, 3, seed=7, noise=0.2)


def placed(observation) -> np.ndarray:
    return np.concatenate([observation["object"], observation["goal"]], axis=-1)


def test_a_seed_places_objects_and_goal_whatever_came_before(metaworld):
    env = MetaWorld(TASK)
    first, _ = env.reset(seed=5)
    other, _ = env.reset(seed=6)
    for _ in range(30):
        env.step(np.array([0.3, 0.5, -1.0, 1.0]))
    again, _ = env.reset(seed=5)
    assert np.array_equal(placed(first), placed(again))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    difference = np.abs(placed(first) - placed(other))
    assert (difference[[0, 1, 3, 4, 5]] > 1e-3).all()  # metaworld freezes placements unless it is told otherwise
    continued, _ = env.reset()
    assert not np.array_equal(placed(again), placed(continued))


def test_slots_of_a_vector_environment_are_single_ones(metaworld):
    envs = Task("poise.envs.metaworld:poise/MetaWorld-v0", {"task": TASK}).make(2)
    many, _ = envs.reset(seed=[6, 5])
    envs.close()
    for slot, seed in ((0, 6), (1, 5)):
        one, _ = MetaWorld(TASK).reset(seed=seed)
        assert all(np.array_equal(many[name][slot], one[name]) for name in one)


@pytest.mark.filterwarnings("ignore:Constant")  # the expert says that its actions will be clipped
def test_the_expert_succeeds_when_metaworld_says_so(metaworld):
    """In pick-place, when the object is within 7 cm of the goal."""
    env, expert = MetaWorld(TASK), metaworld.policies.ENV_POLICY_MAP[TASK]()
    observation, _ = env.reset(seed=7)
    assert np.abs(observation["goal"]).min() > 0  # which metaworld hides unless it is told otherwise
    ended = False
    while not ended:
        observation, reward, ended, truncated, info = env.step(expert.get_action(env.raw))
        near = np.linalg.norm(observation["object"] - observation["goal"]) <= 0.07
        assert ended == info["is_success"] == near
        assert 0 <= reward <= 1
        assert not truncated


@pytest.mark.filterwarnings("ignore:Constant")
def test_labels_are_the_experts_actions_without_the_noise(metaworld, demonstrated):
    policy = metaworld.policies.ENV_POLICY_MAP[TASK]()
    names = ("hand", "gripper", "object", "object_quaternion", "second", "second_quaternion")
    now = np.concatenate([demonstrated[name] for name in names], axis=1).astype(np.float64)
    actions = [policy.get_action(np.concatenate([o, o, g])) for o, g in zip(now, demonstrated["goal"], strict=True)]
    assert np.allclose(np.clip(actions, -1, 1), demonstrated["action"], atol=1e-5)
    # 1 cm a step and unit of action: the hand did not go where the labels alone would have sent it
    quiet = collect(TASK, 3, seed=7)
    assert quiet["success_rate"] == 1
    assert not np.array_equal(quiet["hand"][:30], demonstrated["hand"][:30])
    again = collect(TASK, 3, seed=7, noise=0.2)
    assert all(np.array_equal(again[name], demonstrated[name]) for name in again)


def test_repeating_a_demonstration_succeeds_in_a_rollout_on_its_seed_and_not_on_another(metaworld):
    data = collect(TASK, 1, seed=50_000)
    features = {name: data[name] for name in ("hand", "gripper", "object", "goal", "action")}
    spec = PolicySpec({"hand": (3,), "gripper": (1,), "object": (3,), "goal": (3,)}, 4, history=1, horizon=8, execute=8)
    windows = Windows(Episodes(features, data["episode_ends"]), tuple(spec.observations), 1, 8, 7)
    policy = NearestNeighbour(spec)
    policy.fit(windows)
    policy.remember(windows)
    task = Task("poise.envs.metaworld:poise/MetaWorld-v0", {"task": TASK, "max_steps": 80})
    same, other = sorted(rollout(policy, task, [50_000, 50_003]), key=lambda episode: episode.seed)
    assert same.success
    assert len(same.actions) == data["episode_ends"][0]
    assert not other.success
    assert len(other.actions) == 80


def test_a_finished_episode_stays_as_it_is(metaworld):
    env = MetaWorld(TASK, max_steps=2)
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step(np.zeros(4))
    env.reset(seed=1)
    up = np.array([0.0, 0.0, 1.0, -1.0])
    assert [env.step(up)[3] for _ in range(2)] == [False, True]
    last, late = env.step(up), env.step(-up)
    assert late[1:] == last[1:]
    assert all(np.array_equal(last[0][name], late[0][name]) for name in last[0])


def test_mistakes_are_told(metaworld):
    with pytest.raises(
        ValueError, match="got the Meta-World task 'pick-place', expected one of 50, such as 'pick-place-v3"
    ):
        MetaWorld("pick-place")
    with pytest.raises(ValueError, match="max_steps=501, expected 1 to 500"):
        MetaWorld(TASK, max_steps=501)
    with pytest.raises(ValueError, match=r"episodes=0 and noise=0.1, expected at least 1 episode"):
        collect(TASK, 0, 0, 0.1)
    with pytest.raises(
        ValueError, match=r"got 0 successes .* in 5 attempts with noise=20.0, expected 1: lower the noise"
    ):
        collect(TASK, 1, 0, 20.0)


def test_the_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "metaworld", None)
    with pytest.raises(ImportError, match=r"pip install 'poise\[manipulation\]'"):
        MetaWorld(TASK)
    assert "poise/MetaWorld-v0" in gymnasium.registry
