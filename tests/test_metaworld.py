"""Meta-World through Gymnasium: seeds, success, and what is said where the extra is missing."""

import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded

from poise import Episodes, NearestNeighbour, PolicySpec, Task, Windows, rollout
from poise.applications import Driver, find
from poise.envs.metaworld import MetaWorld

TASK = "pick-place-v3"


@pytest.fixture(scope="module")
def metaworld():
    return pytest.importorskip("metaworld", reason="the extra manipulation is not installed")


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


def test_the_expert_succeeds_when_metaworld_says_so(metaworld):
    """In pick-place, when the object is within 7 cm of the goal."""
    env, expert = MetaWorld(TASK), find("pick-place").expert()
    observation, _ = env.reset(seed=7)
    expert.reset(env, 7)
    assert np.abs(observation["goal"]).min() > 0  # which metaworld hides unless it is told otherwise
    ended = False
    while not ended:
        observation, reward, ended, truncated, info = env.step(expert.act(observation))
        near = np.linalg.norm(observation["object"] - observation["goal"]) <= 0.07
        assert ended == info["is_success"] == near
        assert 0 <= reward <= 1
        assert not truncated


def test_repeating_a_demonstration_succeeds_in_a_rollout_on_its_seed_and_not_on_another(metaworld):
    driver = Driver(find("pick-place"), noise=0.0)
    (demonstration,) = driver.drive([50_000])
    driver.close()
    features = {name: demonstration.rows[name] for name in ("hand", "gripper", "object", "goal", "action")}
    length = len(features["action"])
    spec = PolicySpec({"hand": (3,), "gripper": (1,), "object": (3,), "goal": (3,)}, 4, history=1, horizon=8, execute=8)
    windows = Windows(Episodes(features, np.array([length])), tuple(spec.observations), 1, 8, 7)
    policy = NearestNeighbour(spec)
    policy.fit(windows)
    policy.remember(windows)
    task = Task("poise.envs.metaworld:poise/MetaWorld-v0", {"task": TASK, "max_steps": 80})
    same, other = sorted(rollout(policy, task, [50_000, 50_003]), key=lambda episode: episode.seed)
    assert same.success
    assert len(same.actions) == length
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


def test_the_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "metaworld", None)
    with pytest.raises(ImportError, match=r"pip install 'poise\[manipulation\]'"):
        MetaWorld(TASK)
    assert "poise/MetaWorld-v0" in gymnasium.registry
