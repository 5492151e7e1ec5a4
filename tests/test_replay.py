import dataclasses
from pathlib import Path

import numpy as np
import pytest

from poise.applications import Driver, find
from poise.applications.driving import joined
from poise.data import Episodes, Facts, Role
from poise.envs import Map, Navigate, NavigateExpert
from poise.evaluation import Task
from poise.evaluation.replay import replay
from poise.recipe import load_recipe

RECIPES = Path(__file__).parents[1] / "recipes"
NAVIGATE = find("navigate").task


def recorded(task: Task, seeds, driver, horizon: int, reward: bool = False) -> Episodes:
    """Episodes as a recorder writes them: what was seen, what was then done, and what it brought."""
    envs, episodes = task.make(1), []
    for seed in seeds:
        raw, _ = envs.reset(seed=[seed])
        rows, command = [], driver(seed)
        for step in range(horizon):
            seen = {name: values[0].copy() for name, values in task.observe(raw).items()}
            action = command(step, raw)
            given = np.asarray(raw)[0].copy() if isinstance(raw, np.ndarray) else None
            raw, rewards, terminated, truncated, _ = envs.step(action[None].astype(np.float32))
            more = {"state": given} if given is not None else {}
            rows.append({**seen, **more, "action": action, "reward": rewards[:1].copy()})
            if terminated[0] or truncated[0]:
                break
        episodes.append(rows)
    envs.close()
    names = [name for name in episodes[0][0] if reward or name != "reward"]
    features = {name: np.stack([row[name] for rows in episodes for row in rows]) for name in names}
    return Episodes(features, np.cumsum([len(rows) for rows in episodes]), (), Facts(10.0))


def expert(seed: int):
    driver = NavigateExpert(Map(), np.random.default_rng(seed))

    def command(step: int, raw) -> np.ndarray:
        if step == 0:
            driver.reset(raw)
        return driver(raw)[0]

    return command


@pytest.fixture(scope="module")
def driven() -> Episodes:
    return recorded(NAVIGATE, (1, 2, 3), expert, 80, reward=True)


def test_what_navigate_recorded_replays_as_it_was_but_for_the_rounding_of_its_observations(driven):
    ran = list(replay(NAVIGATE, driven, range(3)))
    assert [one.recorded for one in ran] == [one.steps for one in ran] == np.diff(driven.ends, prepend=0).tolist()
    for one in ran:
        assert set(one.deviation) == {"position", "velocity", "goal", "obstacles"}
        assert one.largest("position") < 1e-6, "the world is float64, what it shows float32"
        assert set(one.left.values()) == {None}
        assert one.success
        assert one.reward == one.recorded_reward == 1.0


def test_navigate_starts_where_it_is_told():
    env = Navigate(3)
    env.reset(seed=0)
    before = env.reset(seed=5)[0]
    there = {"position": np.array([-0.8, 0.1]), "goal": np.array([0.7, -0.2])}
    after, _ = env.reset(options={"reset_mask": np.array([False, True, False]), **there})
    for name, place in there.items():
        np.testing.assert_array_equal(after[name][1], place.astype(np.float32))
        np.testing.assert_array_equal(after[name][[0, 2]], before[name][[0, 2]])


def test_the_deviation_is_the_distance_and_leaves_its_tolerance_where_it_does(driven):
    moved = driven.features["position"].copy()
    moved[30:] += np.array([0.3, 0.4], np.float32)
    ends = driven.ends[:1]
    features = {name: values[: ends[0]] for name, values in driven.features.items()}
    (one,) = replay(NAVIGATE, Episodes({**features, "position": moved[: ends[0]]}, ends), [0], tolerance=0.5)
    np.testing.assert_allclose(one.deviation["position"][30:], 0.5, atol=1e-5)
    np.testing.assert_allclose(one.deviation["position"][:30], 0, atol=1e-5)
    assert one.left["position"] == 30
    assert one.left["velocity"] is None
    assert one.largest("position") == pytest.approx(0.5, abs=1e-5)
    assert one.rms("position") == pytest.approx(0.5 * np.sqrt(1 - 30 / ends[0]), abs=1e-4)


