import re
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import msgpack
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from served import HISTORY, HORIZON, Peer, diffusion, echo, running
from websockets.exceptions import ConnectionClosed, InvalidStatus

from poise.cli.serve import Listen
from poise.client import Client
from poise.policies import RecedingHorizon
from poise.serving import Limits, Planner
from poise.serving.limits import Pace, Places, authorised, check_exposure, read_key
from poise.serving.metrics import BUCKETS, Latencies
from poise.serving.sessions import Request, executed, joined
from poise.wire import pack

KEY = "a key of sixteen"


def get(server, path: str, key: str | None = None) -> tuple[int, str]:
    headers = {} if key is None else {"Authorization": f"Api-Key {key}"}
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def closed(peer: Peer) -> int | None:
    """The code that the server closes a connection with."""
    with pytest.raises(ConnectionClosed) as caught:
        peer.receive()
    return caught.value.rcvd and caught.value.rcvd.code


def test_served_plans_are_those_of_the_controller():
    policy, seen = diffusion(execute=1), [0.3, -0.2, 0.7, 0.1]
    control = RecedingHorizon(policy)
    control.reset([5])
    expected = [control.act({"x": np.float32([[x]])})[0] for x in seen]
    with running(policy, seed=5) as server:
        peer = Peer(server)
        replies = [peer.ask(x) for x in seen]
    assert peer.metadata["observations"] == {"x": [1]}
    assert [peer.metadata[name] for name in ("history", "planned", "execute", "action")] == [2, HORIZON, 1, 2]
    for reply, action in zip(replies, expected, strict=True):
        np.testing.assert_array_equal(reply["actions"][0], action)
        assert reply["actions"].shape == (HORIZON, 2)
        assert [name for name, value in reply.items() if isinstance(value, np.ndarray)] == ["actions"]
        assert reply["policy_timing"]["infer_ms"] > 0
    assert "prev_total_ms" not in replies[0]["server_timing"]
    assert replies[1]["server_timing"]["prev_total_ms"] > replies[0]["server_timing"]["infer_ms"]


def test_a_seed_makes_plans_depend_on_observations_alone_and_episodes_differ():
    with running(diffusion(), seed=3) as server:
        first, second = Peer(server), Peer(server)
        begun = first.ask(0.5, reset=True)["actions"]
        np.testing.assert_array_equal(begun, second.ask(0.5)["actions"])
        again = first.ask(0.5, reset=True)["actions"]
        np.testing.assert_array_equal(again, second.ask(0.5, reset=True)["actions"])
        assert np.abs(again - begun).max() > 1e-3
    with running(diffusion()) as server:
        assert np.abs(Peer(server).ask(0.5)["actions"] - Peer(server).ask(0.5)["actions"]).max() > 1e-3


def test_histories_do_not_mix():
    with running(echo()) as server:
        one, two = Peer(server), Peer(server)
        assert one.saw(1) == [1, 1, 1]
        assert two.saw(5) == [5, 5, 5]
        assert one.saw(2) == [1, 1, 2]
        assert two.saw(6, env_id="left") == [6, 6, 6]
        assert two.saw(7, env_id=np.int64(0)) == [7, 7, 7]
        assert two.saw(8) == [5, 5, 8]
        assert two.saw(9, env_id="left") == [6, 6, 9]
        assert one.saw(3) == [1, 2, 3]
        assert one.saw(4, reset=True) == [4, 4, 4]
        assert two.saw(9) == [5, 8, 9]
        one.socket.close()
        assert Peer(server).saw(1) == [1, 1, 1]


def test_a_robot_may_send_its_history_itself_and_late_observations():
    with running(echo()) as server:
        peer = Peer(server)
        assert peer.saw(0) == [0, 0, 0]
        assert peer.saw([[1], [2], [3]]) == [1, 2, 3]
        assert peer.saw([[4], [5]]) == [3, 4, 5]
        assert peer.saw(5, age=1) == [3, 4, 5]  # that of the step before, again
        assert peer.saw(7) == [5, 5, 7]


