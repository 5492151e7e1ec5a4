"""A policy and a scripted partner share the actions of one environment."""

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box, Discrete

from poise.envs.partner import Partnered


class Adder(gymnasium.Env):
    """Observes a random number; keeps the action that it was given."""

    def __init__(self, actions=None):
        self.action_space = actions or Box(np.array([-1, -2, -3, -4.0]), np.array([1, 2, 3, 4.0]), dtype=np.float64)
        self.observation_space = Box(-np.inf, np.inf, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.normal(size=1)
        return self.state, {"options": options}

    def step(self, action):
        self.given = action
        self.state = self.state + 1
        return self.state, 1.0, False, False, {"is_success": False}


class Echo:
    """Gives what it sees, and its seed."""

    stage = "echo"

    def reset(self, env, seed):
        self.env, self.seed = env, seed

    def act(self, observation):
        return np.array([observation[0], self.seed])


def test_each_gives_its_own_components_in_its_own_order():
    env = Partnered(Adder(), Echo(), mine=[3, 0], theirs=[1, 2])
    first, infos = env.reset(seed=1, options={"a": 1})
    assert infos == {"options": {"a": 1}}
    second, *_ = env.step([0.5, 0.25])
    np.testing.assert_array_equal(env.unwrapped.given, [0.25, first[0], env.partner.seed, 0.5])
    env.step([0.0, 0.0])
    assert env.unwrapped.given[1] == second[0]  # the partner sees what the policy sees
    assert env.partner.env is env.unwrapped


def test_the_policy_is_offered_its_own_limits():
    env = Partnered(Adder(), Echo(), mine=[3, 0], theirs=[1, 2])
    np.testing.assert_array_equal(env.action_space.low, [-4, -1])
    np.testing.assert_array_equal(env.action_space.high, [4, 1])
    assert env.action_space.dtype == np.float64


def test_the_seed_decides_about_the_partner_whatever_came_before():
    env = Partnered(Adder(), Echo(), mine=[0, 1], theirs=[2, 3])
    seeds = []
    for seed in (3, None, 4, 3):
        env.reset(seed=seed)
        seeds.append(env.partner.seed)
    assert seeds[0] == seeds[3]
    assert len(set(seeds)) == 3


@pytest.mark.parametrize(
    ("mine", "theirs", "message"),
    [
        ([0, 1], [1, 2, 3], r"\[1\] given twice"),
        ([0, 1], [2], r"\[3\] given by nobody"),
        ([0, 1], [2, 3, 4], r"\[4\] that do not exist"),
        ([0, 1, -1], [2, 3], r"\[-1\] that do not exist"),
        ([], [0, 1, 2, 3], "0 of them the policy's"),
    ],
)
def test_a_split_that_is_none_is_refused(mine, theirs, message):
    with pytest.raises(ValueError, match=f"a split of 4 components.*{message}"):
        Partnered(Adder(), Echo(), mine, theirs)


@pytest.mark.parametrize("actions", [Discrete(3), Box(-1, 1, (2, 2))])
def test_only_flat_boxes_can_be_split(actions):
    with pytest.raises(ValueError, match="expected a flat Box"):
        Partnered(Adder(actions), Echo(), [0], [1])


def test_actions_of_a_wrong_length_name_who_gave_them():
    env = Partnered(Adder(), Echo(), mine=[0], theirs=[1, 2, 3])
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"the policy gave an action of shape \(2,\), expected \(1,\)"):
        env.step([0.0, 0.0])
    with pytest.raises(ValueError, match=r"the partner gave an action of shape \(2,\), expected \(3,\)"):
        env.step([0.0])


def test_a_step_before_the_first_reset_is_refused():
    with pytest.raises(ResetNeeded, match="call reset"):
        Partnered(Adder(), Echo(), [0, 1], [2, 3]).step([0.0, 0.0])
