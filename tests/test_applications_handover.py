"""Handover: a partner that offers, hesitates and lets go, and a receiver that waits and takes."""

import importlib.util
import itertools
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded

from poise.applications import Driver, find

pytest.importorskip("mujoco", reason="the extra manipulation is not installed")
if importlib.util.find_spec("gym_aloha") is None:
    pytest.skip("the extra manipulation is not installed", allow_module_level=True)

from poise.envs.aloha import BASES, Aloha, pointing  # noqa: E402
from poise.envs.experts.aloha import HandoverExpert  # noqa: E402
from poise.envs.experts.partners import UNIT, HandoverPartner  # noqa: E402
from poise.envs.handover import Handover, with_partner  # noqa: E402

APPLICATION = find("handover")
STILL = np.array([0.0, 0.0, 0.0, -1.0])  # a receiver that does nothing, its gripper open


def played(env, seed, policy, steps=300):
    """Observations, stages of the partner, and how it ended."""
    observation, infos = env.reset(seed=seed)
    seen, stages = [observation], []
    for _ in range(steps):
        observation, reward, terminated, truncated, infos = env.step(policy(observation))
        seen.append(observation)
        stages.append(env.partner.stage)
        if terminated or truncated:
            break
    return seen, stages, infos


def expert(env):
    driver = HandoverExpert()
    driver.reset(env.unwrapped, 0)
    return driver.act


def seed_of(env, hesitation):
    """The first seed whose partner hesitates in that way."""
    for seed in range(100):
        env.reset(seed=seed)
        if env.partner.hesitation == hesitation:
            return seed
    raise AssertionError(hesitation)


@pytest.fixture(scope="module")
def env():
    return with_partner()


@pytest.mark.parametrize(("noise", "seeds"), [(0.0, range(5)), (None, range(5, 10))])
def test_the_expert_takes_the_cube(noise, seeds):
    driver = Driver(APPLICATION, noise)
    driven = list(driver.drive(seeds))
    driver.close()
    assert sum(one.success for one in driven) >= len(driven) - (noise is None)
    for one in driven:
        assert 50 < len(one.rows["action"]) <= 300
        assert all(np.isfinite(value) for value in one.measures.values())
        assert {name: rows.shape[1:] for name, rows in one.rows.items() if name != "action"} == APPLICATION.features
        assert one.rows["action"].shape[1:] == (APPLICATION.action,)
        assert np.abs(one.rows["action"]).max() <= 1


def test_a_seed_gives_the_same_episode_whatever_came_before(env):
    first, *_ = played(env, 3, expert(env), 40)
    played(env, 4, lambda _: env.action_space.sample(), 25)
    again, *_ = played(env, 3, expert(env), 40)
    other, *_ = played(env, 5, expert(env), 40)
    for one, same in zip(first, again, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], same[name])
    assert np.abs(first[0]["partner"] - other[0]["partner"]).min() > 1e-4
    continued, _ = env.reset()
    assert np.abs(continued["partner"] - other[0]["partner"]).min() > 1e-4


def test_success_is_a_cube_that_the_receiver_alone_holds(env):
    seen, _, infos = played(env, 0, expert(env))
    base = env.unwrapped
    assert infos["is_success"]
    assert base.held("left")
    assert not any(base.simulation.touches("right", "red_box"))
    assert np.linalg.norm(seen[-1]["partner"]) > 0.08
    assert infos["measures"]["response_s"] < 5
    assert infos["measures"]["premature"] == 0
    state = env.step(STILL)  # a finished episode stays as it is
    again = env.step(-STILL)
    assert state[2]
    assert again[2]
    for name in seen[-1]:
        np.testing.assert_array_equal(again[0][name], seen[-1][name])


def test_who_does_nothing_is_waited_for_and_gets_nothing(env):
    _, stages, infos = played(env, seed_of(env, "none"), lambda _: STILL)
    assert len(stages) == 300
    assert not infos["is_success"]
    assert "release" not in stages
    assert env.unwrapped.held("right")
    assert infos["measures"]["clearance_mm"] > 50


@pytest.mark.parametrize(
    ("hesitation", "order"),
    [
        ("none", ["wait", "bring", "offer"]),
        ("pause", ["wait", "bring", "pause", "bring", "offer"]),
        ("withdraw", ["wait", "bring", "offer", "withdraw", "away", "bring", "offer"]),
    ],
)
def test_a_partner_hesitates_as_it_is_said_to(env, hesitation, order):
    _, stages, infos = played(env, seed_of(env, hesitation), lambda _: STILL)
    assert [stage for stage, _ in itertools.groupby(stages)] in (order, order[1:])  # it may begin at once
    assert infos["measures"]["offers"] == (2 if hesitation == "withdraw" else 1)


@pytest.mark.parametrize("hesitation", ["pause", "withdraw"])
def test_the_expert_keeps_off_while_the_partner_hesitates(env, hesitation):
    env.reset(seed=seed_of(env, hesitation))
    seen, stages, infos = played(env, seed_of(env, hesitation), expert(env))
    assert infos["is_success"]
    for observation, stage in zip(seen[1:], stages, strict=True):
        if stage in ("pause", "away"):
            assert np.linalg.norm(observation["cube"]) > 0.06
            assert observation["gripper"] > 0.9


