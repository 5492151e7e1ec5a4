"""A server whose clients, worker, disk or policy misbehave."""

import logging
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import suppress

import numpy as np
import pytest
from served import Peer, asked_around, diffusion, echo, running
from test_serving import OPENING, closed, get, shut, wait_for
from websockets.exceptions import InvalidStatus

from poise.data import read
from poise.serving import Limits, Recording, server
from poise.serving.sessions import Request, Session
from poise.serving.worker import Worker
from poise.wire import pack

LARGE = 8 * 2**20


def test_few_messages_wait_to_be_read():
    with running(echo(), Limits(rate=0.2)) as served, socket.socket() as eager:
        eager.connect(("127.0.0.1", served.port))
        eager.sendall(OPENING)
        message = pack({"x": np.float32([1]), "more": bytes(LARGE)})
        frame = struct.pack(">BBQ4s", 0x82, 0x80 | 127, len(message), bytes(4)) + message
        eager.settimeout(2.0)
        taken = 0
        with suppress(TimeoutError):
            for _ in range(20):
                rest = memoryview(frame)
                while rest:
                    count = eager.send(rest)
                    taken, rest = taken + count, rest[count:]
        # The first is answered; of the others two wait in the server, and some in the buffers of the two sockets.
        assert 2 * LARGE < taken < 6 * LARGE
        assert served.server.counts["requests"] == 1


def test_who_never_opens_a_connection_is_counted():
    limits = Limits(connections=2, connections_per_address=1, open_seconds=20.0)
    with running(echo(), limits) as served:
        address = ("127.0.0.1", served.port)
        with socket.create_connection(address, timeout=10), socket.create_connection(address, timeout=10):
            with socket.create_connection(address, timeout=10) as third, suppress(ConnectionResetError):
                assert third.recv(1) == b""
            wait_for(lambda: served.server.counts["connections_refused"] == 1)
        wait_for(lambda: get_or_none(served) == (200, "OK\n"))
        peer = Peer(served)
        assert peer.saw(1) == [1, 1, 1]
        with pytest.raises(InvalidStatus) as refused:
            Peer(served)
        assert refused.value.response.status_code == 503
        assert get(served, "/healthz") == (200, "OK\n")  # also where all places are taken


def get_or_none(served):
    with suppress(OSError):
        return get(served, "/healthz")
    return None


def test_a_worker_that_hangs_is_told():
    policy = echo()
    with running(policy, Limits(plan_seconds=0.2)) as served:
        assert get(served, "/healthz") == (200, "OK\n")
        shut(policy)
        peer = Peer(served)
        peer.send(1)
        assert policy.begun.acquire(timeout=20)
        wait_for(lambda: get(served, "/healthz") == (503, "the policy hangs\n"))
        policy.gate.set()
        peer.receive()
        wait_for(lambda: get(served, "/healthz") == (200, "OK\n"))


def test_a_reply_that_cannot_be_sent_ends_the_connection(monkeypatch):
    def broken(reply):
        raise TypeError("there is no form for it")

    with running(echo()) as served:
        peer, other = Peer(served), Peer(served)
        with monkeypatch.context() as patch:
            patch.setattr(server, "pack", broken)
            assert peer.ask(1) == "the server failed: its log tells more"
            assert closed(peer) == 1011
        assert other.saw(2) == [2, 2, 2]


def test_a_bad_observation_that_was_superseded_harms_no_newer_one():
    policy = echo()
    with running(policy) as served:
        shut(policy)
        peer = Peer(served)
        peer.send(1)
        assert policy.begun.acquire(timeout=20)
        peer.send(2)
        peer.send(float("nan"))
        peer.send(4)
        policy.gate.set()
        replies = [peer.receive() for _ in range(4)]
    assert [set(reply) == {"busy"} for reply in replies].count(True) == 2
    # At the step of the bad one the observation before it is held.
    assert replies[-1]["actions"][:3, 0].tolist() == [2, 2, 4]


@pytest.mark.parametrize(
    ("rows", "held"), [([np.nan], [1, 1, 3]), ([np.nan, 2.0], [1, 2, 3]), ([2.0, np.nan], [2, 2, 3])]
)
def test_the_steps_of_bad_observations_pass(rows, held):
    policy = echo()
    session = Session(policy, 0)
    session.observe(asked(np.nan), superseded=True)  # nothing is held yet
    session.observe(asked(1.0), superseded=True)
    session.observe(asked(*rows), superseded=True)
    session.observe(asked(3.0))
    assert session.window()["x"][0, :, 0].tolist() == held
    with pytest.raises(ValueError, match="NaN or infinity"):
        session.observe(asked(np.nan))