def test_requests_are_batched_and_plan_as_alone():
    seen = np.linspace(-1, 1, 8)
    policy, gate = diffusion(), echo()
    with running(policy, seed=2) as server:
        alone = [Peer(server).ask(x)["actions"] for x in seen]

    def held(observation, noise=None):  # the network of one policy, and the gate of the other
        gate.begun.release()
        assert gate.gate.wait(20)
        return planned(observation, noise)

    planned, policy.plan = policy.plan, held
    with running(policy, seed=2) as server:
        gate.gate.clear()
        while gate.begun.acquire(blocking=False):
            pass
        peers = [Peer(server) for _ in seen]
        peers[0].send(seen[0])
        assert gate.begun.acquire(timeout=20)
        for peer, x in zip(peers[1:], seen[1:], strict=True):
            peer.send(x)
        wait_for(lambda: server.server.counts["requests"] == len(seen))
        gate.gate.set()
        replies = [peer.receive() for peer in peers]
    assert [reply["server_timing"]["batch"] for reply in replies] == [1] + [7] * 7
    for reply, expected in zip(replies, alone, strict=True):
        np.testing.assert_allclose(reply["actions"], expected, rtol=1e-4, atol=1e-5)


def wait_for(condition) -> None:
    for _ in range(2000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it never happened")


def test_connections_take_turns():
    policy = echo()
    with running(policy, Limits(batch=2)) as server:
        policy.batches.clear()
        shut(policy)
        greedy, modest, first = Peer(server), Peer(server), Peer(server)
        first.send(0)
        assert policy.begun.acquire(timeout=20)
        for robot in range(4):
            greedy.send(robot + 1, env_id=robot)
        wait_for(lambda: server.server.counts["requests"] == 5)
        modest.send(9)
        wait_for(lambda: server.server.counts["requests"] == 6)
        policy.gate.set()
        modest.receive()
        for _ in range(4):
            greedy.receive()
        assert policy.batches == [[0], [1, 9], [2, 3], [4]]


def shut(policy) -> None:
    """Close the gate, and forget what was planned before."""
    while policy.begun.acquire(blocking=False):
        pass
    policy.gate.clear()


def test_the_latest_observation_wins_and_the_others_are_told():
    policy = echo()
    with running(policy) as server:
        shut(policy)
        peer = Peer(server)
        peer.send(1, request_id="first")
        assert policy.begun.acquire(timeout=20)
        for x in (2, 3, 4, 5):
            peer.send(x, request_id=x)
        assert [peer.receive() for _ in range(3)] == [
            {"busy": "superseded by a newer observation", "request_id": x} for x in (2, 3, 4)
        ]
        policy.gate.set()
        first, last = peer.receive(), peer.receive()
        assert (first["request_id"], last["request_id"]) == ("first", 5)
        assert last["actions"][:HISTORY, 0].tolist() == [3, 4, 5]  # what was superseded was seen


DIALECT = {b"nd": True, b"type": "<f4", b"kind": b"", b"shape": [1], b"data": bytes(4)}
BAD = {
    "NaN": ({"x": np.float32([np.nan])}, "NaN or infinity in feature 'x'"),
    "too large for float32": ({"x": np.array([1e300])}, "NaN or infinity in feature 'x'"),
    "missing": ({"y": 1}, r"got the keys \['y'\], expected also the features \['x'\]"),
    "shape": ({"x": np.zeros(2)}, r"got feature 'x' of shape \(2,\), expected \(1,\)"),
    "steps": ({"x": np.zeros((4, 1))}, r"of shape \(4, 1\), expected \(1,\), or that of 1 to 3"),
    "no steps": ({"x": np.zeros((0, 1))}, r"of shape \(0, 1\), expected"),
    "different steps": ({"x": np.zeros((2, 1)), "camera": np.zeros((2, 2, 3))}, "control steps, expected one number"),
    "deep": ({"x": np.zeros((1, 1, 1))}, r"of shape \(1, 1, 1\), expected"),
    "0-d": ({"x": 1.0}, r"of shape \(\), expected"),
    "text": ({"x": ["one"]}, "got feature 'x' of <U3, expected numbers"),
    "uneven": ({"x": [[1], [2, 3]]}, "uneven lists"),
    "images of floats": ({"x": np.zeros(1), "camera": np.zeros((2, 2, 3))}, "images 'camera' of float64"),
    "dialect": ({"x": DIALECT}, "dialect of the package msgpack-numpy"),
    "no map": ([1, 2], "a message that is a list"),
    "no msgpack": (b"\xc1", "no message of openpi's form"),
    "no binary frame": ("text", "got a text frame"),
    "reset": ({"x": np.zeros(1), "reset": 1}, "got reset '1', expected true or false"),
    "robot": ({"x": np.zeros(1), "env_id": [1]}, "got env_id"),
    "long name": ({"x": np.zeros(1), "request_id": "a" * 65}, "got request_id"),
    "age": ({"x": np.zeros(1), "age": 1.5}, "got age '1.5'"),
    "executed": ({"x": np.zeros(1), "executed": np.zeros((2, 3))}, "executed of shape .2, 3., expected .steps, 2."),
    "too much executed": ({"x": np.zeros(1), "executed": np.zeros((99, 2))}, "of up to 6 control steps"),
    "executed words": ({"x": np.zeros(1), "executed": ["stood", "moved"]}, "got feature 'executed' of <U5"),
    "negative age": ({"x": np.zeros(1), "age": -1}, "of age -1, expected 0 to 5"),
    "failed": ({"x": np.array([13.0]), "camera": np.zeros((2, 2, 3), np.uint8)}, "^13 cannot be planned for$"),
    "broken": ({"x": np.array([14.0]), "camera": np.zeros((2, 2, 3), np.uint8)}, "^the server failed to plan"),
    "NaN planned": ({"x": np.array([15.0]), "camera": np.zeros((2, 2, 3), np.uint8)}, "the policy planned NaN"),
}


def test_bad_observations_end_in_named_errors_and_others_go_on():
    picture = np.zeros((2, 2, 3), np.uint8)
    with running(echo(observations={"camera": (2, 2, 3)}, optional={"camera": 0.1})) as server:
        good = Peer(server)
        for name, (message, words) in BAD.items():
            bad = Peer(server)
            bad.socket.send(message if isinstance(message, bytes | str) else msgpack.packb(message, default=form))
            told = bad.receive()
            assert isinstance(told, str), name
            assert re.search(words, told), (name, told)
            assert "Traceback" not in told
            assert "secret" not in told
            assert closed(bad) == 1011
            assert good.saw(2, reset=True, camera=picture) == [2, 2, 2]
        assert server.server.counts["errors"] == len(BAD)


def form(value):
    """As openpi packs it, whatever it is."""
    return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}


