"""Navigation, mazes and moving obstacles: seeds, maps, ways, and the experts that demonstrate them."""

import sys

import numpy as np
import pytest
from gymnasium.error import ResetNeeded

from poise.applications import Driver, find
from poise.applications.discs import FORESEEN, NEAR, SOON, closest
from poise.envs import Avoid, Map, Navigate, RandomMaps, routes
from poise.envs.avoid import ARENA, bounce
from poise.envs.experts.avoid import PotentialField
from poise.envs.grid import Grid, leftness
from poise.envs.shortest import shortest

LOOP = Grid(tuple(tuple(cell == "#" for cell in row) for row in ("#####", "#...#", "#.#.#", "#...#", "#####")))


def driven(name, count, noise=None):
    driver = Driver(find(name), noise)
    attempts = list(driver.drive(range(700, 700 + count)))
    driver.close()
    return attempts


def states(env, seeds, actions):
    """Everything that environments tell in an open-loop episode, slots first."""
    observation, _ = env.reset(seed=seeds)
    told = [*observation.values()]
    for action in actions:
        observation, reward, terminated, truncated, infos = env.step(action)
        told += [*observation.values(), reward, terminated, truncated, *infos.pop("measures").values(), *infos.values()]
    return told


@pytest.mark.parametrize("make", [lambda n: Avoid(n), lambda n: Navigate(n, RandomMaps())], ids=["avoid", "maps"])
def test_vectorised_equals_single(make):
    count, generator = 5, np.random.default_rng(0)
    actions = np.array([0.4, 0.0]) + 0.6 * generator.uniform(-1, 1, (25, count, 2))
    env = make(count)
    states(env, list(range(40, 40 + count)), actions)  # what came before makes no difference
    together = states(env, list(range(40, 40 + count)), actions)
    for i in range(count):
        alone = states(make(1), [40 + i], actions[:, i : i + 1])
        assert all(np.array_equal(a[0], b[i]) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("name", ["navigate", "navigate-maps", "maze-medium", "maze-large", "avoid"])
def test_experts_succeed_and_repeat_themselves(name):
    if "maze" in name:
        pytest.importorskip("gymnasium_robotics", reason="the extra maze is not installed")
    application = find(name)
    first, again = driven(name, 10, noise=0.0), driven(name, 1, noise=0.0)[0]
    assert all(one.success for one in first)
    assert all(np.array_equal(first[0].rows[key], again.rows[key]) for key in again.rows)
    assert {key: values.shape[1:] for key, values in again.rows.items()} == {
        **application.features,
        "action": (application.action,),
    }
    assert application.recipe().policy.action == 2
    if application.modes:
        ways = {one.mode for one in first}
        assert ways <= set(application.modes)
        assert len(ways) > 1


def test_every_seed_has_its_own_map_with_several_routes():
    env = Navigate(8, RandomMaps())
    observation, _ = env.reset(seed=0)
    assert len({map.obstacles for map in env._maps}) == 8
    assert all(len(routes(map)) >= 2 for map in env._maps)
    assert observation in env.observation_space
    assert (np.diff(observation["obstacles"][..., 0]) >= 0).all()
    before = observation["obstacles"][1:]
    observation, _ = env.reset(options={"reset_mask": np.arange(8) == 0})
    assert np.array_equal(observation["obstacles"][1:], before)
    with pytest.raises(ValueError, match="found no map with discs=40"):
        RandomMaps(discs=40).draw(np.random.default_rng(0))


def test_the_shortest_way_round_a_disc_is_two_tangents_and_an_arc():
    map, begin, end = Map(obstacles=((0.0, 0.0, 0.17),)), np.array([-0.8, 0.0]), np.array([0.8, 0.0])
    tangent, radius = np.sqrt(0.8**2 - 0.2**2), 0.2
    exact = 2 * tangent + radius * (np.pi - 2 * np.arccos(radius / 0.8))
    assert exact <= shortest(map, begin, end) <= 1.005 * exact
    assert shortest(map, begin, np.array([-0.8, 0.5])) == pytest.approx(0.5)


def test_the_way_gone_is_measured_against_the_shortest():
    env = Navigate(1, Map(obstacles=(), start=(-0.5, 0.0, -0.5, 0.0), goal=(0.5, 0.0, 0.5, 0.0)))
    _, infos = env.reset(seed=0)
    for k in range(80):
        action = [[0.0, 0.5]] if k < 5 else env._goal - env._position
        *_, infos = env.step(action)
    assert infos["is_success"].all()
    trail = env._trail[0, : env._steps[0] + 1]
    gone = np.linalg.norm(np.diff(trail, axis=0), axis=-1).sum()
    left = np.linalg.norm(trail[-1] - [0.5, 0.0])
    assert infos["measures"]["path_over_shortest"][0] == pytest.approx(gone + left)
    assert gone + left > 1.01


def test_ways_round_a_wall_have_two_classes_and_sides():
    assert LOOP.rays == ((2, 2),)
    right, left = sorted(LOOP.ways((3, 2), 8)[1, 2], key=leftness)
    assert left == ((3, 2), (3, 1), (2, 1), (1, 1), (1, 2))
    assert right == ((3, 2), (3, 3), (2, 3), (1, 3), (1, 2))
    assert LOOP.signature(left) != LOOP.signature(right)
    # what turns back is in the class of what does not
    assert LOOP.signature((left[0], left[1], left[0], *left[1:])) == LOOP.signature(left)


def test_a_maze_tells_the_way_that_was_gone_and_stays_as_it_ended():
    pytest.importorskip("gymnasium_robotics", reason="the extra maze is not installed")
    from poise.envs.maze import Maze

    env = Maze(render_mode="rgb_array")
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step(np.zeros(2))
    for side in (0, 1):
        observation, info = env.reset(seed=3)
        assert info["mode"] == -1
        over = False
        for cell in [*env.ways[side][1:], env.ways[side][-1]]:
            for _ in range(40):
                offset = env.centre(cell) - observation["position"]
                if over or np.linalg.norm(offset) < 0.1:
                    break
                observation, reward, over, _, info = env.step(3 * offset)
        assert over
        assert (reward, info["is_success"], info["mode"]) == (1.0, True, side)
        assert 0.8 < info["measures"]["path_over_shortest"] < 1.3
    last = env.step(np.ones(2))
    assert np.array_equal(last[0]["position"], observation["position"])
    assert last[4] == info
    picture = env.render()
    assert picture.shape[0] == 256
    assert picture.dtype == np.uint8
    env.close()
    with pytest.raises(ValueError, match="got the maze 'lage', expected one of medium, large: did you mean 'large'"):
        Maze("lage")


def test_the_missing_extra_is_named(monkeypatch):
    from poise.envs.maze import Maze

    monkeypatch.setitem(sys.modules, "gymnasium_robotics.envs.maze", None)
    with pytest.raises(ImportError, match=r"pip install 'poise\[maze\]'"):
        Maze()


def test_discs_bounce_off_walls_as_in_small_steps():
    centre, velocity, radius = np.array([[0.7, -0.5]]), np.array([[0.4, -0.3]]), np.array([0.1])
    there, motion = bounce(centre, velocity, radius, 7.0)
    limit, place, speed = np.array([ARENA.half_width, ARENA.half_height]) - 0.1, centre[0].copy(), velocity[0].copy()
    for _ in range(7000):
        place += 0.001 * speed
        speed = np.where(np.abs(place) > limit, -np.sign(place) * np.abs(speed), speed)
    assert np.allclose(there[0], place, atol=2e-3)
    assert np.array_equal(motion[0], speed)


def test_a_disc_that_runs_into_a_resting_robot_is_a_collision():
    env = Avoid(2)
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space
    gaps = np.linalg.norm(observation["obstacles"][..., :2], axis=-1) - observation["obstacles"][..., 4]
    assert (np.diff(gaps, axis=1) >= -1e-6).all()  # the nearest comes first
    env._discs[:], env._motion[:] = (0.9, 0.7), 0.0
    env._discs[0, 0], env._motion[0, 0] = env._position[0] + (0.4, 0.0), (-0.3, 0.0)
    for _ in range(15):
        *_, infos = env.step(np.zeros((2, 2)))
    assert infos["collision"].tolist() == [True, False]
    assert infos["measures"]["clearance"][0] == 0
    assert infos["measures"]["clearance"][1] > 0.3
    assert np.linalg.norm(env._discs[0, 0] - env._position[0]) == pytest.approx(env._radius[0, 0] + 0.03, abs=0.01)


def test_pictures_show_discs_where_they_are():
    env = Avoid(1, render_mode="rgb_array")
    env.reset(seed=1)
    (before,) = env.render()
    for _ in range(4):
        env.step(np.zeros((1, 2)))
    (after,) = env.render()
    assert before.shape == after.shape
    height, width, _ = after.shape
    for x, y in env._discs[0]:
        assert after[int((0.85 - y) / 1.7 * height), int((x + 1.05) / 2.1 * width)].max() < 100
    assert not np.array_equal(before, after)


def test_the_expert_foresees_what_the_potential_field_runs_into():
    env, field = Avoid(200), PotentialField()
    observation, _ = env.reset(seed=0)
    over = np.zeros(200, bool)
    while not over.all():
        observation, _, terminated, truncated, infos = env.step(field.act(observation))
        over = terminated | truncated
    assert 0.02 < infos["collision"].mean() < 0.2  # fair, and not enough
    assert infos["is_success"].mean() > 0.8
    failed = np.flatnonzero(infos["collision"])[:8].tolist()
    driver = Driver(find("avoid"), 0.0)
    assert np.mean([one.success for one in driver.drive(failed)]) >= 0.75  # on the episodes that are the hardest
    driver.close()


def test_discs_are_told_when_and_where_they_come_closest():
    robot = {"position": np.zeros((1, 2)), "velocity": np.array([[0.5, 0.0]]), "goal": np.array([[0.0, 2.0]])}
    offset = np.array([[[1.0, 0.3], [-1.0, 0.0], [0.9, 0.9]]])
    motion, radius = np.array([[[0.0, 0.0], [0.0, 0.0], [0.2, -0.3]]]), np.full((1, 3, 1), 0.1)
    found = closest(robot, offset, motion, radius, (0.4, 0.05))
    on, straight = found[0, :, :7], found[0, :, 7:]
    passed, behind, crossing = on
    np.testing.assert_allclose(passed, [-0.5, 0, 2.0, 0, 0.3, 0.15, np.exp(-0.15 / NEAR - 2.0 / SOON)], atol=1e-12)
    np.testing.assert_allclose(behind[2:6], [0.0, -1.0, 0.0, 0.85], atol=1e-12)  # it was closest before
    np.testing.assert_allclose(crossing[2:6], [2.5, 0.15, 0.15, np.hypot(0.15, 0.15) - 0.15], atol=1e-12)  # foreseen
    np.testing.assert_allclose(straight[0, :5], [0, -0.4, 0.75, 1.0, 0.0], atol=1e-12)
    dense = np.linspace(0, FORESEEN, 100_001)[:, None]
    gaps = np.linalg.norm(offset[0, 2] + dense * (motion[0, 2] - robot["velocity"][0]), axis=1) - 0.15
    assert crossing[5] == pytest.approx(gaps.min(), abs=1e-9)