def test_a_replay_that_the_environment_ends_is_compared_as_far_as_it_went(driven):
    straight = {**driven.features, "action": np.full_like(driven.features["action"], (1.0, 0.0))}
    (one,) = replay(NAVIGATE, Episodes(straight, driven.ends), [0])
    assert one.steps < one.recorded
    assert len(one.deviation["position"]) == one.steps + 1
    assert one.left["position"] is not None
    assert not one.success
    assert one.reward < one.recorded_reward


def test_actions_of_an_expert_were_recorded_before_noise_was_added_and_say_so():
    application = find("navigate")
    (one,) = replay(NAVIGATE, joined(application, [*Driver(application).drive([0])]), [0])
    assert one.deviation["position"][0] == 0
    assert 0.01 < one.largest("position") < 1


@pytest.fixture(scope="module")
def pusht():
    pytest.importorskip("gym_pusht")
    return load_recipe(RECIPES / "pusht.py").task


def push(seed: int):
    """To the block and through it, round and round: contacts from several sides."""

    def command(step: int, raw) -> np.ndarray:
        angle = 0.15 * step + seed
        return np.clip(raw[0, 2:4] + 40 * np.array([np.cos(angle), np.sin(angle)]), 0, 512)

    return command


def test_what_pusht_recorded_replays_as_it_was_through_all_contacts(pusht):
    data = recorded(pusht, (7, 8, 9), push, 120)
    block = data.features["block"]
    assert all(np.ptp(block[a:b], axis=0).max() > 30 for a, b in zip(data.starts, data.ends, strict=True)), "no contact"
    for one in replay(pusht, data, range(3)):
        assert one.deviation["block"][0] < 1e-12
        assert max(one.largest(name) for name in one.deviation) < 1e-3
        assert set(one.left.values()) == {None}
        assert one.recorded_reward is None


def test_pusht_turns_its_block_about_another_point_than_it_is_placed_by(pusht):
    data = recorded(pusht, (7,), push, 40)
    naive = dataclasses.replace(pusht, restart=lambda row: {"reset_to_state": row["state"].tolist()})
    (one,) = replay(naive, data, [0])
    assert one.deviation["block"][0] > 10


def test_the_human_demonstrations_of_pusht_replay_to_the_rounding_of_their_file(pusht, pusht_path):
    data = load_recipe(RECIPES / "pusht.py").read(pusht_path)
    for one in replay(pusht, data, (0, 50, 100, 150, 200)):
        assert one.steps == one.recorded
        assert one.largest("agent") < 1e-3
        assert one.largest("block") < 1e-3
        assert one.reward > 0.85


def test_rewards_are_found_by_their_role(driven):
    features = {"return": driven.features["reward"], **driven.features}
    del features["reward"]
    data = Episodes(features, driven.ends, (), Facts(roles={"return": Role.REWARD}))
    (one,) = replay(NAVIGATE, data, [1])
    assert one.recorded_reward == 1.0


def test_what_cannot_be_replayed_is_refused(driven):
    with pytest.raises(ValueError, match=r"without a way back to a recorded start, expected Task\(restart=...\)"):
        next(replay(dataclasses.replace(NAVIGATE, restart=None), driven, [0]))
    with pytest.raises(ValueError, match=r"got the episodes \[3\] of 3"):
        next(replay(NAVIGATE, driven, [1, 3]))
    without = {name: values for name, values in driven.features.items() if name != "action"}
    with pytest.raises(ValueError, match="a feature 'action'"):
        next(replay(NAVIGATE, Episodes(without, driven.ends), [0]))
    renamed = dataclasses.replace(NAVIGATE, observe=lambda raw: {"elsewhere": raw["position"]})
    with pytest.raises(ValueError, match="expected a feature in common"):
        next(replay(renamed, driven, [0]))