@pytest.mark.parametrize("number", [13, 14, 15])
def test_an_observation_that_cannot_be_planned_for_harms_none_of_its_batch(number):
    policy = echo()
    with running(policy) as server:
        shut(policy)
        first, good, bad = Peer(server), Peer(server), Peer(server)
        first.send(0)
        assert policy.begun.acquire(timeout=20)
        good.send(1)
        bad.send(number)
        wait_for(lambda: server.server.counts["requests"] == 3)
        policy.gate.set()
        assert good.receive()["actions"][0, 0] == 1
        assert isinstance(bad.receive(), str)
        assert sorted(policy.batches[-3 if number < 15 else -1]) == [1, number]


def test_keys_origins_sizes_and_numbers_are_checked():
    limits = Limits(message_bytes=1000, connections_per_address=2, sessions=2)
    with running(echo(), limits, KEY) as server:
        right = {"Authorization": f"Api-Key {KEY}"}
        for wrong in ({}, {"Authorization": "Api-Key a key of sixteem"}, {"Authorization": KEY}):
            with pytest.raises(InvalidStatus) as refused:
                Peer(server, additional_headers=wrong)
            assert refused.value.response.status_code == 401
            got = b"another key than this server's" if wrong else b"no key"
            assert refused.value.response.body == b"got " + got + b", expected the header Authorization: Api-Key KEY\n"
        with pytest.raises(InvalidStatus) as refused:
            Peer(server, additional_headers=right, origin="http://127.0.0.1:8000")
        assert refused.value.response.status_code == 403
        peer, other = Peer(server, additional_headers=right), Peer(server, additional_headers=right)
        with pytest.raises(InvalidStatus) as refused:
            Peer(server, additional_headers=right)
        assert refused.value.response.status_code == 503
        other.send(0, more=bytes(1000))
        assert closed(other) == 1009
        assert peer.saw(1) == [1, 1, 1]
        assert peer.saw(1, env_id=1) == [1, 1, 1]
        assert "more than 2 env_id" in peer.ask(1, env_id=2)
        with Client(server.uri, KEY, timeout=20) as client:
            client.wait()
            with pytest.raises(ConnectionError, match="exceeds limit of 1000 bytes .*larger --message-bytes"):
                client.infer({"x": np.zeros(1), "more": bytes(1000)})
        wait_for(lambda: "poise_connections 0.0" in get(server, "/metrics", KEY)[1])
        assert Peer(server, additional_headers=right).saw(1) == [1, 1, 1]


