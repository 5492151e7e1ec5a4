"""Batches that are filled up to the sizes that a policy is compiled for."""

import asyncio

import numpy as np
import pytest
import torch
from served import diffusion, echo

from poise.cli import running as module
from poise.cli.running import Machine, Sampling
from poise.serving import Planner
from poise.serving.batching import Job, Planned
from poise.serving.sessions import Request


async def planned(planner: Planner, seen: list[float]) -> list[Planned]:
    """Plan for as many robots at once."""
    waiting = asyncio.get_running_loop().create_future()
    jobs = [Job(k, [Request([{"x": np.float32([x])}])], waiting, 0.0) for k, x in enumerate(seen)]
    outcomes = planner.plan(jobs)
    assert all(isinstance(one, Planned) for one in outcomes)
    return [one for one in outcomes if isinstance(one, Planned)]


def test_filling_up_changes_no_plan_and_draws_no_noise():
    policy, sizes = diffusion(), []
    plan = policy.plan

    def counted(observation, noise=None):
        sizes.append(len(observation["x"]))
        return plan(observation, noise)

    policy.plan = counted
    bare, filled = Planner(policy, 3), Planner(policy, 3, sizes=(1, 2, 4))
    for robots, size in ((3, 4), (1, 1), (2, 2), (3, 4), (5, 5)):
        seen = np.linspace(-1, 1, robots).tolist()
        expected, got = asyncio.run(planned(bare, seen)), asyncio.run(planned(filled, seen))
        assert sizes[-2:] == [robots, size]
        assert [one.batch for one in got] == [robots] * robots
        for one, other in zip(got, expected, strict=True):
            np.testing.assert_allclose(one.actions, other.actions, rtol=1e-4, atol=1e-5)


def test_what_breaks_a_batch_is_found_when_it_is_filled_up():
    policy = echo()
    planner = Planner(policy, 0, sizes=(4,))
    jobs = [Job(k, [Request([{"x": np.float32([x])}])], None, 0.0) for k, x in enumerate([1, 13, 2])]  # type: ignore
    outcomes = planner.plan(jobs)
    assert [isinstance(one, Planned) for one in outcomes] == [True, False, True]
    assert {len(batch) for batch in policy.batches} == {4}


def test_every_size_is_warmed_up():
    policy = echo()
    Planner(policy, sizes=(1, 2, 4, 8)).warm_up()
    assert [len(batch) for batch in policy.batches] == [1, 2, 4, 8]
    policy.batches.clear()
    Planner(policy).warm_up()
    assert [len(batch) for batch in policy.batches] == [1, 2]


def test_commands_compile_for_powers_of_two(monkeypatch):
    asked, policy = [], diffusion()
    monkeypatch.setattr(module, "compiled", lambda policy, sizes, weights: asked.append((sizes, weights)) or policy)
    assert Machine().take(policy, Sampling()) is policy
    for most, sizes in ((1, (1,)), (4, (1, 2, 4)), (5, (1, 2, 4, 8))):
        machine = Machine(compile=most)
        machine.take(policy, Sampling(evaluations=3))
        assert asked.pop() == (machine.sizes(), torch.float32) == (sizes, torch.float32)
    assert not asked
    monkeypatch.setattr(module, "has_bfloat16", lambda device: True)
    Machine(compile=1, bfloat16=True).take(policy, Sampling())
    assert asked.pop() == ((1,), torch.bfloat16)
    monkeypatch.setattr(module, "has_bfloat16", lambda device: False)
    with pytest.raises(ValueError, match="got --bfloat16 for a cpu without instructions for it: leave it out"):
        Machine(compile=1, bfloat16=True).take(policy, Sampling())
    with pytest.raises(ValueError, match="got --bfloat16 without --compile, expected both"):
        Machine(bfloat16=True).take(policy, Sampling())
    with pytest.raises(ValueError, match="got --compile 0, expected the robots of the largest batch, 1 or more"):
        Machine(compile=0).take(policy, Sampling())
    with pytest.raises(ValueError, match="got --compile for a Echo, expected a DiffusionPolicy: leave it out"):
        Machine(compile=2).take(echo(), Sampling())
