"""What `benchmarks/wire_fuzz.py` finds out about a server."""

import asyncio
import importlib
import random
import socket
import threading
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
from served import echo, running

from poise.wire import pack

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
GOOD = pack({"x": np.zeros(1)})


@pytest.fixture
def fuzz(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("wire_fuzz")


def flown(fuzz, uri: str, source, raw: float, flight: int):
    judge = fuzz.Judge("self")
    made = asyncio.run(fuzz.flown(uri, iter(source), random.Random(0), raw, flight, judge))
    return made, judge


def test_a_server_answers_every_broken_message(fuzz):
    with running(echo()) as server:
        broken = list(islice(fuzz.messages(0), 150))
        made, judge = flown(fuzz, server.uri, chain([GOOD] * 10, broken), 0.0, 5)
        assert judge.kinds == {"planned": 10, "closed 1011": 150}
        assert 0 < judge.slowest[0] < 10
        assert 150 <= made <= 155
        assert server.server.counts["connections_opened"] == made
        made, judge = flown(fuzz, server.uri, broken, 1.0, 5)
        assert (made, judge.kinds) == (0, {"raw": 150})


@pytest.mark.parametrize(
    ("answer", "kind"), [(b"", "closed 0"), (b"\x88\x02\x03\xe8", "closed 1000"), (b"\x81\x01x\x81\x01y", "frame 1")]
)
def test_a_server_that_ends_otherwise_is_told(fuzz, answer, kind):
    def serve() -> None:
        peer, _ = listener.accept()
        with peer:
            peer.recv(4096)
            peer.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n\x82\x7e\x00\x80" + bytes(128))
            peer.recv(4096)
            peer.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve).start()
        made, judge = flown(fuzz, f"ws://127.0.0.1:{listener.getsockname()[1]}", [GOOD], 0.0, 1)
    assert (made, judge.kinds) == (1, {kind: 1})
    assert kind not in fuzz.FORESEEN