def test_the_server_answers_over_http_while_it_plans():
    policy = echo()
    with running(policy, key=KEY) as server:
        shut(policy)
        peer = Peer(server, additional_headers={"Authorization": f"Api-Key {KEY}"})
        peer.send(1)
        assert policy.begun.acquire(timeout=20)
        assert get(server, "/healthz") == (200, "OK\n")
        assert get(server, "/", KEY)[0] == 426
        assert get(server, "/metrics")[0] == 401
        assert "poise_requests_total 1.0" in get(server, "/metrics", KEY)[1]
        policy.gate.set()
        peer.receive()
        assert "poise_plans_total 1.0" in get(server, "/metrics", KEY)[1]


def test_ending_finishes_what_is_under_way():
    policy = echo()
    with running(policy) as server:
        shut(policy)
        peer, waiting = Peer(server), Peer(server)
        peer.send(1)
        assert policy.begun.acquire(timeout=20)
        waiting.send(2)
        wait_for(lambda: server.server.counts["requests"] == 2)
        server.tell()
        wait_for(lambda: server.server.ending)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port))
        assert peer.ask(3, request_id=3) == {"busy": "the server ends", "request_id": 3}
        policy.gate.set()
        assert peer.receive()["actions"][0, 0] == 1
        assert waiting.receive()["actions"][0, 0] == 2
        assert closed(peer) == closed(waiting) == 1001


OPENING = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def test_clients_that_are_gone_or_slow_are_dropped():
    limits = Limits(open_seconds=0.2, ping_seconds=0.2, message_seconds=0.2)
    part = struct.pack(">BB4s3s", 0x02, 0x83, bytes(4), b"\x81\xa1x")  # the first of several frames
    with running(echo(), limits) as server:
        for data in (b"", OPENING, OPENING + part):
            with socket.create_connection(("127.0.0.1", server.port), timeout=20) as peer:
                peer.sendall(data)
                received = b""
                while more := peer.recv(4096):  # reads and answers nothing
                    received += more
                assert (b"got part of a message for 0.2 s" in received) == (part in data)
        wait_for(lambda: "poise_connections 0.0" in get(server, "/metrics")[1])


def test_a_client_that_takes_no_replies_is_dropped():
    with running(echo(horizon=200_000), Limits(message_seconds=0.3)) as server, socket.socket() as deaf:
        deaf.connect(("127.0.0.1", server.port))
        deaf.sendall(OPENING)
        for robot in range(20):  # replies of 1.6 MB each
            message = pack({"x": np.float32([1]), "env_id": robot})
            deaf.sendall(struct.pack(">BB4s", 0x82, 0x80 | len(message), bytes(4)) + message)
        wait_for(lambda: server.server.counts["plans"] > 1)
        wait_for(lambda: "poise_connections 0.0" in get(server, "/metrics")[1])


