import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request

import numpy as np
import pytest
from served import HISTORY, HORIZON, Peer, asked_around, diffusion, echo, running

from poise.cli.replan import replan_run
from poise.cli.serve import Listen, Watch, serve
from poise.client import Client
from poise.data import Episodes, Role, open_dataset, read
from poise.plain import to_plain
from poise.policies import Safety
from poise.sampling import State
from poise.serving import Recording, replan
from poise.serving.recording import features


def numbers(record: Episodes, name: str) -> list:
    (found,) = [
        record.features[feature][:, names.index(name)] for feature, names in record.facts.names.items() if name in names
    ]
    return found.tolist()


def by_task(record: Episodes) -> dict[str, list[int]]:
    """Rows of each task."""
    rows: dict[str, list[int]] = {}
    for task, start, end in zip(record.tasks, record.starts, record.ends, strict=True):
        rows.setdefault(task, []).extend(range(start, end))
    return rows


def test_a_record_holds_what_was_seen_and_sent(tmp_path):
    policy, begin = echo(), time.time()
    with (
        Recording(tmp_path / "run", policy.spec) as recording,
        running(policy, observers=[recording], filters=[lambda plan: np.minimum(plan, 6)]) as server,
    ):
        left, right = Peer(server), Peer(server)
        sent = [left.ask(1.0), left.ask(2.0, age=1), right.ask(5.0, env_id="arm"), right.ask(7.0, env_id="arm")]
        sent.append(left.ask(3.0, reset=True))
    record = read(tmp_path / "run")
    rows = by_task(record)
    assert {task: len(found) for task, found in rows.items()} == {
        "connection 0, episode 0": 2,
        "connection 1, robot 'arm', episode 0": 2,
        "connection 0, episode 1": 1,
    }
    order = np.argsort(numbers(record, "time"), kind="stable")
    np.testing.assert_array_equal(
        record.features["x"][order, :, 0], [[1, 1, 1], [1, 1, 1], [5, 5, 5], [5, 5, 7], [3, 3, 3]]
    )
    plans = record.features["serving.actions"][order]
    np.testing.assert_array_equal(plans, [reply["actions"] for reply in sent])
    due = [plan[age] for plan, age in zip(plans, [0, 1, 0, 0, 0], strict=True)]
    np.testing.assert_array_equal(record.features["action"][order], due)
    assert record.facts.named(Role.OBSERVATION) == ("x",)
    assert record.facts.named(Role.ACTION) == ("action",)
    found = {name: np.array(numbers(record, name))[order].tolist() for name in ("changed", "plan", "age", "client")}
    assert found == {
        "changed": [0, 0, 0, 1, 0],
        "plan": [0, 1, 0, 1, 0],
        "age": [0, 1, 0, 0, 0],
        "client": [0, 0, 1, 1, 0],
    }
    timing = [reply["server_timing"] for reply in sent]
    for name in ("infer_ms", "queue_ms", "batch"):
        np.testing.assert_allclose(np.array(numbers(record, name))[order], [one[name] for one in timing], rtol=1e-6)
    assert begin < min(numbers(record, "time")) <= max(numbers(record, "time")) < time.time()


def test_a_record_holds_what_the_robot_did(tmp_path):
    policy = echo()
    with Recording(tmp_path / "run", policy.spec) as recording, running(policy, observers=[recording]) as server:
        peer = Peer(server)
        peer.ask(1.0)
        peer.ask(2.0, executed=np.array([[1, 2], [np.nan, np.nan], [3, 4]]))
        peer.ask(3.0, executed=np.zeros((0, 2)))
    record, planned = read(tmp_path / "run"), policy.spec.planned
    done, moved = record.features["serving.executed"], record.features["serving.moved"]
    assert numbers(record, "executed") == [0, 3, 0]
    np.testing.assert_array_equal(done[1, planned - 3 :], [[1, 2], [0, 0], [3, 4]])
    assert moved[1, planned - 3 :].tolist() == [True, False, True]
    assert not done[1, : planned - 3].any()
    assert not moved[1, : planned - 3].any()
    assert not moved[[0, 2]].any()


