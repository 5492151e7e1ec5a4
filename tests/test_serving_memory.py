"""What clients can make a server hold: bounded in all, whatever they send, and nobody's share is taken from it."""

import asyncio
import random
import re
import socket
import struct
import tracemalloc
from collections import Counter
from contextlib import ExitStack, suppress

import numpy as np
import pytest
import torch
from served import Peer, Running, diffusion, echo, running
from test_serving import OPENING, closed, get, wait_for

from poise.client import Client
from poise.policies.memory import Memory
from poise.serving import Limits, Planner, Server
from poise.serving.batching import Batcher, Job, Planned, RejectedError
from poise.serving.limits import FullError, Held
from poise.serving.sessions import Request, Session, Turn, joined, request_of, robot_bytes

MIB = 2**20
SMALL = Limits(memory_bytes=4 * MIB, message_bytes=3 * MIB // 4, connections=8)
LARGE = {"observations": {"camera": (256, 256, 3)}, "optional": {"camera": 0.1}}


def frame(kind: int, data: bytes, last: bool = True) -> bytes:
    """A frame of a client, behind a mask of zeros."""
    return struct.pack(">BBQ4s", 0x80 * last | kind, 0x80 | 127, len(data), bytes(4)) + data


def fragments(size: int) -> list[bytes]:
    """All but the last part of a message."""
    half = bytes(size // 2)
    return [frame(2, half, last=False), frame(0, half, last=False)]


def unfinished(size: int) -> list[bytes]:
    """A frame without its last byte."""
    return [frame(2, bytes(size))[:-1]]


def tiny(size: int) -> list[bytes]:
    """Parts of two bytes, each of which takes some thirty times as many."""
    first, more = (struct.pack(">BB4s", kind, 0x82, bytes(4)) + b"ab" for kind in (2, 0))
    return [first, size // 90 * more]


def pings(size: int) -> list[bytes]:
    """Pings whose answers nobody reads, of which the system buffers some megabytes."""
    return [60_000 * (struct.pack(">BB4s", 0x89, 0x80 | 125, bytes(4)) + bytes(125))]


def attacked(server: Running, stack: ExitStack, parts: list[bytes]) -> socket.socket:
    """A connection that sends so much, or as much of it as the server takes, and reads nothing."""
    peer = stack.enter_context(socket.socket())
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    peer.connect(("127.0.0.1", server.port))
    peer.settimeout(20)
    peer.sendall(OPENING)
    assert b"101 Switching Protocols" in peer.recv(4096)
    peer.settimeout(2.0)
    with suppress(OSError):
        for part in parts:
            peer.sendall(part)
    return peer


@pytest.mark.parametrize(("kind", "times"), [(fragments, 7), (unfinished, 7), (tiny, 7), (pings, 1)])
def test_the_server_holds_no_more_than_it_may(kind, times):
    parts = kind(SMALL.message_bytes - 1000)
    with running(echo(), SMALL) as server, ExitStack() as stack:
        peer, held = Peer(server), server.server._held
        tracemalloc.start()
        stack.callback(tracemalloc.stop)
        for _ in range(times):
            attacked(server, stack, parts)
            assert held.total <= SMALL.memory_bytes
            assert tracemalloc.get_traced_memory()[0] < SMALL.memory_bytes
            assert peer.saw(1, reset=True) == [1, 1, 1]
        wait_for(lambda: server.server.counts["connections_refused"] > 0)
        stack.close()
        wait_for(lambda: held.total < MIB // 4)
        assert peer.saw(2, reset=True) == [2, 2, 2]


def test_a_broken_message_is_not_held_until_its_sender_has_read_why():
    size, times = SMALL.message_bytes - 1000, 5
    with running(echo(), SMALL) as server, ExitStack() as stack:
        tracemalloc.start()
        stack.callback(tracemalloc.stop)
        message = [frame(2, b"\xdb" + bytes(size))]  # a long text, of which the most is missing
        begin = tracemalloc.get_traced_memory()[0]
        for number in range(times):
            attacked(server, stack, message)
            wait_for(lambda number=number: server.server.counts["errors"] == number + 1)
        assert len(server.server._places) == times
        assert tracemalloc.get_traced_memory()[0] - begin < size


def test_a_message_is_not_held_after_its_plan():
    with running(echo(), Limits(message_bytes=4 * MIB)) as server:
        tracemalloc.start()
        peers = [Peer(server) for _ in range(5)]
        for peer in peers:
            assert peer.saw(1, more=bytes(2 * MIB)) == [1, 1, 1]
        traced = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert traced < 4 * MIB
        for peer in peers:
            peer.socket.close()
        wait_for(lambda: server.server._held.total == 0)


def test_who_finds_no_room_is_told_and_may_come_again():
    why = struct.pack(">H", 1013) + b"the server holds as much for its clients as it may: try again later"
    with running(echo(), SMALL) as server, ExitStack() as stack:
        size = SMALL.message_bytes - 1000
        peers = [attacked(server, stack, fragments(size)) for _ in range(7)]
        wait_for(lambda: server.server.counts["connections_refused"] > 0)
        (held,) = re.findall(r"^poise_held_bytes (\S+)$", get(server, "/metrics")[1], re.MULTILINE)
        assert size < float(held) <= SMALL.memory_bytes
        told: list[bytes] = [b""] * 7

        def refused() -> int:
            for number, peer in enumerate(peers):
                peer.setblocking(False)
                with suppress(OSError):
                    told[number] += peer.recv(2**16)
            return sum(why in one for one in told)

        wait_for(lambda: refused() == server.server.counts["connections_refused"] > 0)
        stack.close()
        wait_for(lambda: server.server._held.total < size)
        with Peer(server).socket as other:
            other.send(bytes(size))
            assert "no message of openpi's form" in other.recv(timeout=20)


@pytest.fixture
def camera():
    """A policy whose robots may hold 2.4 MB each, and a server in which few of them have room."""
    policy = echo(**LARGE)
    each = robot_bytes(policy.spec)
    assert 2.3e6 < each < 2.6e6
    limits = Limits(memory_bytes=16 * MIB, message_bytes=MIB, connections=8)
    with running(policy, limits) as server:
        yield server


def test_robots_have_room_or_their_connection_is_closed(camera):
    picture = np.zeros((256, 256, 3), np.uint8)
    first, second = Peer(camera), Peer(camera)
    for robot in range(2):
        assert first.saw(robot, env_id=robot, camera=picture) == [robot] * 3
    assert second.saw(7, camera=picture) == [7] * 3
    first.send(2, env_id=2, camera=picture)  # four have no room in 8 MiB beside two shares of half of one
    assert closed(first) == 1013
    wait_for(lambda: camera.server._held.total < 2.7e6)
    assert second.saw(8, camera=picture) == [7, 7, 8]
    third = Peer(camera)
    assert third.saw(1, camera=picture) == [1, 1, 1]


def test_a_client_is_told_and_comes_back(camera):
    seen = {"x": np.zeros(1), "camera": np.zeros((256, 256, 3), np.uint8)}
    others = Peer(camera)
    for robot in range(3):
        others.ask(0, env_id=robot, camera=seen["camera"])
    with Client(camera.uri, timeout=20) as client:
        with pytest.raises(ConnectionError, match=r"received 1013 \(try again later\)"):
            client.infer(seen)
        others.socket.close()
        wait_for(lambda: camera.server._held.total < MIB)
        assert client.infer(seen)["actions"].shape == (6, 2)


def test_shares_are_kept_whatever_others_take():
    limits, draw = Limits(memory_bytes=10_000, message_bytes=2000, connections=5), random.Random(0)
    held, holds = Held(limits, 1500), [0] * 10
    for _ in range(5000):
        one = draw.randrange(10)
        after = draw.choice([0, draw.randrange(500), draw.randrange(8000)])
        before = held.total
        try:
            held.change(holds[one], after)
            holds[one] = after
        except FullError:
            assert after > 500
            assert held.total == before
        assert held.total == sum(holds) <= 10_000
    for one in range(10):
        held.change(holds[one], 0)
    assert held.total == 0
    held.change(0, 5500)
    with pytest.raises(FullError, match="the server holds as much for its clients as it may: try again later"):
        held.change(5500, 5501)


def test_limits_without_room_for_one_robot_are_refused():
    planner = Planner(echo(**LARGE))
    words = (
        "got a limit of 1048576 bytes of memory, of which one connection may take 525312, expected LEAST, for a robot "
        "of this policy and twice the largest message: raise --memory-bytes, or lower --message-bytes"
    )
    least = 2 * MIB + robot_bytes(planner.policy.spec)
    with pytest.raises(ValueError, match=re.escape(words.replace("LEAST", str(least)))):
        Server(planner, Limits(memory_bytes=MIB, message_bytes=MIB))


@pytest.mark.parametrize("policy", [diffusion(), echo(observations={"camera": (24, 24, 3), "y": (5,), "z": (1,)})])
def test_a_robot_holds_no_more_than_is_counted_for_it(policy):
    spec, robots = policy.spec, 20

    def asked() -> Request:
        shapes = {name: (spec.history, *shape) for name, shape in spec.observations.items()}
        return request_of(
            {
                **{n: np.zeros(s, np.uint8 if n in spec.cameras else np.float64) for n, s in shapes.items()},
                "request_id": "a" * 64,
                "env_id": "b" * 64,
            },
            spec,
        )

    kept, replies = [], 9 * 4 * spec.planned * spec.action
    tracemalloc.start()
    for _ in range(robots):
        session, waiting = Session(policy, 0), []
        session.observe(asked())
        for _ in range(2 * spec.history):
            waiting = joined(waiting, asked(), spec.history)
        kept.append((session, waiting))
    holds = tracemalloc.get_traced_memory()[0] / robots
    tracemalloc.stop()
    generator = 5056  # of PyTorch, which is not traced
    assert 0.1 * robot_bytes(spec) < holds + generator < robot_bytes(spec) - replies


def test_images_of_other_types_are_refused_before_they_wait():
    spec = echo(**LARGE).spec
    message = {"x": np.zeros(1), "camera": np.zeros((256, 256, 3))}
    with pytest.raises(ValueError, match="got images 'camera' of float64, expected uint8 from 0 to 255"):
        request_of(message, spec)


class Work:
    """Its outcomes are those that it is given; it keeps what it is told."""

    def __init__(self, *outcomes: Planned | Exception) -> None:
        self.outcomes, self.told = list(outcomes), []

    def plan(self, jobs):
        return self.outcomes[: len(jobs)]

    def tell(self, jobs, outcomes):
        self.told += outcomes

    def forget(self, client):
        raise NotImplementedError


def test_what_the_policy_saw_is_for_observers_alone():
    """A client that does not read its replies would have it kept."""
    actions, seen = np.ones((6, 2), np.float32), {"x": torch.zeros(1, 3, 1)}
    planned = Planned(actions, 0.1, 1, 0.2, 0, Counter(), seen, Turn(0, 0, 0))
    work = Work(planned, RejectedError("no", planned))

    async def answered():
        batcher = Batcher(work, 2, 3)
        waiting = [batcher.submit(client, Request([])) for client in range(2)]
        running = asyncio.create_task(batcher.run())
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        await batcher.idle()
        running.cancel()
        batcher.close()
        return outcomes

    good, bad = asyncio.run(answered())
    assert good == planned._replace(seen={})
    assert isinstance(bad, RejectedError)
    assert (str(bad), bad.planned) == ("no", planned._replace(seen={}))
    assert work.told[0] is planned
    assert work.told[1].planned is planned


@pytest.mark.parametrize(("x", "kind"), [(1, Planned), (15, RejectedError)])
def test_a_plan_keeps_no_others_of_its_batch(x, kind):
    jobs = [Job(k, [Request([{"x": np.float32([x])}])], None, 0.0) for k in range(3)]  # type: ignore[arg-type]
    for outcome in Planner(echo(), 0).plan(jobs):
        assert isinstance(outcome, kind)
        planned = outcome.planned if isinstance(outcome, RejectedError) else outcome
        assert isinstance(planned, Planned)
        assert planned.actions.base is None


def test_a_filter_may_work_in_place():
    def nothing(plan):
        plan[:2] = 0
        return plan

    planner = Planner(echo(), 0, [nothing])
    (planned,) = planner.plan([Job(0, [Request([{"x": np.float32([5])}])], None, 0.0)])  # type: ignore[arg-type]
    assert isinstance(planned, Planned)
    assert planned.changed == 2
    assert planned.actions[:3, 0].tolist() == [0, 0, 5]


def test_a_step_without_an_observation_is_one_of_the_robots_that_saw_one():
    memory = Memory(echo(), 3)
    memory.observe({"x": np.float32([[1], [2], [3]])}, np.array([True, True, False]))
    memory.skip(np.array([True, False, True]))
    assert memory.now.tolist() == [1, 0, -1]
    memory.skip()
    assert memory.now.tolist() == [2, 1, -1]
    memory.observe({"x": np.float32([[4], [5], [6]])})
    seen = memory.window(np.arange(3))["x"][..., 0].tolist()
    assert seen == [[1, 1, 4], [2, 2, 5], [6, 6, 6]]