def test_a_client_that_takes_no_replies_is_not_read():
    policy = echo(horizon=200_000)
    with running(policy, Limits(message_seconds=1.0)) as server, socket.socket() as deaf:
        deaf.connect(("127.0.0.1", server.port))
        deaf.sendall(OPENING)
        message = pack({"x": np.float32([1])})
        frame = struct.pack(">BB4s", 0x82, 0x80 | len(message), bytes(4)) + message
        shut(policy)
        deaf.sendall(100 * frame)
        wait_for(lambda: server.server.counts["requests"] == 100)  # and small replies to most, which fit
        policy.gate.set()
        time.sleep(0.3)  # until the reply is on its way, which is too large to leave
        for _ in range(50):
            deaf.sendall(frame)
            time.sleep(0.005)
        assert server.server.counts["requests"] < 120


def test_seams_for_safety_and_records():
    told = []

    def careful(plan):
        if plan[0, 0] > 3:
            raise ValueError("the plan leaves the table")
        return plan + 1

    def broken(served):
        raise RuntimeError("the disk is full")

    with running(echo(), filters=[careful], observers=[broken, told.append]) as server:
        peer = Peer(server)
        assert peer.ask(1, reset=True, env_id="left")["actions"][0, 0] == 2
        assert peer.ask(4) == "the plan leaves the table"
        wait_for(lambda: len(told) == 2)
    served, rejected = told
    assert (rejected.planned.interventions, rejected.planned.actions[0, 0]) == ({"rejected": 1}, 4)
    assert rejected.request.robot is None
    assert served.request.robot == "left"
    assert served.request.reset
    assert served.request.rows[0]["x"] == 1
    assert served.planned.actions[0, 0] == 2
    assert served.planned.batch == 1


def test_a_planner_that_breaks_does_not_stop_the_server(monkeypatch):
    def broken(self, jobs):
        raise MemoryError("too much")

    with running(echo()) as server, monkeypatch.context() as patch:
        bad, good = Peer(server), Peer(server)
        patch.setattr(Planner, "plan", broken)
        assert bad.ask(1) == "the server failed: its log tells more"
        patch.undo()
        assert good.saw(2) == [2, 2, 2]


def histogram(server) -> tuple[dict[float, float], float, float]:
    """Upper ends and counts, number and sum of the seconds that plans took, by the parser of Prometheus."""
    families = text_string_to_metric_families(get(server, "/metrics")[1])
    (found,) = (one for one in families if one.name == "poise_plan_seconds")
    assert found.type == "histogram"
    values = {name: [s for s in found.samples if s.name.endswith(name)] for name in ("_bucket", "_count", "_sum")}
    buckets = {float(sample.labels["le"]): sample.value for sample in values["_bucket"]}
    return buckets, values["_count"][0].value, values["_sum"][0].value


def test_the_seconds_of_plans_are_sorted_into_buckets():
    policy = echo()
    with running(policy) as server:
        buckets, count, total = histogram(server)
        assert [*buckets] == [*BUCKETS]
        assert (set(buckets.values()), count, total) == ({0}, 0, 0)
        shut(policy)
        peer, before = Peer(server), time.perf_counter()
        peer.send(1)
        assert policy.begun.acquire(timeout=20)
        peer.send(2)  # is superseded, and no plan
        peer.send(3)
        assert "busy" in peer.receive()
        time.sleep(0.25)
        policy.gate.set()
        peer.receive()
        peer.receive()
        wait_for(lambda: histogram(server)[1] == 2)
        took = time.perf_counter() - before
        buckets, count, total = histogram(server)
    assert buckets[0.2] == 0  # both waited for the gate, from their arrival
    assert buckets[float("inf")] == count == 2
    assert 0.5 < total < 2 * took
    assert sorted(buckets.values()) == [*buckets.values()]


def test_a_time_at_the_end_of_a_bucket_is_in_it():
    latencies = Latencies()
    for seconds in (0.0, 0.001, 0.0011, 1.0, 1.1):
        latencies.add(seconds)
    assert latencies.counts == [2, 1, *[0] * 7, 1, 1]
    assert latencies.seconds == pytest.approx(2.1021)