def test_optional_features_are_zeros_where_they_are_not_given(tmp_path):
    policy = echo(observations={"y": (2,)}, optional={"y": 0.1})
    plans = policy.trace
    policy.trace = lambda seen, noise=None: [State(one.x + 100 * ("y" in seen), 0.0, 1) for one in plans(seen)]
    with Recording(tmp_path / "run", policy.spec) as recording, running(policy, observers=[recording]) as server:
        peer = Peer(server)
        peer.ask(1.0, y=np.float32([3, 4]))
        peer.ask(1.0)
    record = read(tmp_path / "run")
    assert record.features["y"][:, -1].tolist() == [[3, 4], [0, 0]]
    assert record.features["serving.given"][:, 0].tolist() == [True, False]
    assert record.facts.names["serving.given"] == ("y",)
    with open_dataset(tmp_path / "run") as source:
        (again,) = replan(policy, source)
    assert again.recorded[:, 0, 0].tolist() == [101, 1]
    np.testing.assert_array_equal(again.again, again.recorded)


def serve_and_record(path, policy, steps: int, **more) -> None:
    with (
        Recording(path, policy.spec, seconds=0.05) as recording,
        running(policy, observers=[recording], **more) as server,
    ):
        robots = [Peer(server) for _ in range(3)]
        for step in range(steps):
            for number, robot in enumerate(robots):
                robot.send(0.1 * step - 0.3 * number, **({"reset": True} if step == 5 else {}))
            for robot in robots:
                robot.receive()


def test_the_same_policy_plans_the_same_again_and_another_does_not(tmp_path):
    policy = diffusion()
    serve_and_record(tmp_path / "run", policy, 9)  # each robot draws a seed
    serve_and_record(tmp_path / "run", policy, 3)  # another run, whose names are the same
    with open_dataset(tmp_path / "run") as source:
        again = list(replan(policy, source))
        other = list(replan(policy.using(None, None, 3, None), source))
    assert sum(len(one.plans) for one in again) == 3 * (9 + 3)
    for one in again:
        np.testing.assert_allclose(one.again, one.recorded, rtol=0, atol=1e-5)
    assert min(np.abs(one.again - one.recorded).max() for one in other) > 1e-3


def test_plans_that_are_missing_draw_their_noise(tmp_path):
    policy = diffusion()
    with Recording(tmp_path / "run", policy.spec) as recording:
        kept = [0, 3, 4]
        with running(policy, observers=[lambda one: one.planned.turn.plan in kept and recording(one)]) as server:
            peer = Peer(server)
            sent = [peer.ask(0.2 * step)["actions"] for step in range(5)]
    with open_dataset(tmp_path / "run") as source:
        (one,) = replan(policy, source)
    assert one.plans.tolist() == kept
    np.testing.assert_allclose(one.again, [sent[k] for k in kept], rtol=0, atol=1e-5)


def test_the_command_reports_per_action_and_leaves_out_what_filters_changed(tmp_path, capsys):
    policy = diffusion()
    shift = np.float32([0.0, 0.5])
    serve_and_record(tmp_path / "run", policy, 4)
    serve_and_record(tmp_path / "run", policy, 2, filters=[lambda plan: plan + shift])
    policy.save(tmp_path / "policy")
    replan_run(tmp_path / "run", tmp_path / "policy", json=tmp_path / "out.json")
    assert capsys.readouterr().out.startswith("12 plans; 6 more, ")
    found = json.loads((tmp_path / "out.json").read_text())
    assert (found["plans"], found["changed"]) == (12, 6)
    assert max(found["largest"]) < 1e-5 < min(found["spread"])
    gaps = [
        gap for one in found["episodes"] for gap, changed in zip(one["largest"], one["changed"], strict=True) if changed
    ]
    np.testing.assert_allclose(gaps, 0.5, atol=1e-5)


