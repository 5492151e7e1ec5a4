"""What a server does to the plans that leave: limits, their counts, and plans that do not leave."""

import urllib.request

import numpy as np
import pytest
from served import Peer, diffusion, echo, running

from poise.cli.serve import Listen, serve
from poise.data import open_dataset, read
from poise.plain import to_plain
from poise.policies import Safety, limited
from poise.serving import Dashboard, Planner, Recording, replan
from poise.serving.batching import Job
from poise.serving.sessions import Request

RANGE = Safety((-2.0, -2.0), (2.0, 2.0))


def metrics(server) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=20) as reply:
        return reply.read().decode()


def test_plans_leave_within_the_limits_that_the_server_tells():
    limits = Safety((-1.0, -2.0), (1.0, 2.0), change=(0.25, 0.5), jerk=(0.5, 0.5))
    policy = diffusion()
    with running(policy, seed=3) as server:
        bare = Peer(server)
        wanted = bare.ask(0.5)["actions"]
    with running(policy, seed=3, safety=limits) as server:
        peer = Peer(server)
        sent = peer.ask(0.5)
    expected, done = limited(wanted, limits)
    np.testing.assert_array_equal(sent["actions"], expected)
    assert peer.metadata["safety"] == {
        "low": [-1.0, -2.0],
        "high": [1.0, 2.0],
        "change": [0.25, 0.5],
        "acceleration": None,
        "jerk": [0.5, 0.5],
    }
    assert "safety" not in bare.metadata
    assert sent["interventions"] == {kind: count for kind, count in done.items() if kind != "steps"}
    assert sum(sent["interventions"].values()) > 0


def test_limits_of_other_dimensions_are_refused_at_the_start(tmp_path):
    words = "got limits of 3 dimensions for a policy whose actions have 2, expected as many: take the limits of"
    limits = Safety((-1.0,) * 3, (1.0,) * 3)
    with pytest.raises(ValueError, match=words):
        Planner(echo(), safety=limits)
    diffusion().save(tmp_path / "policy", {"safety": to_plain(limits)})
    with pytest.raises(ValueError, match=words):
        serve(tmp_path / "policy", Listen(port=0))


def test_interventions_are_counted_by_kind(tmp_path):
    policy = echo()
    dashboard = Dashboard(policy)
    with (
        Recording(tmp_path / "run", policy.spec) as recording,
        running(policy, dashboard=dashboard, observers=[dashboard, recording], safety=RANGE) as server,
    ):
        peer, other = Peer(server), Peer(server)
        replies = [peer.ask(1.0), peer.ask(3.0), peer.ask(3.0)]
        assert "NaN" in other.ask(15.0)
        assert "13 cannot be planned for" in Peer(server).ask(13.0)
        told, page = metrics(server), dashboard._state()["interventions"]
    # The last of three observations is out of range, then the last two.
    assert [reply["interventions"] for reply in replies] == [{}, {"range": 1}, {"range": 2}]
    assert [reply["actions"][:3, 0].tolist() for reply in replies] == [[1, 1, 1], [1, 1, 2], [1, 2, 2]]
    for kind, count in {"range": 3, "change": 0, "acceleration": 0, "jerk": 0, "rejected": 2}.items():
        assert f'poise_interventions_total{{kind="{kind}"}} {count}.0' in told
        assert page[kind] == count
    assert "poise_changed_total 3.0" in told
    record = read(tmp_path / "run")
    names = record.facts.names["serving.numbers"]
    found = record.features["serving.numbers"]
    assert sorted(found[:, names.index("range")].tolist()) == [0, 0, 0, 1, 2]


def test_a_rejected_plan_is_in_the_record_and_shows_what_was_seen(tmp_path):
    policy = echo()

    def careful(plan):
        if plan[0, 0] == 7:
            raise ValueError("the plan leaves the table")
        return plan

    dashboard = Dashboard(policy)
    with (
        Recording(tmp_path / "run", policy.spec) as recording,
        running(policy, observers=[recording, dashboard], filters=[careful]) as server,
    ):
        Peer(server).ask(1.0)
        for bad in (7.0, 15.0, 13.0):
            assert isinstance(Peer(server).ask(bad), str)
    record = read(tmp_path / "run")
    seen = dict(zip(record.tasks, record.features["x"][:, -1, 0].tolist(), strict=True))
    assert seen == {
        "connection 0, episode 0": 1,
        "connection 1, episode 0, rejected": 7,
        "connection 2, episode 0, rejected": 15,
        "connection 3, episode 0, rejected": 13,
    }
    plans = dict(zip(record.tasks, record.features["serving.actions"][:, 0, 0].tolist(), strict=True))
    assert list(plans.values()) == [1, 7, 0, 0]  # what is not finite, or was not made, is zero
    rejected = record.features["serving.numbers"][:, record.facts.names["serving.numbers"].index("rejected")]
    assert rejected.tolist() == [0, 1, 1, 1]
    assert len(dashboard._state()["robots"]) == 1  # the page shows what was sent
    with open_dataset(tmp_path / "run") as source:
        (again,) = replan(policy, source)
    np.testing.assert_array_equal(again.again, again.recorded)


def test_a_rejected_plan_drew_its_noise(tmp_path):
    policy, refused = diffusion(), [False, True, False]

    def careful(plan):
        if refused.pop(0):
            raise ValueError("the plan leaves the table")
        return plan

    with Recording(tmp_path / "run", policy.spec) as recording:
        planned(Planner(policy, 5, [careful], [recording]), [0.1, 0.2, 0.3])
    with open_dataset(tmp_path / "run") as source:
        (again,) = replan(policy, source)
    assert again.plans.tolist() == [0, 2]
    np.testing.assert_allclose(again.again, again.recorded, rtol=0, atol=1e-5)


def planned(planner: Planner, seen: list[float]) -> None:
    """Plan for one robot, one observation after the other."""
    for x in seen:
        jobs = [Job(0, [Request([{"x": np.float32([x])}])], None, 0.0)]  # type: ignore[arg-type]
        planner.tell(jobs, planner.plan(jobs))
