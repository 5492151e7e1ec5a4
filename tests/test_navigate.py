"""The navigation world, its pictures and its expert."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from poise.envs import Map, Navigate, NavigateExpert, demonstrate, draw_frame, routes
from poise.envs.maps import GOAL_RADIUS
from poise.envs.point import DT, SUBSTEPS, TAU, advance

Floats = NDArray[np.float64]

EMPTY = Map(obstacles=())


def drive(
    env: Navigate, target: Floats, steps: int = 80, speed: float = 0.6
) -> tuple[dict[str, NDArray], dict[str, NDArray]]:
    """Steer every robot towards a fixed point; stops early when all episodes are over."""
    observation, infos = env._observe(), env._infos()
    for _ in range(steps):
        offset = target - observation["position"]
        distance = np.linalg.norm(offset, axis=-1, keepdims=True)
        if (distance < 0.03).all():
            break
        command = speed * offset / np.maximum(distance, speed * DT)
        observation, _, terminated, truncated, infos = env.step(command)
        if (terminated | truncated).all():
            break
    return observation, infos


def rollout(env: Navigate, actions: Floats, seed: int) -> list[NDArray]:
    """Everything that an open-loop rollout returns, as a list of arrays with the environments first."""
    observation, _ = env.reset(seed=seed)
    records = [*observation.values()]
    for action in actions:
        observation, reward, terminated, truncated, infos = env.step(action)
        records += [
            *observation.values(),
            reward,
            terminated,
            truncated,
            *infos.pop("measures").values(),
            *infos.values(),
        ]
    return records


def wandering(steps: int, count: int, seed: int = 0) -> Floats:
    """Smooth commands to the right that end some episodes in collisions and leave others running."""
    generator = np.random.default_rng(seed)
    return np.array([0.35, 0.0]) + 0.7 * generator.uniform(-1, 1, (steps, count, 2))


def test_make_vec_builds_the_registered_environment() -> None:
    env = gymnasium.make_vec("poise/Navigate-v0", num_envs=3, map=EMPTY, render_mode="rgb_array")
    assert isinstance(env, Navigate)
    assert env.num_envs == 3
    assert env.map == EMPTY
    assert env.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    with pytest.raises(gymnasium.error.Error, match="entry_point is not specified"):
        gymnasium.make("poise/Navigate-v0")


@pytest.mark.parametrize("map", [Map(), EMPTY])
def test_observations_and_actions_are_in_their_spaces(map: Map) -> None:
    env = Navigate(5, map)
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space
    env.action_space.seed(0)
    for _ in range(30):
        observation, *_ = env.step(env.action_space.sample())
        assert observation in env.observation_space
    one = {name: value[0] for name, value in observation.items()}
    assert one in env.single_observation_space


def test_seeded_resets_repeat_and_differ_between_seeds() -> None:
    actions = wandering(20, 4)
    first, again, other = (rollout(Navigate(4), actions, seed) for seed in (7, 7, 8))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])
    # environment i of seed s is environment i - 1 of seed s + 1
    assert np.array_equal(first[0][1:], other[0][:-1])


def test_starts_and_goals_fill_their_regions() -> None:
    map = Map()
    observation, _ = Navigate(500).reset(seed=0)
    for name, box in (("position", map.start), ("goal", map.goal)):
        low, high = np.array(box[:2]), np.array(box[2:])
        assert (observation[name] >= low - 1e-6).all()
        assert (observation[name] <= high + 1e-6).all()
        assert (np.ptp(observation[name], axis=0) > 0.95 * (high - low)).all()


def test_an_unseeded_reset_continues_the_stream_of_each_environment() -> None:
    env, single = Navigate(2), Navigate(1)
    first, _ = env.reset(seed=[3, 9])
    second, _ = env.reset()
    assert not np.array_equal(first["position"], second["position"])
    single.reset(seed=9)
    alone, _ = single.reset()
    assert np.array_equal(alone["goal"][0], second["goal"][1])


def test_vectorised_equals_single_bit_for_bit() -> None:
    count, steps = 7, 25
    actions = wandering(steps, count)
    together = rollout(Navigate(count), actions, seed=20)
    assert together[-2].any()  # some collide,
    assert not together[-2].all()  # and some do not
    for i in range(count):
        alone = rollout(Navigate(1), actions[:, i : i + 1], seed=20 + i)
        for a, b in zip(alone, together, strict=True):
            assert a.dtype == b.dtype
            assert np.array_equal(a[0], b[i])


def test_a_partial_reset_leaves_the_others_alone() -> None:
    env, untouched = Navigate(4), Navigate(4)
    actions = wandering(30, 4)
    rollout(env, actions[:10], seed=0)
    rollout(untouched, actions[:10], seed=0)
    mask = np.array([False, True, False, True])
    options = {"reset_mask": mask}
    observation, infos = env.reset(seed=[None, 50, None, 51], options=options)
    assert options == {"reset_mask": mask}
    fresh, _ = Navigate(2).reset(seed=50)
    assert np.array_equal(observation["position"][mask], fresh["position"])
    assert (observation["velocity"][mask] == 0).all()
    assert not infos["is_success"][mask].any()
    for action in actions[10:]:
        a, b = env.step(action), untouched.step(action)
        assert np.array_equal(a[0]["position"][~mask], b[0]["position"][~mask])
        assert np.array_equal(a[1][~mask], b[1][~mask])
    assert not np.array_equal(a[0]["position"][mask], b[0]["position"][mask])


def test_a_partial_reset_restarts_the_clock() -> None:
    env = Navigate(2, EMPTY, max_episode_steps=5)
    env.reset(seed=0)
    for _ in range(5):
        *_, truncated, _ = env.step(np.zeros((2, 2)))
    assert truncated.all()
    env.reset(options={"reset_mask": np.array([True, False])})
    for k in range(5):
        *_, truncated, _ = env.step(np.zeros((2, 2)))
        assert truncated.tolist() == [k == 4, True]


def test_finished_environments_stay_frozen() -> None:
    env = Navigate(2, Map(start=(-0.9, 0.0, -0.9, 0.0)))
    env.reset(seed=0)
    right, still = [1.0, 0.0], [0.0, 0.0]
    for _ in range(20):
        last = env.step(np.array([right, still]))
    assert last[2].tolist() == [True, False]
    for action in (right, [-1.0, 1.0]):
        after = env.step(np.array([action, right]))
        for name, value in last[0].items():
            assert np.array_equal(after[0][name][0], value[0])
        assert after[1][0] == last[1][0] > 0
        assert (after[2][0], after[3][0], after[4]["collision"][0]) == (True, False, True)
    assert not np.array_equal(after[0]["position"][1], last[0]["position"][1])


def test_dynamics_match_fine_numerical_integration() -> None:
    generator = np.random.default_rng(0)
    position, velocity, command = generator.uniform(-1, 1, (3, 20, 2))
    expected_p, expected_v = position.copy(), velocity.copy()
    steps = 20_000
    for _ in range(steps):  # explicit midpoint, second order
        middle = expected_v + (command - expected_v) / TAU * DT / steps / 2
        expected_p += middle * DT / steps
        expected_v += (command - middle) / TAU * DT / steps
    p, v = advance(position, velocity, command, DT)
    np.testing.assert_allclose(p, expected_p, atol=1e-9)
    np.testing.assert_allclose(v, expected_v, atol=1e-9)


def test_step_follows_the_closed_form_and_clips_the_command() -> None:
    env = Navigate(1, EMPTY)
    start = env.reset(seed=0)[0]["position"][0]
    for k in range(1, 9):
        observation, *_ = env.step(np.array([[0.5, 7.0 if start[1] < 0 else -7.0]]))
        u = np.array([0.5, 1.0 if start[1] < 0 else -1.0])
        t = k * DT
        np.testing.assert_allclose(observation["velocity"][0], u * (1 - np.exp(-t / TAU)), atol=1e-6)
        np.testing.assert_allclose(
            observation["position"][0], start + u * (t - TAU * (1 - np.exp(-t / TAU))), atol=1e-6
        )


def test_no_tunnelling_through_a_tiny_disc_at_top_speed() -> None:
    """Discs far smaller than the 0.02 m of a sub-step, at random phases, on the line the robot drives at 1 m/s."""
    count, radius = 40, 1e-3
    assert radius < DT / SUBSTEPS / 5
    for x in np.linspace(0.0, 0.1, count):
        map = Map(
            obstacles=((x, 0.0, radius),),
            start=(-0.9, 0.0, -0.9, 0.0),
            goal=(0.9, 0.0, 0.9, 0.0),
            robot_radius=1e-3,
        )
        env = Navigate(1, map)
        env.reset(seed=0)
        for _ in range(25):
            observation, _, terminated, *_, infos = env.step(np.array([[1.0, 0.0]]))
        assert terminated[0]
        assert infos["collision"][0]
        assert observation["position"][0, 0] < x


@pytest.mark.parametrize("target", [[-0.9, 2.0], [-0.9, -2.0], [-3.0, 0.0], [0.0, 0.0]])
def test_walls_and_obstacles_collide(target: list[float]) -> None:
    env = Navigate(3)
    env.reset(seed=1)
    observation, infos = drive(env, np.array(target), speed=1.0)
    assert infos["collision"].all()
    assert not infos["is_success"].any()
    assert (observation["velocity"] == 0).all()
    limit = np.array([1.0, 0.8]) - 0.03
    assert (np.abs(observation["position"]) <= limit + 1e-6).all()


def test_success_reward_and_flags() -> None:
    env = Navigate(6, EMPTY)
    observation, _ = env.reset(seed=2)
    initial = np.linalg.norm(observation["goal"] - observation["position"], axis=-1)
    done = np.zeros(6, bool)
    while not done.all():
        offset = observation["goal"] - observation["position"]
        observation, reward, terminated, truncated, infos = env.step(offset)
        distance = np.linalg.norm(observation["goal"] - observation["position"], axis=-1)
        assert np.array_equal(terminated, distance < GOAL_RADIUS)
        assert np.array_equal(infos["is_success"], terminated)
        np.testing.assert_allclose(reward[~terminated], (1 - distance / initial)[~terminated], atol=1e-6)
        assert (reward[terminated] == 1.0).all()
        done = terminated | truncated
    assert not truncated.any()
    assert not infos["collision"].any()


def test_the_reward_never_becomes_negative() -> None:
    env = Navigate(1, Map(obstacles=(), start=(0.0, 0.0, 0.0, 0.0)))
    env.reset(seed=0)
    for _ in range(5):
        _, reward, *_ = env.step(np.array([[-1.0, 0.0]]))
    assert reward[0] == 0.0


@pytest.mark.parametrize(
    ("waypoints", "mode"),
    [
        ([(-0.29, 0.4), (0.29, 0.62), (0.6, 0.3)], 0b111),
        ([(-0.29, 0.4), (0.29, 0.0), (0.6, 0.0)], 0b101),
        ([(-0.29, -0.4), (0.29, 0.0), (0.6, 0.0)], 0b100),
        ([(-0.29, -0.4), (0.29, -0.62), (0.6, -0.3)], 0b000),
        ([(-0.29, 0.4), (0.0, 0.4)], 0b001),
        # the last crossing counts: over the first disc, back, and under it
        ([(-0.29, 0.4), (0.0, 0.4), (-0.29, 0.4), (-0.6, 0.2), (-0.6, -0.3), (-0.29, -0.4), (0.0, -0.3)], 0b000),
    ],
)
def test_mode_of_hand_driven_routes(waypoints: list[tuple[float, float]], mode: int) -> None:
    env = Navigate(2, max_episode_steps=1000)
    env.reset(seed=4)
    assert env._infos()["mode"].tolist() == [0, 0]
    for waypoint in waypoints:
        _, infos = drive(env, np.array(waypoint))
    assert not infos["collision"].any()
    assert infos["mode"].tolist() == [mode, mode]


def test_the_mode_of_a_truncated_episode_is_frozen() -> None:
    map = Map(obstacles=((0.0, -0.5, 0.1),), start=(-0.03, 0.0, -0.03, 0.0))
    env = Navigate(2, map, max_episode_steps=1)
    env.reset(seed=0)
    for _ in range(3):
        *_, truncated, infos = env.step(np.array([[0.5, 0.0], [1.0, 0.0]]))
    assert truncated.all()
    assert env._position[:, 0].max() < 0 < (env._position + DT * env._velocity)[1, 0]
    assert infos["mode"].tolist() == [0, 0]


def test_the_last_of_two_crossings_within_a_step_counts() -> None:
    """The robot crosses above a tiny disc, turns and crosses back below it, all within 0.1 s."""
    map = Map(obstacles=((0.0, 0.0, 5e-4),), start=(-0.5, 0.0, -0.5, 0.0), robot_radius=5e-4)
    env = Navigate(1, map)
    env.reset(seed=0)
    env._position[:], env._velocity[:] = (-0.004, 0.06), (0.3, -1.0)
    peak = advance(env._position, env._velocity, np.array([-1.0, -1.0]), 0.05)[0]
    observation, *_, infos = env.step(np.array([[-1.0, -1.0]]))
    assert peak[0, 0] > 0 > observation["position"][0, 0]
    assert not infos["collision"].any()
    assert infos["mode"].tolist() == [0]


def test_the_mean_of_the_routes_hits_the_first_disc() -> None:
    env = Navigate(20)
    observation, _ = env.reset(seed=0)
    paths = [np.array([observation["position"][0], *route.knots]) for route in routes(env.map)]
    mean = np.mean(paths, axis=0)
    x, y, radius = env.map.obstacles[0]
    assert np.hypot(*(mean[1:3].mean(axis=0) - (x, y))) < radius / 2
    _, infos = drive(env, mean[1])
    assert infos["collision"].all()


def test_natural_routes_of_the_default_map_are_free_and_four() -> None:
    map = Map()
    found = routes(map)
    assert [route.mode for route in found] == [0b000, 0b100, 0b101, 0b111]
    for route in found:
        for x, y, radius in map.obstacles:
            assert min(np.hypot(px - x, py - y) for px, py in route.knots) > radius + map.robot_radius + 0.09


def test_a_map_without_a_gap_has_no_route() -> None:
    blocked = Map(obstacles=((0.0, 0.4, 0.4), (0.0, -0.4, 0.4)), start=(-0.9, 0, -0.9, 0), goal=(0.9, 0, 0.9, 0))
    with pytest.raises(ValueError, match="no route"):
        routes(blocked)


def test_the_expert_solves_it_by_every_route() -> None:
    env = Navigate(200)
    observation, _ = env.reset(seed=0)
    expert = NavigateExpert(env.map, np.random.default_rng(0))
    expert.reset(observation)
    clearance, done = np.inf, np.zeros(200, bool)
    while not done.all():
        observation, _, terminated, truncated, infos = env.step(expert(observation))
        done = terminated | truncated
        disc = observation["obstacles"]
        gap = np.linalg.norm(observation["position"][:, None] - disc[..., :2], axis=-1) - disc[..., 2] - 0.03
        clearance = min(clearance, gap.min())
    assert infos["is_success"].mean() >= 0.95
    assert clearance > 0.08
    assert np.array_equal(infos["mode"][infos["is_success"]], expert.mode[infos["is_success"]])
    share = np.bincount(infos["mode"], minlength=8)[[0, 4, 5, 7]] / 200
    assert share.sum() == 1
    assert -(share * np.log(share)).sum() / np.log(4) > 0.95


def test_the_expert_restarts_only_the_masked_robots() -> None:
    env = Navigate(8)
    observation, _ = env.reset(seed=0)
    expert = NavigateExpert(env.map, np.random.default_rng(1))
    expert.reset(observation)
    before, command = expert.mode, expert(observation)
    mask = np.arange(8) < 4
    moved = {name: value.copy() for name, value in observation.items()}
    moved["goal"][:] = 0.5
    expert.reset(moved, mask)
    assert np.array_equal(expert.mode[~mask], before[~mask])
    assert np.array_equal(expert(observation)[~mask], command[~mask])
    assert not np.array_equal(expert(observation)[mask], command[mask])
    with pytest.raises(ValueError, match="call reset first"):
        expert({name: value[:3] for name, value in observation.items()})


def test_demonstrations_are_flat_complete_and_reproducible() -> None:
    data, again = (demonstrate(Map(), 60, seed=5, noise=0.1) for _ in range(2))
    assert all(np.array_equal(data[name], again[name]) for name in data)
    ends = data["episode_ends"]
    assert ends.dtype == np.int64
    assert len(ends) == len(data["mode"]) == round(60 * float(data["success_rate"]))
    assert data["success_rate"] >= 0.95
    assert ends[-1] == len(data["action"]) == len(data["position"])
    assert data["obstacles"].shape == (ends[-1], 3, 3)
    starts = np.concatenate([[0], ends[:-1]])
    assert (data["velocity"][starts] == 0).all()
    assert (np.diff(ends, prepend=0) > 20).all()
    assert 30 < np.diff(ends, prepend=0).mean() < 55
    inside = np.ones(ends[-1], bool)
    inside[starts] = False
    jumps = np.linalg.norm(np.diff(data["position"], axis=0, prepend=0), axis=-1)
    assert jumps[inside].max() < 0.15  # episodes are contiguous in time


def test_recorded_actions_are_clean_and_executed_ones_are_not() -> None:
    """The executed action follows from two velocities; its distance from the recorded one is the noise."""
    deviations = []
    for noise in (0.0, 0.1):
        data = demonstrate(Map(), 60, seed=6, noise=noise)
        decay = np.exp(-DT / TAU)
        executed = (data["velocity"][1:] - decay * data["velocity"][:-1]) / (1 - decay)
        inside = np.ones(len(executed), bool)
        inside[data["episode_ends"][:-1] - 1] = False
        deviations.append((executed - data["action"][:-1])[inside])
    assert np.abs(deviations[0]).max() < 1e-4
    assert deviations[1].std() == pytest.approx(0.1, rel=0.1)
    x = deviations[1][:, 0]
    assert np.corrcoef(x[:-1], x[1:])[0, 1] == pytest.approx(np.exp(-0.5), abs=0.1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"half_width": -1.0}, "half_width is -1.0; expected a positive length"),
        ({"obstacles": ((0.0, 0.0),)}, r"obstacles\[0\] is \(0.0, 0.0\); expected \(x, y, radius\)"),
        ({"obstacles": ((0.0, 0.0, 0.1), (0.0, 3.0, 0.1))}, r"obstacles\[1\] .* centre within"),
        ({"obstacles": ((0.0, 0.0, -0.1),)}, "a positive radius"),
        ({"obstacles": ((0.0, np.nan, 0.1),)}, r"obstacles\[0\]"),
        ({"start": (-0.9, 0.3, -0.9, -0.3)}, "start .* min <= max"),
        ({"start": (-0.9, 0.3)}, "start .* expected .*x_min"),
        ({"goal": (0.9, -0.2, 1.0, 0.2)}, "goal .* away from the walls"),
        ({"start": (-0.5, -0.1, -0.4, 0.1)}, r"start .* overlaps obstacles\[0\]"),
        ({"start": (0.7, -0.1, 0.8, 0.1)}, "Move them apart"),
    ],
)
def test_bad_maps_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Map(**fields)


def test_bad_actions_are_refused() -> None:
    env = Navigate(3)
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step(np.zeros((3, 2)))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions have shape \(2,\); expected \(3, 2\)"):
        env.step(np.zeros(2))
    with pytest.raises(ValueError, match=r"environments \[1\] are not finite"):
        env.step(np.array([[0, 0], [np.nan, 0], [0, 0]]))


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="num_envs=0"):
        Navigate(0)
    with pytest.raises(ValueError, match="render_mode is 'human'; expected 'rgb_array'"):
        Navigate(1, render_mode="human")
    with pytest.raises(ValueError, match="noise=-1"):
        demonstrate(Map(), 1, seed=0, noise=-1)


def test_bad_resets_are_refused() -> None:
    env = Navigate(3)
    with pytest.raises(ValueError, match="Got 2 seeds; .* num_envs = 3"):
        env.reset(seed=[1, 2])
    for mask in ([True, False, False], np.array([1, 0, 0])):
        with pytest.raises(TypeError, match="expected a bool array"):
            env.reset(options={"reset_mask": mask})
    for mask in (np.ones(2, bool), np.zeros(3, bool)):
        with pytest.raises(ValueError, match="reset_mask'.* Skip the reset"):
            env.reset(options={"reset_mask": mask})


def test_render_shows_the_robot_where_it_is() -> None:
    env = Navigate(2, render_mode="rgb_array")
    observation, _ = env.reset(seed=0)
    before = env.render()
    assert len(before) == 2
    for image in before:
        assert image.dtype == np.uint8
        assert image.shape[0] == 256
        assert image.shape[1] % 2 == 0
        assert image.shape[2] == 3
    for _ in range(5):
        observation, *_ = env.step(np.array([[0.5, 0.0], [0.0, 0.0]]))
    after = env.render()
    assert np.array_equal(after[1], before[1])
    assert not np.array_equal(after[0], before[0])
    height, width, _ = after[0].shape
    x, y = observation["position"][0]
    column, row = (x + 1.05) / 2.1 * width, (0.85 - y) / 1.7 * height
    red, _, blue = after[0][int(row), int(column)].astype(int)
    assert blue - red > 120
    assert Navigate(1).render() is None


def test_frames_draw_plans_and_refuse_bad_shapes() -> None:
    map, trail = Map(), np.array([[-0.8, 0.5], [-0.7, 0.5]])
    plain = draw_frame(map, trail[-1], np.array([0.9, 0.0]), trail)
    plan = np.linspace([-0.7, 0.5], [0.5, 0.7], 10)
    with_plans = draw_frame(map, trail[-1], np.array([0.9, 0.0]), trail, np.stack([plan, plan + 0.05]))
    changed = (plain != with_plans).any(axis=-1)
    assert 200 < changed.sum() < 0.1 * changed.size
    assert draw_frame(map, trail[-1], np.zeros(2), trail, height=480).shape[0] == 480
    with pytest.raises(ValueError, match=r"plans has shape \(10, 2\); expected positions \(P, T, 2\)"):
        draw_frame(map, trail[-1], np.zeros(2), trail, plan)