def test_the_command_limits_records_and_shows(tmp_path, capsys):
    policy, got, limits = diffusion(), [], Safety((-0.01, -0.01), (0.01, 0.01))
    policy.save(tmp_path / "policy", {"safety": to_plain(limits)})

    def robot() -> None:
        while not (said := capsys.readouterr().out):
            time.sleep(0.01)
        try:
            uri = said.removeprefix("serving at ").strip()
            with Client(uri, timeout=20) as client:
                got.append(client.infer({"x": np.float32([0.5])})["actions"])
            with urllib.request.urlopen(f"{uri.replace('ws', 'http', 1)}/state", timeout=20) as reply:
                counts = json.load(reply)["counts"]
                got.extend((counts["plans"], counts["changed"], counts["unrecorded"]))
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=robot, daemon=True)
    thread.start()
    serve(tmp_path / "policy", Listen(port=0), watch=Watch(tmp_path / "run", dashboard=True), seed=4)
    thread.join()
    record = read(tmp_path / "run")
    np.testing.assert_array_equal(record.features["serving.actions"], got[:1])
    assert (numbers(record, "seed"), got[1]) == ([4], 1)
    assert numbers(record, "changed") == [got[2]]
    assert got[2] > 0
    assert got[3] == 0
    assert np.abs(got[0]).max() <= np.float32(0.01)


def test_a_record_of_another_policy_is_refused(tmp_path):
    serve_and_record(tmp_path / "run", diffusion(), 1)
    with open_dataset(tmp_path / "run") as source, pytest.raises(ValueError, match=r"do not agree in \['x'\].*history"):
        next(replan(diffusion(history=1), source))
    with pytest.raises(ValueError, match="expected .* those of its saved episodes"):
        Recording(tmp_path / "run", diffusion(history=1).spec)


def metrics(server) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=20) as reply:
        return reply.read().decode()


def test_a_slow_disk_costs_rows_and_no_time(tmp_path, monkeypatch, caplog):
    policy = echo()
    size = sum(look.dtype.itemsize * int(np.prod(look.shape)) for look in features(policy.spec).values())
    recording, gate = Recording(tmp_path / "run", policy.spec, most=3 * size, seconds=0.01), threading.Event()
    add = recording._recorder.add
    monkeypatch.setattr(recording._recorder, "add", lambda row: gate.wait(20) and add(row))
    with running(policy, observers=[recording], recording=recording) as server:
        peer = Peer(server)
        for step in range(10):  # all are answered while the disk is stuck
            peer.ask(float(step))
        # The last plan is told to observers after its reply.
        assert any("poise_unrecorded_total 7.0" in metrics(server) for _ in range(500))
    assert recording.dropped == 7
    gate.set()
    with caplog.at_level(logging.WARNING, "poise.serving"):
        recording.close()
    assert "7 plans are not in the record" in caplog.text
    assert numbers(read(tmp_path / "run"), "plan") == [0, 1, 2]


def test_a_full_disk_is_told_and_the_record_goes_on(tmp_path, monkeypatch, caplog):
    policy = echo()
    recording = Recording(tmp_path / "run", policy.spec, seconds=0.01)
    failed, save = threading.Event(), recording._recorder.save_episode

    def fails_once(task: str) -> None:
        if not failed.is_set():
            failed.set()
            raise OSError("no space left")
        save(task)

    monkeypatch.setattr(recording._recorder, "save_episode", fails_once)
    asked_around(failed, policy, recording)
    assert recording.dropped == 1
    assert "1 plans of connection 0, episode 0 are not in the record" in caplog.text
    assert numbers(read(tmp_path / "run"), "plan") == [1]


KILLED = """
import sys, time
from pathlib import Path
from served import Peer, echo, running
from poise.serving import Recording
policy = echo()
recording = Recording(Path(sys.argv[1]), policy.spec, seconds=0.02)
with running(policy, observers=[recording]) as server:
    peer = Peer(server)
    for step in range(10**6):
        peer.ask(100.0 + step)
        if step % 20 == 0:
            print(step, flush=True)
"""


def test_what_was_saved_survives_a_kill(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "run")], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    index = tmp_path / "run" / "episodes.jsonl"
    with process, process.stdout:
        # A thread of its own saves, later than plans are sent.
        while not index.exists() or index.read_bytes().count(b"\n") <= 20:
            assert process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    record = read(tmp_path / "run")
    plans = numbers(record, "plan")
    assert plans == list(range(len(plans)))
    assert len(plans) > 20
    np.testing.assert_array_equal(record.features["x"][:, -1, 0], np.add(plans, 100))
    with Recording(tmp_path / "run", echo().spec):  # the next run goes on in it
        pass
    assert record.features["x"].shape[1] == HISTORY
    assert record.features["serving.actions"].shape[1] == HORIZON
