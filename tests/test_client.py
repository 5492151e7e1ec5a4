import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from served import HISTORY, HORIZON, diffusion, echo, running
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidURI
from websockets.sync.server import ServerConnection, serve

from poise.cli.serve import Listen
from poise.cli.serve import serve as serve_command
from poise.client import BusyError, Client, ServerError
from poise.limits import ActionLimits
from poise.robot import Robot, Step
from poise.serving import Limits, Planner, Server, run
from poise.watchdog import zeroed
from poise.wire import pack, unpack

LONG = 20.0  # seconds, on a machine that does many other things


def until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never happened")


def observed(x: float) -> dict:
    return {"x": np.float32([x])}


THIN = """
import sys
sys.modules["torch"] = None
from poise.client import Client
from poise.robot import Robot
import numpy as np
with Client(sys.argv[1]) as client:
    client.wait(20)
    print(client.infer({"x": np.float32([7])}, 20)["actions"][0, 0])
files = {name.split(".")[0]: str(getattr(module, "__file__", "")) for name, module in sys.modules.items()}
print(*(name for name, file in files.items() if "site-packages" in file))
"""


def test_the_client_needs_neither_torch_nor_anything_but_three_packages():
    with running(echo()) as server:
        ran = subprocess.run([sys.executable, "-c", THIN, server.uri], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    value, foreign = ran.stdout.splitlines()
    assert value == "7.0"
    ours = {name for name in foreign.split() if not name.startswith("_")}  # others belong to the interpreter
    assert ours - {"poise"} == {"msgpack", "numpy", "websockets"}


@pytest.mark.parametrize(("module", "missing"), [("wire", "msgpack"), ("client", "websockets")])
def test_what_is_missing_is_named_with_its_extra(module, missing):
    program = f"import sys; sys.modules['{missing}'] = None; import poise.{module}"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    verb = "needs" if module == "client" else "need"
    expected = rf"{verb} the extra 'serve' \(.*\b{missing}\b.*\): pip install 'poise\[serve\]'"
    assert re.search(expected, ran.stderr), ran.stderr


def test_a_client_plans_and_begins_episodes():
    with running(echo()) as server, Client(server.uri, timeout=LONG) as client:
        assert client.wait()["history"] == HISTORY
        for x, saw in ((1, [1, 1, 1]), (2, [1, 1, 2])):
            assert client.infer(observed(x))["actions"][:HISTORY, 0].tolist() == saw
        client.reset()
        for x, saw in ((5, [5, 5, 5]), (6, [5, 5, 6])):
            assert client.infer(observed(x))["actions"][:HISTORY, 0].tolist() == saw


def test_an_observation_is_what_it_was_when_it_was_asked_for():
    with running(echo()) as server, Client(server.uri, timeout=LONG) as client:
        buffer = observed(3)
        answer = client.ask(buffer)
        buffer["x"][:] = 4
        assert answer.result(LONG)["actions"][0, 0] == 3


def test_late_replies_are_dropped():
    policy = echo()
    with running(policy) as server, Client(server.uri, timeout=LONG) as client:
        client.wait()
        policy.gate.clear()
        with pytest.raises(TimeoutError, match="no reply of ws://.* within 0.05 s"):
            client.infer(observed(1), 0.05)
        second = client.ask(observed(2))
        policy.gate.set()
        assert second.result(LONG)["actions"][:HISTORY, 0].tolist() == [1, 1, 2]


def test_superseded_and_refused_observations_are_named_and_the_client_goes_on():
    policy = echo()
    with running(policy) as server, Client(server.uri, timeout=LONG) as client:
        client.wait()
        policy.gate.clear()
        answers = [client.ask(observed(1))]
        assert policy.begun.acquire(timeout=LONG)
        while policy.batches[-1] != [1]:
            assert policy.begun.acquire(timeout=LONG)
        answers += [client.ask(observed(x)) for x in (2, 3)]
        with pytest.raises(BusyError, match="superseded by a newer observation"):
            answers[1].result(LONG)
        policy.gate.set()
        assert [answers[i].result(LONG)["actions"][0, 0] for i in (0, 2)] == [1, 1]
        with pytest.raises(ServerError, match="NaN or infinity in feature 'x'"):
            client.infer(observed(np.nan))
        assert client.infer(observed(9))["actions"][:HISTORY, 0].tolist() == [9, 9, 9]  # on a new connection
    with pytest.raises(TypeError, match="cannot send a set"):
        client.ask({"x": set()})


@contextmanager
def other(handler: Callable[[ServerConnection], None], port: int = 0) -> Iterator[str]:
    """A server that is not ours."""
    with serve(handler, "127.0.0.1", port, compression=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join()


def test_a_server_that_repeats_no_numbers_is_understood():
    gate = threading.Event()

    def handle(connection: ServerConnection) -> None:
        connection.send(pack({}))
        for message in connection:
            assert gate.wait(LONG)
            connection.send(pack({"actions": unpack(message)["x"][None]}))

    with other(handle) as uri, Client(uri, timeout=LONG) as client:
        assert client.wait() == {}
        with pytest.raises(TimeoutError):
            client.infer(observed(1), 0.05)
        second = client.ask(observed(2))
        gate.set()
        assert second.result(LONG)["actions"] == 2


def test_an_episode_begins_with_the_first_observation_that_leaves():
    def handle(connection: ServerConnection) -> None:
        connection.send(pack({}))
        with suppress(ConnectionClosed):
            for message in connection:
                begins = float(unpack(message).get("reset", False))
                connection.send(pack({"actions": np.array([[begins]]), "request_id": unpack(message)["request_id"]}))

    with other(handle) as uri:  # a port that is free
        pass
    with Client(uri, timeout=LONG) as client:
        client.reset()
        first, second = client.ask(observed(1)), client.ask(observed(2))
        with pytest.raises(BusyError, match="before it was sent"):
            first.result(LONG)
        with other(handle, int(uri.rpartition(":")[2])):
            assert second.result(LONG)["actions"] == 1
            assert client.infer(observed(3))["actions"] == 0
            client.reset()
            assert client.infer(observed(4))["actions"] == 1


def test_a_server_that_talks_nonsense_is_left():
    def handle(connection: ServerConnection) -> None:
        connection.send(pack({}))
        for _ in connection:
            connection.send(b"\xc1")

    with other(handle) as uri, Client(uri, timeout=LONG) as client:
        for _ in range(2):
            with pytest.raises(ConnectionError, match="DecodeError: message: is no message of openpi's form"):
                client.infer(observed(1))


@pytest.mark.parametrize(
    "wrong", [{"history": 0}, {"execute": "8"}, {"history": True}, {"observations": 1}, [], "text"]
)
def test_metadata_that_make_no_sense_are_refused(wrong):
    def handle(connection: ServerConnection) -> None:
        connection.send(wrong if isinstance(wrong, str) else pack(wrong))
        with suppress(ConnectionClosed):
            connection.recv()

    with other(handle) as uri, Client(uri) as client:
        until(lambda: "ValueError: got" in client.trouble)
        with pytest.raises(TimeoutError, match=r"ValueError: got (the metadata|a message of the server that is a)"):
            client.wait(0.01)
        assert client.metadata is None


def test_a_server_that_owes_many_replies_is_left():
    seen, left = [], threading.Semaphore(0)

    def handle(connection: ServerConnection) -> None:
        connection.send(pack({}))
        with suppress(ConnectionClosed):
            for message in connection:
                seen.append(message)
        left.release()

    with other(handle) as uri, Client(uri, timeout=LONG) as client:
        client.wait()
        for number in range(17):
            client.ask(observed(number))
            while len(seen) < min(number + 1, 16):
                time.sleep(0.001)
        assert left.acquire(timeout=LONG)


def test_what_is_wrong_with_the_connection_is_told():
    refused = pytest.raises(ConnectionError, match="refused with HTTP status 401: got another key than this server's")
    with running(echo(), key="a key of sixteen") as server, Client(server.uri, "another") as client, refused:
        client.infer(observed(1), LONG)
    with Client(server.uri) as client:
        until(lambda: "ConnectionRefused" in client.trouble)
        with pytest.raises(TimeoutError, match=r"there is no connection to ws://.*ConnectionRefused"):
            client.wait(0.01)
        waiting = client.ask(observed(1))
    with pytest.raises(ConnectionError, match="is closed"):
        waiting.result(LONG)
    with pytest.raises(ConnectionError, match="is closed, expected an open one"):
        client.ask(observed(1))
    with pytest.raises(InvalidURI):
        Client("http://127.0.0.1")


def test_a_client_comes_back_when_the_server_does():
    with running(echo()) as server:
        client = Client(server.uri, timeout=LONG)
        assert client.infer(observed(1))["actions"][0, 0] == 1
    with client:
        waiting = client.ask(observed(2))  # until the server is there again
        with running(echo(), port=server.port):
            assert waiting.result(LONG)["actions"][0, 0] == 2


def test_it_tries_again_within_a_fraction_of_a_second():
    """So that a robot acts again within a second of the server's return."""
    tries = []

    def handle(connection: ServerConnection) -> None:
        tries.append(time.monotonic())
        connection.send("no metadata")

    with other(handle) as uri, Client(uri):
        until(lambda: len(tries) > 8)
    assert min(np.diff(tries)[4:8]) < 0.4


def test_a_reason_is_told_once_until_it_changes(caplog):
    with running(echo(), key="a key of sixteen") as server, Client(server.uri, "another") as client:
        until(lambda: server.server.counts["connections_refused"] > 3)
        server.end()
        until(lambda: "ConnectionRefused" in client.trouble)
    told = [record.getMessage() for record in caplog.records if "no connection to" in record.getMessage()]
    assert sum("HTTP status 401" in message for message in told) == 1
    assert sum("ConnectionRefused" in message for message in told) == 1


def test_an_observation_that_is_refused_again_and_again_is_told_once_until_a_plan_comes(caplog):
    with running(echo()) as server, Client(server.uri, timeout=LONG) as client:
        for x in (np.nan, np.nan, 1, np.nan):
            with suppress(ServerError):
                client.infer(observed(x))
    assert caplog.text.count("ServerError: ") == 2


def test_tls_to_a_server_without_it_is_told():
    with running(echo()) as server, Client(server.uri.replace("ws:", "wss:")) as client:
        until(lambda: "speaks no TLS: is it one without --tls-cert? That is at ws://" in client.trouble)


def test_what_breaks_while_it_sends_ends_the_connection_and_not_the_client(monkeypatch):
    with running(echo()) as server, Client(server.uri, timeout=LONG) as client:
        client.wait()
        with monkeypatch.context() as patched:
            patched.setattr(ClientConnection, "send", lambda *given: 1 / 0)
            with pytest.raises(ConnectionError, match="ZeroDivisionError"):
                client.infer(observed(1))
        assert client.infer(observed(2))["actions"][0, 0] == 2


def test_what_is_asked_while_a_reset_is_sent_resets_nothing(monkeypatch):
    sent, real = [], ClientConnection.send

    async def slowly(self, message):
        sent.append(unpack(message))
        await asyncio.sleep(0.3)
        await real(self, message)

    monkeypatch.setattr(ClientConnection, "send", slowly)
    with running(echo()) as server, Client(server.uri, timeout=LONG) as client:
        client.wait()
        client.reset()
        first = client.ask(observed(1))
        until(lambda: len(sent) == 1)
        client.ask(observed(2)).result(LONG)
        first.result(LONG)
    assert [message.get("reset", False) for message in sent] == [True, False]


class Script:
    """A client whose network is written down, and the clock of its robot."""

    def __init__(self, **metadata) -> None:
        self.metadata = metadata or None
        self.asked, self.answers, self.now, self.resets = [], [], 0.0, 0

    def ask(self, observation):
        self.asked.append(observation)
        self.answers.append(Future())
        return self.answers[-1]

    def reset(self) -> None:
        self.resets += 1

    def answer(self, first: float, count: int = HORIZON, number: int = -1) -> None:
        """A plan whose actions are `first`, `first + 1`, ..."""
        if self.answers[number].set_running_or_notify_cancel():
            self.answers[number].set_result({"actions": first + np.arange(count)[:, None]})

    def robot(self, **more) -> Robot:
        return Robot(self, **{"rate": 10.0, "max_age": 1.0, "clock": lambda: self.now, **more})

    def step(self, robot: Robot, x: float = 0.0) -> Step:
        step = robot.step(observed(x))
        self.now += 0.1
        return step


def actions(steps) -> list[float | None]:
    return [None if step.action is None else step.action.item() for step in steps]


def test_actions_are_those_of_now():
    script = Script(execute=3, history=1)
    robot = script.robot()
    first = [script.step(robot) for _ in range(2)]
    script.answer(10)  # to the observation of step 0
    assert actions(first) == [None, None]
    assert robot.holds == {"no plan yet": 2}
    assert script.step(robot).action == 12
    assert len(script.asked) == 1
    late = [script.step(robot) for _ in range(2)]  # three steps after the first observation it is asked again
    assert len(script.asked) == 2
    assert actions(late) == [13, 14]
    script.answer(50)  # to the observation of step 3
    step = script.step(robot)
    assert step.action == 52
    assert step.age == pytest.approx(0.2)


def test_a_server_of_poise_is_told_what_was_done():
    script = Script(execute=3, history=1, server="poise")
    robot = script.robot(limits=ActionLimits((0.0,), (13.0,)))
    [script.step(robot) for _ in range(2)]
    script.answer(10, 20)
    sent = [script.step(robot) for _ in range(3)]  # in the second of them it asks again
    script.now += 0.2  # two steps that nobody called for
    sent.append(script.step(robot))
    script.answer(50, 20)
    sent += [script.step(robot) for _ in range(2)]  # asks in the first
    assert actions(sent) == [12, 13, 13, 13, 13, 13]
    first, second, third = (message.get("executed") for message in script.asked)
    assert first is None
    assert second.tolist() == [[12]]
    np.testing.assert_array_equal(third, [[13], [13], [np.nan], [np.nan], [13]])
    other = Script(execute=1, history=1)
    robot = other.robot()
    other.step(robot)
    other.answer(10)
    [other.step(robot) for _ in range(3)]
    assert len(other.asked) == 2
    assert "executed" not in other.asked[1]


def test_a_robot_holds_and_stops_and_goes_on_after_a_reset():
    stops = []
    script = Script(execute=100, history=1)
    robot = script.robot(max_age=0.5, patience=0.3, stop=lambda: stops.append(script.now))
    [script.step(robot) for _ in range(8)]  # long before there is anything to stop
    assert not stops
    script.answer(0, 100, number=0)  # too late: nobody waits for it any more
    assert script.step(robot).action is None
    script.answer(0, 100)
    steps = [script.step(robot) for _ in range(9)]
    assert [step.action is None for step in steps] == [False] * 3 + [True] * 6
    assert max(step.age for step in steps if step.action is not None) <= 0.5
    assert len(stops) == 1
    assert robot.stopped
    script.answer(0, 100)
    assert script.step(robot).action is None  # a fresh plan does not wake it
    assert robot.holds["stopped"] > 0
    robot.reset()
    assert script.resets == 1
    assert script.step(robot).action is None
    script.answer(7)
    assert script.step(robot).action == 8


def test_a_plan_that_is_used_up_is_no_reason_to_repeat_its_end():
    script = Script(execute=5, history=1)
    robot = script.robot()
    script.step(robot)
    script.answer(0, count=2)
    assert actions(script.step(robot) for _ in range(3)) == [1, None, None]
    assert robot.holds["the newest plan is used up"] == 2


@pytest.mark.parametrize(
    "outcome",
    [
        {"actions": np.float32([[np.nan]])},
        {"actions": np.zeros(3)},
        {"actions": [[1.0]]},
        {},
        ServerError("no"),
        BusyError("no"),
        ConnectionError("no"),
    ],
)
def test_what_is_no_plan_is_never_executed(outcome):
    script = Script(history=1)
    robot = script.robot()
    script.step(robot)
    if isinstance(outcome, Exception):
        script.answers[-1].set_exception(outcome)
    else:
        script.answers[-1].set_result(outcome)
    assert script.step(robot).action is None
    assert len(script.asked) == 2
    script.answer(0)
    assert script.step(robot).action == 1


def test_a_robot_sends_the_history_that_the_policy_sees():
    script = Script(history=3, execute=1, observations={"x": [1]})
    robot = script.robot()
    buffer = observed(0)
    for x in range(4):
        buffer["x"][:] = x
        robot.step({**buffer, "prompt": "go"})
        script.answer(0)
        script.now += 0.1
    assert [asked["x"][:, 0].tolist() for asked in script.asked] == [[0], [0, 1], [0, 1, 2], [1, 2, 3]]
    assert script.asked[-1]["prompt"] == "go"
    robot.step(observed(4))  # a feature is missing: the history begins anew
    assert script.asked[-1]["x"].tolist() == [[4]]


def test_a_robot_asks_twice_within_the_age_that_it_allows():
    for metadata, every in (({}, 5), ({"execute": 100}, 5), ({"execute": 3}, 3)):
        script = Script(observations={"x": [1]}, **metadata)
        robot, asked = script.robot(max_age=1.0), []
        for tick in range(20):
            script.step(robot)
            if len(script.asked) > len(asked):
                asked.append(tick)
                script.answer(0, 100)
        assert asked == list(range(0, 20, every))
        assert script.asked[0]["x"].shape == (1,)  # no history is sent to who tells of none


def test_a_reset_drops_what_was_asked_before():
    script = Script(history=1)
    robot = script.robot()
    script.step(robot)
    robot.reset()
    assert script.answers[0].cancelled()
    robot.reset()
    assert script.resets == 2


def test_before_the_first_connection_a_robot_holds():
    script = Script()
    robot = script.robot()
    assert script.step(robot).action is None
    assert not script.asked


LIMITS = {"low": [0.0], "high": [100.0], "change": [2.0], "acceleration": [1.0], "jerk": None}


def test_what_a_robot_sends_holds_to_the_limits_of_the_server():
    """Over the seam of two plans far apart, and after a hold, from where the robot stands."""
    script = Script(execute=4, history=1, safety=LIMITS)
    robot = script.robot(max_age=0.8, patience=1e9)
    script.step(robot)
    script.answer(10)
    sent = [script.step(robot).action for _ in range(4)]
    script.answer(60)
    sent += [script.step(robot).action for _ in range(20)]  # nothing is answered from here on: it holds in the end
    held = [action is None for action in sent]
    assert held.count(True) > 5
    moved = np.array([action.item() for action in sent if action is not None])
    assert moved[:4].tolist() == [11, 12, 13, 14]
    assert np.abs(np.diff(moved)).max() <= 2
    assert np.abs(np.diff(moved, 2)).max() <= 1
    assert robot.interventions["change"] > 3
    assert robot.interventions["steps"] == len(moved)
    assert script.step(robot).action is None
    script.answer(moved[-1] + 20)
    assert script.step(robot).action == moved[-1] + 1  # from rest, by the acceleration
    robot.reset()
    script.step(robot)
    script.answer(99)
    assert script.step(robot).action == 100  # the first action of an episode is held to the range alone


@pytest.mark.parametrize("reset", [False, True])
def test_limits_outlast_a_server_that_tells_none(reset, caplog):
    """It comes back with --no-safety, or another server does, in the same episode or after it; told once."""
    script = Script(execute=1, history=1, safety=LIMITS)
    robot = script.robot()
    script.step(robot)
    script.answer(10)
    assert actions(script.step(robot) for _ in range(3)) == [11, 12, 13]
    script.metadata = {"execute": 1, "history": 1}
    if reset:
        robot.reset()
    script.step(robot)
    script.answer(500)
    first = script.step(robot).action
    assert first == 100 if reset else first < 20  # by the range alone, or from where it was
    script.answer(20)
    sent = [first.item(), *(script.step(robot).action.item() for _ in range(4))]
    assert np.abs(np.diff(sent)).max() <= 2
    assert caplog.text.count("the server tells no limits of actions: those that it told before stay") == 1


def test_a_robot_without_limits_is_told(caplog):
    script = Script(execute=1, history=1)
    robot = script.robot()
    for _ in range(4):
        script.step(robot)
        script.answer(0)
    assert caplog.text.count("the server tells no limits of actions: actions leave as planned") == 1


@pytest.mark.parametrize("metadata", [{}, {"safety": LIMITS}, {"safety": 5}])
def test_limits_of_its_own_win(metadata, caplog):
    script = Script(execute=1, history=1, **metadata)
    robot = script.robot(limits=ActionLimits((0.0,), (3.0,)))
    script.step(robot)
    script.answer(0)
    assert actions(script.step(robot) for _ in range(5)) == [1, 2, 3, 3, 3]
    assert robot.interventions == {"steps": 5, "range": 2}
    assert "limits" not in caplog.text


def test_new_limits_hold_from_what_was_sent():
    script = Script(execute=1, history=1, safety=LIMITS)
    robot = script.robot()
    script.step(robot)
    script.answer(10)
    assert script.step(robot).action == 11
    script.metadata = {**script.metadata, "safety": {**LIMITS, "high": [90.0]}}
    script.answer(50)
    assert script.step(robot).action == 12  # from rest, by the acceleration


def test_limits_go_on_from_zero_where_a_hold_is_one():
    script = Script(execute=8, history=1, safety={**LIMITS, "low": [-100.0]})
    robot = script.robot(hold=zeroed, patience=1e9)
    script.step(robot)
    script.answer(50, 2)
    assert script.step(robot).action == 51
    assert script.step(robot).action is None
    script.now += 1
    script.step(robot)
    script.answer(50)
    assert script.step(robot).action == 1


@pytest.mark.parametrize(
    "told", [{**LIMITS, "low": [0.0, 0.0], "high": [1.0, 1.0], "change": None, "acceleration": None}, {"low": [1.0]}, 5]
)
def test_limits_that_do_not_fit_hold_the_robot(told, caplog):
    script = Script(history=1, safety=told)
    robot = script.robot()
    script.step(robot)
    script.answer(0)
    assert script.step(robot).action is None
    assert "no plan: " in caplog.text


def test_what_is_not_finite_is_neither_sent_nor_remembered(caplog):
    script = Script(history=2, execute=1, observations={"x": [1]})
    robot = script.robot()
    for x in (1, np.nan, np.nan, 2, 3):
        script.step(robot, x)
        if not script.answers[-1].done():
            script.answer(0)
    assert [asked["x"].tolist() for asked in script.asked] == [[[1]], [[2]], [[2], [3]]]
    assert "'x' holds NaN or infinity" in caplog.text


def test_an_observation_that_was_taken_earlier_dates_its_plan():
    script = Script(execute=2, history=1)
    robot = script.robot(max_age=0.5)
    robot.step(observed(0), age=0.2)
    script.answer(10)
    step = robot.step(observed(0), age=0.2)
    assert step.action == 12
    assert step.age == pytest.approx(0.2)


@pytest.mark.parametrize("wrong", ["closed", {"age": 1}, {"x": object()}])
def test_a_step_raises_nothing(wrong, caplog):
    """A closed client, a name of the protocol, and what has no form on the wire."""
    client = Client("ws://127.0.0.1:9")
    client._metadata = {"history": 1}
    if wrong == "closed":
        client.close()
    robot = Robot(client, 10.0, 1.0)
    for _ in range(3):
        assert robot.step(observed(0) if wrong == "closed" else wrong).action is None
    client.close()
    assert caplog.text.count("no plan: ") == 1


def test_steps_that_nobody_asked_for_count_as_held():
    script = Script(history=1, safety=LIMITS)
    robot = script.robot()
    script.step(robot)
    script.answer(0, 16)
    assert actions(script.step(robot) for _ in range(3)) == [1, 2, 3]
    script.now += 0.3
    assert script.step(robot).action == 4  # from rest again; 7 is due
    assert robot.holds == {"no plan yet": 1, "the step came late": 3}


@pytest.mark.parametrize("seed", range(5))
def test_whatever_the_network_does_every_action_is_that_of_its_moment(seed):
    """Plans of 16 actions at 20 Hz, latencies up to half a second, lost replies, and minutes without a server."""
    random = np.random.default_rng(seed)
    script, under_way, acted = Script(execute=8, history=1), [], 0
    robot = script.robot(rate=20.0, max_age=0.6, patience=1e9)
    for tick in range(6000):
        script.now = tick / 20 + random.uniform(-0.01, 0.01)
        lost = 2000 < tick < 2600
        count = len(script.answers)
        step = robot.step(observed(tick))
        if len(script.answers) > count and not lost and random.random() > 0.05:
            under_way.append((tick + random.integers(0, 11), tick, count))
        if step.action is not None:
            assert step.action == tick
            assert step.age is not None
            assert step.age <= 0.6
            acted += 1
        for arrived in [entry for entry in under_way if entry[0] <= tick]:
            under_way.remove(arrived)
            script.answer(arrived[1], 16, arrived[2])
    assert acted + robot.holds.total() == 6000
    assert acted > 3000
    assert robot.holds["the newest plan is too old"] > 500


def test_robots_check_their_numbers():
    for wrong in ({"rate": 0}, {"max_age": 0.05}, {"patience": 0}):
        with pytest.raises(ValueError, match="expected numbers above 0 and a max_age of at least one control step"):
            Script().robot(**wrong)
    Script().robot(rate=0.5, max_age=2.0, patience=0.1)


SERVE = """
import sys
from poise.policies import load
from poise.serving import Limits, Planner, Server, run
run(Server(Planner(load(sys.argv[1])), Limits()), "127.0.0.1", 0, ready=lambda line: print(line, flush=True))
"""


def test_killing_the_server_makes_robots_hold_and_its_return_makes_them_go_on(tmp_path):
    checkpoint = diffusion().save(tmp_path)
    arguments = [sys.executable, "-c", SERVE, checkpoint]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        assert child.stdout is not None
        uri = child.stdout.readline().removeprefix("serving at ").strip()
        with Client(uri) as client:
            robot, steps = Robot(client, rate=50.0, max_age=0.1, patience=1e9), []

            def step() -> Step:
                steps.append(robot.step(observed(0.5)))
                return steps[-1]

            until(lambda: step().action is not None)
            child.kill()
            until(lambda: step().action is None and (steps[-1].age or 0) > 0.1)
            child.wait()
            with running(diffusion(), port=int(uri.rpartition(":")[2])):
                until(lambda: step().action is not None)
    assert max(step.age or 0.0 for step in steps if step.action is not None) <= 0.1


def test_the_command_listens_to_others_with_a_key_only(tmp_path):
    checkpoint = diffusion().save(tmp_path)
    with pytest.raises(ValueError, match="got --host 0.0.0.0 without a key"):
        serve_command(checkpoint, Listen(host="0.0.0.0", port=0), safety=False)
    (tmp_path / "key").write_text("short")
    with pytest.raises(ValueError, match="at least 16 visible ASCII characters"):
        serve_command(checkpoint, Listen(api_key_file=tmp_path / "key"), safety=False)


def test_the_command_wants_limits_for_what_leaves(tmp_path):
    with pytest.raises(ValueError, match=r"expected the limits of its demonstrations .* without limits: --no-safety"):
        serve_command(diffusion().save(tmp_path), Listen(port=0))


def test_sigterm_ends_the_server_when_what_is_under_way_is_done(capsys):
    policy, replies = echo(), []

    def robot() -> None:
        while not (said := capsys.readouterr().out):
            time.sleep(0.01)
        with Client(said.removeprefix("serving at ").strip(), timeout=LONG) as client:
            client.wait()
            policy.gate.clear()
            answer = client.ask(observed(7))
            while policy.batches[-1] != [7]:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)
            while not server.ending:
                time.sleep(0.01)
            policy.gate.set()
            replies.append(answer.result(LONG))

    server = Server(Planner(policy), Limits())
    thread = threading.Thread(target=robot)
    thread.start()
    run(server, "127.0.0.1", 0)
    thread.join()
    assert replies[0]["actions"][0, 0] == 7