def test_partners_differ_from_seed_to_seed(env):
    drawn = []
    for seed in range(40):
        partner = HandoverPartner()
        partner.reset(env.unwrapped, seed)
        drawn.append((partner.hesitation, partner.speed, *partner.offer))
    assert {one[0] for one in drawn} == {"none", "pause", "withdraw"}
    assert (np.std([one[1:] for one in drawn], axis=0) > 0.02).all()


def test_a_fallen_cube_ends_the_episode_without_success():
    env = Handover()
    env.reset(seed=0)
    for _ in range(60):
        _, reward, terminated, _, infos = env.step([*STILL, 0, 0, 0, -1])  # the partner opens its gripper
        if terminated:
            break
    assert terminated
    assert not infos["is_success"]
    assert reward == 0


def test_an_action_moves_the_tool_by_its_unit():
    env = Handover()
    before, _ = env.reset(seed=1)
    for _ in range(4):
        after, *_ = env.step([0, 1, 0, -1, 0, 0, 0, 1])
    for _ in range(10):
        after, *_ = env.step([0, 0, 0, -1, 0, 0, 0, 1])
    np.testing.assert_allclose(after["hand"] - before["hand"], [0, 4 * UNIT, 0], atol=6e-3)
    np.testing.assert_allclose(
        after["hand"] + after["lead"], before["hand"] + before["lead"] + [0, 4 * UNIT, 0], atol=1e-6
    )
    assert np.linalg.norm(after["cube"] - after["partner"]) < 0.015  # still in the partner's gripper


def test_both_arms_reach_what_is_level_in_front_of_them():
    simulation = Aloha()
    for side, roll in (("left", np.pi / 2), ("right", 0.0)):
        kinematics = simulation.arms[side].kinematics
        for forward, y, z in itertools.product((0.3, 0.5), (0.42, 0.58), (0.22, 0.38)):
            position = np.array([BASES[side][0] + (forward if side == "left" else -forward), y, z])
            other = {"left": "right", "right": "left"}[side]
            rest = np.array([-0.17 if other == "left" else 0.17, 0.5, 0.3])
            poses = {side: (position, pointing(side, position, roll)), other: (rest, pointing(other, rest))}
            simulation.begin(poses, {"left": 1.0, "right": 0.5})
            np.testing.assert_allclose(simulation.tool(side), position, atol=1e-3)
            assert abs(kinematics.joints(simulation.data)[3]) < 0.2  # the forearm is not turned
    assert simulation.opening("left") == pytest.approx(1.0)
    assert simulation.opening("right") == pytest.approx(0.5)


def test_what_is_out_of_reach_is_told():
    simulation, rest = Aloha(), np.array([0.17, 0.5, 0.3])
    poses = {"left": (np.array([1.0, 0.5, 0.3]), (1, 0, 0, 0)), "right": (rest, pointing("right", rest))}
    with pytest.raises(ValueError, match=r"the left arm got the tool pose \[1.0, 0.5, 0.3\].*keep within reach"):
        simulation.begin(poses, {"left": 1.0, "right": 1.0})


def test_the_environment_is_registered_and_checks_its_arguments():
    env = gymnasium.make("poise/Handover-v0", max_steps=3)
    assert env.action_space.shape == (4,)
    env.reset(seed=0)
    assert [env.step(STILL)[3] for _ in range(3)] == [False, False, True]
    with pytest.raises(ValueError, match="got max_steps=0 and render_mode=None, expected at least 1 step"):
        Handover(max_steps=0)
    with pytest.raises(ResetNeeded, match="call reset"):
        Handover().step(np.zeros(8))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of a renderer that was not made
def test_cameras_of_different_sizes_are_observed():
    env, reason = None, ""
    try:
        env = with_partner(**find("handover-images").task.arguments, render_mode="rgb_array")
    except OSError as error:
        reason = str(error)
    if env is None:
        pytest.skip(reason)
    first, _ = env.reset(seed=0)
    second, *_ = env.step([1.0, 0.0, 0.0, -1.0])
    for name, shape in find("handover-images").features.items():
        assert first[name].shape == shape
    for name in ("angle", "left_wrist"):
        assert first[name].dtype == np.uint8
        assert first[name].std() > 10
        assert (first[name] != second[name]).any()
    assert env.render().shape == (480, 480, 3)
    with pytest.raises(ValueError, match="got the camera 'angel'"):
        Handover(cameras={"angel": 32})
    env.close()


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'poise\[manipulation\]'"):
        Aloha()
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "mujoco", None)
    for name in [
        name for name in sys.modules if name in ("poise.envs.handover", "poise.envs.aloha", "poise.envs.kinematics")
    ]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r"pip install 'poise\[manipulation\]'"):
        APPLICATION.task.make(1)
