"""Carrying a bar: a partner who leads, pauses and knows the goal, and a follower who keeps the bar level."""

import importlib.util

import numpy as np
import pytest
from gymnasium.error import ResetNeeded

from poise.applications import Driver, find

pytest.importorskip("mujoco", reason="the extra manipulation is not installed")
if importlib.util.find_spec("gym_aloha") is None:
    pytest.skip("the extra manipulation is not installed", allow_module_level=True)

from poise.envs.carry import STRETCH, TILT, TOLERANCE, Carry, with_partner  # noqa: E402
from poise.envs.experts.carry import DT, LENGTH, ROOM, CarryExpert  # noqa: E402


@pytest.fixture(scope="module")
def env():
    return with_partner()


def played(env, seed, follower, steps=300):
    """All observations, what the last step told, and the path of the partner's gripper."""
    seen, told = [env.reset(seed=seed)[0]], None
    for _ in range(steps):
        *told, info = env.step(follower(seen[-1]))
        seen.append(told[0])
        if told[2] or told[3]:
            break
    assert told is not None
    return seen, (*told, info), np.array([one["hand"] + one["partner"] for one in seen])


def still(observation):
    return np.zeros(3)


@pytest.mark.parametrize(("noise", "first"), [(0.0, 0), (None, 16)])
def test_the_expert_brings_the_bar_to_the_goal(noise, first):
    driver = Driver(find("carry"), noise)
    driven = list(driver.drive(range(first, first + 16)))
    driver.close()
    failed = [(one.seed, one.stage, one.measures) for one in driven if not one.success]
    assert not failed
    for one in driven:
        assert all(np.isfinite(value) for value in one.measures.values())
        assert 40 <= len(one.rows["action"]) <= 300
    mean = {name: np.mean([one.measures[name] for one in driven]) for name in driven[0].measures}
    assert 0 < mean["synchrony_mm"] < 10
    assert 0 < mean["tilt_deg"] < 1.5
    assert 0 < mean["stretch_mm"] < 1e3 * STRETCH / 2
    assert 0 < mean["waiting_mm_s"] < 20


def test_a_follower_who_stands_still_loses_the_bar(env):
    for seed in range(4):
        _, (_, reward, terminated, _, info), _ = played(env, seed, still)
        assert terminated
        assert not info["is_success"]
        assert info["measures"]["lost"] == 1
        assert reward < 1


def test_a_seed_gives_the_same_episode_whatever_came_before(env):
    first, _, path = played(env, 5, CarryExpert().act, 60)
    played(env, 6, still, 10)
    again, _, same = played(env, 5, CarryExpert().act, 60)
    assert np.array_equal(path, same)
    assert all(np.array_equal(a[name], b[name]) for a, b in zip(first, again, strict=True) for name in a)
    other, _ = env.reset(seed=7)
    assert np.abs(other["hand"] - first[0]["hand"]).max() > 0.005
    continued, _ = env.reset()
    assert not np.array_equal(continued["hand"], other["hand"])


def test_an_episode_begins_with_a_level_bar_in_both_hands_and_without_the_goal(env):
    for seed in range(3):
        seen, _ = env.reset(seed=seed)
        carry = env.unwrapped
        assert np.allclose(seen["partner"], (LENGTH, 0, 0), atol=0.008)
        assert np.allclose(seen["object"], (LENGTH / 2, 0, 0), atol=0.008)
        assert abs(np.degrees(np.arcsin(seen["axis"][2]))) < 1
        assert (np.abs(seen["lead"]) < 0.008).all()
        assert ((ROOM[0] <= carry.goal) & (carry.goal <= ROOM[1])).all()
        assert "goal" not in seen


def test_the_partner_pauses_and_its_speeds_and_directions_differ(env):
    speeds = []
    for seed in range(3):
        seen, _, path = played(env, seed, CarryExpert().act)
        speed = np.linalg.norm(np.diff(path, axis=0), axis=1) / DT
        assert np.allclose(speed[-1], np.linalg.norm(seen[-1]["partner_velocity"]), atol=1e-4)
        assert (speed < 0.02).sum() >= 10
        assert 0.04 < np.quantile(speed, 0.9) < 0.15
        speeds.append(np.quantile(speed, 0.9))
    assert np.ptp(speeds) > 0.002


def test_success_is_a_bar_that_stays_at_the_goal_and_ends_an_episode_for_good(env):
    _, (seen, reward, terminated, truncated, info), _ = played(env, 1, CarryExpert().act)
    assert terminated
    assert not truncated
    assert info["is_success"]
    assert reward == 1
    assert np.linalg.norm(seen["hand"] + seen["object"] - env.unwrapped.goal) < TOLERANCE
    assert np.degrees(np.arcsin(abs(seen["axis"][2]))) < TILT
    late = env.step(np.ones(3))
    assert all(np.array_equal(late[0][name], seen[name]) for name in seen)
    assert late[1:] == (reward, terminated, truncated, info)


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="max_steps=0 and render_mode=None, expected at least 1 step"):
        Carry(max_steps=0)
    carry = Carry(max_steps=1)
    with pytest.raises(ResetNeeded, match="call reset"):
        carry.step(np.zeros(6))
    carry.reset(seed=0)
    assert carry.step(np.zeros(6))[3]