def test_figures_name_the_extra_that_they_need(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with running(echo()) as server:
        status, said = get(server, "/metrics")
    why = "import of prometheus_client halted; None in sys.modules"
    assert (status, said) == (404, f"/metrics needs the extra 'metrics' ({why}): pip install 'poise[metrics]'\n")


def test_features_with_the_names_of_the_protocol_are_refused():
    policy = echo(observations={"reset": (1,)})
    with pytest.raises(ValueError, match=r"observes \['reset'\], which are keys of the protocol"):
        running(policy).__enter__()


def test_tls(tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, *name]
    if not shutil.which("openssl"):
        pytest.skip("openssl makes the certificate of this test")
    subprocess.run(make, check=True, capture_output=True)
    tls = Listen(tls_cert=certificate, tls_key=key).tls()
    with running(echo(), tls=tls) as server:
        trusted = ssl.create_default_context(cafile=certificate)
        with Client(server.uri.replace("ws:", "wss:"), tls=trusted) as client:
            client.wait(20)
            assert client.infer({"x": np.zeros(1)}, 20)["actions"].shape == (HORIZON, 2)
    with pytest.raises(ValueError, match="got one of --tls-cert and --tls-key"):
        Listen(tls_cert=certificate).tls()


def test_the_pace_of_messages_is_bounded():
    clock = iter([0.0, *[1.0] * 5, 1.5])
    pace = Pace(2.0, lambda: next(clock))
    assert [pace.wait() for _ in range(5)] == [0, 0, 0.5, 1.0, 1.5]
    assert pace.wait() == 1.5  # half a second later: one more has come, and one more is taken


def test_places_are_counted():
    places = Places(Limits(connections=3, connections_per_address=2))
    for address in ("a", "a", "b"):
        assert places.full(address) is None
        places.take(address)
    assert "all 3 connections" in (places.full("c") or "")
    places.leave("b")
    assert "all 2 connections of a" in (places.full("a") or "")
    assert places.full("c") is None
    assert len(places) == 2


def test_only_the_key_opens():
    assert authorised(None, None)
    assert authorised(KEY, f"Api-Key {KEY}")
    for header in (None, "", KEY, f"Api-Key {KEY} ", f"api-key {KEY}", "Api-Key ", "\udcff"):
        assert not authorised(KEY, header)


def test_others_than_this_machine_need_a_key():
    for host in ("127.0.0.1", "::1", "localhost"):
        check_exposure(host, None)
    for host in ("0.0.0.0", "::", "10.0.0.1", "robot.local", ""):
        with pytest.raises(ValueError, match="without a key, expected --api-key-file"):
            check_exposure(host, None)
        check_exposure(host, KEY)


@pytest.mark.parametrize("text", ["", "short", "with space in it all", "sixteen\nletters and more", "ä" * 20])
def test_weak_keys_are_refused(tmp_path, text):
    file = tmp_path / "key"
    file.write_text(text)
    with pytest.raises(ValueError, match="expected a key of at least 16 visible ASCII characters"):
        read_key(file)
    file.write_text("0123456789abcdef\n")
    assert read_key(file) == "0123456789abcdef"


def test_limits_are_above_nothing():
    with pytest.raises(ValueError, match="Limits got batch=0, expected more than 0"):
        Limits(batch=0)


def test_superseded_requests_keep_the_history_and_the_reset():
    first, second, third = Request([], 1, reset=True), Request([], 2), Request([], 3)
    assert joined([first], second, 2) == [first, second]
    assert joined([first, second], third, 2) == [Request([], 2, reset=True), third]
    assert joined([second, third], first, 2) == [first]


def test_what_superseded_requests_told_was_done_is_not_lost():
    told = [Request([], executed=np.full((count, 2), count, np.float32)) for count in (1, 2)]
    assert executed([told[0], Request([]), told[1]], 6)[:, 0].tolist() == [1, 2, 2]
    assert executed(told, 2)[:, 0].tolist() == [2, 2]
    assert executed([Request([])], 6) is None
