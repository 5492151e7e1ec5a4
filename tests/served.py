"""A server in a thread of its own, and policies that show what they saw."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from websockets.sync.client import ClientConnection, connect

from poise.nn import MLP, EncoderSpec
from poise.nn.spec import Encoder
from poise.policies import DiffusionPolicy, Policy, PolicySpec
from poise.sampling import State
from poise.serving import Limits, Planner, Recording, Server
from poise.wire import pack, unpack

HISTORY, HORIZON = 3, 6


class _Nothing(Encoder):
    tokens = (1, 1)

    def forward(self, observation):
        raise NotImplementedError


@dataclass(frozen=True)
class _Blind(EncoderSpec):
    def build(self, shapes, history):
        return _Nothing()


class Echo(Policy):
    """Its plan begins with the history of the number x: what it saw is what it plans.

    A batch that holds the number 13 fails, one with 14 breaks, and 15 becomes NaN. It plans only while the gate is
    open, and tells when it has begun.
    """

    def loss(self, batch, draws=None):
        raise NotImplementedError

    def trace(self, observation, noise=None):
        x = observation["x"]
        self.batches.append(x[:, -1, 0].tolist())
        self.begun.release()
        assert self.gate.wait(20)
        if (x == 13).any():
            raise ValueError("13 cannot be planned for")
        if (x == 14).any():
            raise RuntimeError("a secret")
        plan = torch.zeros(len(x), self.spec.horizon, 2)
        plan[:, : self.spec.history] = torch.where(x == 15, torch.nan, x)
        yield State(plan, 0.0, 1)


def identity(policy: Policy) -> None:
    for module in (*policy.observation_normalisers.values(), policy.action_normaliser):
        module.scale.fill_(1.0)
        module.offset.fill_(0.0)


def echo(**more: Any) -> Echo:
    more = {"history": HISTORY, "horizon": HORIZON, "execute": 2, **more}
    policy = Echo(PolicySpec({"x": (1,), **more.pop("observations", {})}, 2, encoder=_Blind(), **more))
    identity(policy)
    policy.batches, policy.begun, policy.gate = [], threading.Semaphore(0), threading.Event()
    policy.gate.set()
    return policy


def diffusion(**more: Any) -> DiffusionPolicy:
    torch.manual_seed(0)
    spec = PolicySpec({"x": (1,)}, 2, horizon=HORIZON, **{"execute": 2, **more}, network=MLP(16, 1, 8), evaluations=2)
    policy = DiffusionPolicy(spec)
    identity(policy)
    for parameter in policy.parameters():  # gates begin at zero
        torch.nn.init.normal_(parameter, std=0.3)
    return policy.eval()


class Running:
    """A server on a free port of this machine, in a thread."""

    def __init__(self, planner: Planner, limits: Limits, key: str | None, port: int, **more: Any) -> None:
        self.server = Server(planner, limits, key, more.pop("dashboard", None), more.pop("recording", None))
        self._more, self.port = more, port
        self._end, self._up = asyncio.Event(), threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._run(),))
        self._thread.start()
        assert self._up.wait(20)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with self.server.listening("127.0.0.1", self.port, **self._more) as self.port:
            self._up.set()
            await self._end.wait()

    @property
    def uri(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def tell(self) -> None:
        """Tell it to end, as SIGTERM does."""
        self._loop.call_soon_threadsafe(self._end.set)

    def end(self) -> None:
        if self._thread.is_alive():
            self.tell()
            self._thread.join()


@contextmanager
def running(policy: Policy, limits: Limits | None = None, key: str | None = None, **more: Any) -> Iterator[Running]:
    """Serve a policy; a port, TLS, a dashboard, a recording and options of the planner may be given too."""
    own = {name: more.pop(name) for name in ("tls", "dashboard", "recording") if name in more}
    port = more.pop("port", 0)
    server = Running(Planner(policy, **more), limits or Limits(), key, port, **own)
    try:
        yield server
    finally:
        if isinstance(policy, Echo):
            policy.gate.set()
        server.end()


def asked_around(failed: threading.Event, policy: Policy, recording: Recording) -> None:
    """Ask for two plans, one before and one after the record has failed, and close it."""
    with running(policy, observers=[recording]) as server:
        peer = Peer(server)
        peer.ask(1.0)
        assert failed.wait(20)
        peer.ask(2.0)
    recording.close()


class Peer:
    """A client that knows nothing but websockets and the codec."""

    def __init__(self, server: Running, **more: Any) -> None:
        self.socket: ClientConnection = connect(server.uri, compression=None, proxy=None, **more).__enter__()
        self.metadata = unpack(self.socket.recv(timeout=20))

    def send(self, x: Any, **more: Any) -> None:
        self.socket.send(pack({"x": np.float32(x if isinstance(x, list) else [x]), **more}))

    def receive(self) -> Any:
        message = self.socket.recv(timeout=20)
        return unpack(message) if isinstance(message, bytes) else message

    def ask(self, x: Any, **more: Any) -> Any:
        self.send(x, **more)
        return self.receive()

    def saw(self, x: Any, **more: Any) -> list[float]:
        """What an Echo saw."""
        return self.ask(x, **more)["actions"][:HISTORY, 0].tolist()
