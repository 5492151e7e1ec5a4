"""Grasping, assembly and tool use: experts that succeed in every way they know, and what is told of it."""

import numpy as np
import pytest

from poise import DiffusionPolicy
from poise.applications import Driver, find
from poise.applications.driving import joined
from poise.envs.experts.metaworld import hammer, pick_place, turned
from poise.envs.metaworld import MetaWorld

pytest.importorskip("metaworld", reason="the extra manipulation is not installed")
NAMES = ("pick-place", "pick-place-sides", "assembly", "peg-insert", "hammer", "hammer-two-ways")
VARIANTS = ("pick-place-sides", "hammer-two-ways")


def driven(name, seeds, noise=0.0):
    driver = Driver(find(name), noise)
    attempts = list(driver.drive(seeds))
    driver.close()
    return attempts


def assert_learnable(name, attempts):
    recipe = find(name).recipe()
    policy = DiffusionPolicy(recipe.policy)
    windows = recipe.windows(joined(find(name), attempts))
    policy.fit(windows)
    assert policy.plan(policy.blank(2)).shape == (2, 16, 4)


@pytest.fixture
def rendering():
    try:
        MetaWorld(render_mode="rgb_array").close()
    except OSError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def quiet():
    return {name: driven(name, range(70_000, 70_020)) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_the_expert_succeeds_in_a_short_time(quiet, name):
    assert sum(one.success for one in quiet[name]) >= 19
    steps = [len(one.rows["action"]) for one in quiet[name]]
    assert 40 <= np.median(steps) <= 120
    assert [one.measures["seconds"] for one in quiet[name]] == pytest.approx([n / find(name).rate for n in steps])


@pytest.mark.parametrize("name", NAMES)
def test_the_expert_recovers_from_the_noise_of_demonstrations(name):
    assert sum(one.success for one in driven(name, range(5), find(name).noise)) >= 4


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_gives_the_same_demonstration_whatever_came_before(name):
    first, again = driven(name, [5, 6, 5], 0.15)[::2]
    assert first.measures == again.measures
    for column, values in first.rows.items():
        assert np.array_equal(values, again.rows[column])


@pytest.mark.parametrize("name", VARIANTS)
def test_the_environment_recognises_the_way_that_the_seed_chose(quiet, name):
    ways = [int(np.random.default_rng([one.seed, 2]).choice([0, 1])) for one in quiet[name]]
    assert [one.mode for one in quiet[name]] == ways
    assert 5 <= sum(ways) <= 15
    assert set(find(name).modes) == {0, 1}


def test_what_comes_from_above_or_is_held_in_the_middle_has_no_mode(quiet):
    assert {one.mode for name in ("pick-place", "hammer") for one in quiet[name]} == {-1}


def test_hands_that_come_from_either_side_are_there_low_over_the_table(quiet):
    for one in quiet["pick-place-sides"]:
        beside = -one.rows["to_object"]
        low = np.flatnonzero(beside[:, 2] < 0.06)[0]
        assert 0.05 < beside[low, 0] * (1 if one.mode else -1) < 0.12


def test_the_hammer_is_held_at_places_far_apart(quiet):
    along = {mode: [-o.rows["to_object"][-1, 0] for o in quiet["hammer-two-ways"] if o.mode == mode] for mode in (0, 1)}
    assert np.mean(along[1]) - np.mean(along[0]) > 0.1


@pytest.mark.parametrize("name", ["assembly", "peg-insert"])
def test_precision_is_what_success_asks_for(quiet, name):
    """Metaworld wants the ring within 20 mm of the axis of the peg, and the peg's head within 35 mm of the hole's."""
    off = [one.measures["precision"] for one in quiet[name]]
    assert 0 < min(off) < max(off) < 20


def test_labels_are_a_function_of_what_is_seen_and_of_the_way(quiet):
    one = quiet["pick-place-sides"][0]
    for row in (0, 20, len(one.rows["action"]) - 1):
        seen = {name: values[row] for name, values in one.rows.items()}
        assert one.mode is not None
        _, target, grip, gain = pick_place(seen, one.mode)
        expected = np.append(np.clip(gain * (target - seen["hand"]), -1, 1), grip)
        assert one.rows["action"][row] == pytest.approx(expected, abs=1e-6)


def test_an_expert_that_fails_says_in_which_stage(monkeypatch):
    monkeypatch.setitem(find("hammer").task.arguments, "max_steps", 5)
    (one,) = driven("hammer", [1])
    assert not one.success
    assert one.stage == "reach"
    assert one.measures == {"seconds": pytest.approx(5 / 80)}


def test_vectors_turn_by_quaternions():
    half = np.sqrt(0.5)
    assert turned(np.array([0, 0, half, half]), (1, 0, 0)) == pytest.approx([0, 1, 0])
    assert turned(np.array([half, 0, 0, half]), (0, 1, 0)) == pytest.approx([0, 0, 1])
    assert turned(np.array([0, 0, 0, 1]), (1, 2, 3)) == pytest.approx([1, 2, 3])


def test_a_way_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="got the way 2, expected -1, 0 or 1"):
        pick_place({}, 2)
    with pytest.raises(ValueError, match="got the way 7, expected -1, 0 or 1"):
        hammer({}, 7)


@pytest.mark.parametrize("name", NAMES)
def test_the_recipe_learns_from_what_was_driven(quiet, name):
    assert_learnable(name, quiet[name][:2])


def test_two_cameras_of_different_sizes_see_every_step(rendering):
    (one,) = driven("pick-place-images", [3])
    assert one.success
    steps = len(one.rows["action"])
    for camera, size in (("corner3", 96), ("gripperPOV", 64)):
        pictures = one.rows[camera]
        assert pictures.shape == (steps, size, size, 3)
        assert pictures.dtype == np.uint8
        assert (pictures[0] != pictures[-1]).mean() > 0.01
    assert "object" not in one.rows
    assert_learnable("pick-place-images", [one])


def test_films_are_the_right_way_up(rendering):
    """The lamp-lit floor fills the upper corner of the picture, and the base of the arm is on the left."""
    env = MetaWorld(render_mode="rgb_array")
    env.reset(seed=0)
    picture = env.render()
    env.close()
    assert picture is not None
    assert picture.shape == (480, 480, 3)
    red = (picture[..., 0] > 100) & (picture[..., 1] < 60)
    assert np.argwhere(red)[:, 1].mean() < 200