def asked(*values: float) -> Request:
    return Request([{"x": np.float32([value])} for value in values])


def test_a_worker_calls_in_turn_and_survives_errors():
    worker, order = Worker("test"), []
    failed = worker.submit(lambda: 1 / 0)
    outcomes = [worker.submit(order.append, k) for k in range(3)]
    gate = threading.Event()
    held = worker.submit(gate.wait, 20)
    cancelled = worker.submit(order.append, 9)
    assert cancelled.cancel()
    gate.set()
    assert held.result(20)
    assert [one.result(20) for one in outcomes] == [None] * 3
    assert order == [0, 1, 2]
    with pytest.raises(ZeroDivisionError):
        failed.result(20)
    worker.close()


def test_a_row_after_the_end_of_the_record_is_counted_and_logged(tmp_path, caplog):
    policy, hanging = echo(), threading.Event()
    recording = Recording(tmp_path / "run", policy.spec)

    def late(served):
        hanging.set()
        assert go.wait(20)
        recording(served)
        done.set()

    go, done = threading.Event(), threading.Event()
    with running(policy, Limits(drain_seconds=0.1), observers=[late]) as served:
        Peer(served).ask(1.0)
        assert hanging.wait(20)
    recording.close()
    with caplog.at_level(logging.WARNING, "poise.serving"):
        go.set()
        assert done.wait(20)
    assert recording.dropped == 1
    assert "a plan of connection 0, episode 0 came after the end of the record, and is not in it" in caplog.text


@pytest.mark.parametrize("error", [RuntimeError, OSError])
def test_no_error_of_the_disk_ends_the_record(tmp_path, monkeypatch, caplog, error):
    policy = echo()
    recording = Recording(tmp_path / "run", policy.spec, seconds=0.01)
    recorder, failed = recording._recorder, threading.Event()
    save, discard = recorder.save_episode, recorder.discard_episode

    def full(*_: str) -> None:
        monkeypatch.setattr(recorder, "save_episode", save)
        raise error("no space left")

    def still_full() -> None:
        monkeypatch.setattr(recorder, "discard_episode", discard)
        failed.set()
        raise error("no space left")

    monkeypatch.setattr(recorder, "save_episode", full)
    monkeypatch.setattr(recorder, "discard_episode", still_full)
    asked_around(failed, policy, recording)
    assert recording.dropped == 1
    assert "1 plans of connection 0, episode 0 are not in the record" in caplog.text
    assert read(tmp_path / "run").features["x"][:, -1, 0].tolist() == [2]


HUNG = """
import os, signal, sys, threading, time
from pathlib import Path
import numpy as np
from poise.cli.serve import Listen, Watch, serve
from poise.client import Client
from poise.policies import Policy
from poise.serving import Limits

plan = Policy.plan

def slow(self, observation, noise=None):
    while float(observation["x"].max()) == 9.0:
        plan(self, observation, noise)
    return plan(self, observation, noise)

def robot(line):
    with Client(line.removeprefix("serving at "), timeout=60) as client:
        client.infer({"x": np.float32([1.0])})
        client.ask({"x": np.float32([9.0])})
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

def told(line, flush):
    threading.Thread(target=robot, args=(line,), daemon=True).start()

import poise.cli.serve as module
module.print = told
Policy.plan = slow
folder = Path(sys.argv[1])
limits = Limits(drain_seconds=0.3)
serve(folder / "policy", Listen(port=0), limits=limits, watch=Watch(folder / "run"), safety=False)
print("this is not reached")
"""


def test_a_plan_that_outlasts_the_end_keeps_no_process(tmp_path):
    diffusion().save(tmp_path / "policy")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", HUNG, str(tmp_path)]
    begin = time.monotonic()
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    assert time.monotonic() - begin < 45
    assert "plans were still under way 0.3 s after the end; they are lost" in ran.stderr
    assert "not reached" not in ran.stdout
    assert read(tmp_path / "run").features["x"][:, -1, 0].tolist() == [1]  # what was planned is in the record
