"""A policy server that speaks openpi's protocol over WebSockets (extra `serve`).

On connection the server sends what it serves; then each observation gets a plan. An error is told in a text frame, and
ends the connection with code 1011. `GET /healthz` answers whatever the policy does, for the policy has a thread of its
own, and tells where that hangs.
"""

import asyncio
import itertools
import logging
import ssl
import time
from asyncio import BaseTransport
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from poise.extras import extra
from poise.policies import Policy, Safety
from poise.serving.batching import Batcher, Planned, RejectedError, SupersededError
from poise.serving.dashboard import HEADERS, Dashboard
from poise.serving.limits import Limits, Pace, Places, authorised, check_exposure, is_loopback
from poise.serving.metrics import FIGURES, exposition
from poise.serving.planning import Planner
from poise.serving.recording import Recording
from poise.serving.sessions import KEYS, Name, Request, request_of
from poise.wire import pack, unpack

with extra("serve", "serving needs"):
    from websockets.asyncio.server import Server as Listener
    from websockets.asyncio.server import ServerConnection, serve
    from websockets.datastructures import Headers
    from websockets.exceptions import ConnectionClosed
    from websockets.http11 import Request as Opening
    from websockets.http11 import Response

_log = logging.getLogger("poise.serving")
_CLOSE = 2.0  # seconds for the closing handshake
_WAITING = 1  # frames that may wait to be read, and one more: each may be a whole message, and the newest wins
_ERROR, _LATER = 1011, 1013  # codes of RFC 6455


class Server:
    """One policy for many clients; `listening` starts it.

    Args:
        planner: The policy.
        limits: What a client may do.
        key: What a client must show, as `Authorization: Api-Key KEY`; None asks for nothing.
        dashboard: Page to show at `/`, which is an observer of the planner too.
        recording: Whose missing plans are counted, which is an observer of the planner too.

    Attributes:
        ending: Whether it takes no new connections and observations any more.
        interventions: What filters and limits did so far, by `poise.serving.batching.KINDS`.

    Raises:
        ValueError: A policy one of whose features has the name of a key of the protocol.
    """

    def __init__(
        self,
        planner: Planner,
        limits: Limits,
        key: str | None = None,
        dashboard: Dashboard | None = None,
        recording: Recording | None = None,
    ) -> None:
        self._spec = planner.policy.spec
        clash = sorted(set(KEYS) & set(self._spec.observations))
        if clash:
            raise ValueError(f"got a policy that observes {clash}, which are keys of the protocol: rename the features")
        self._limits, self._key, self._places, self._dashboard = limits, key, Places(limits), dashboard
        self._planner, self._batcher = planner, Batcher(planner, limits.batch, self._spec.history)
        self._metadata = pack(metadata(planner.policy, planner.safety))
        self._numbers, self.ending, self.interventions = itertools.count(), False, Counter[str]()
        self._counts, self._recording = dict.fromkeys(FIGURES, 0.0), recording

    @property
    def counts(self) -> dict[str, float]:
        """What happened so far, by the names of `poise.serving.metrics.FIGURES`."""
        return self._counts | ({} if self._recording is None else {"unrecorded": self._recording.dropped})

    @property
    def busy(self) -> float:
        """Seconds that the batch under way has taken; 0 where there is none, and after the end where none was lost."""
        return self._batcher.busy

    @asynccontextmanager
    async def listening(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
        """Serve until the block ends; then finish what is under way, and close the connections with 1001.

        Args:
            host: Address to listen on.
            port: Port, or 0 for any that is free.
            tls: Certificate and key, or None for none.

        Yields:
            The port; the policy has planned before.

        Raises:
            ValueError: A host that others than this machine reach, without a key.
        """
        check_exposure(host, self._key)
        await self._batcher.call(self._planner.warm_up)
        limits, quiet = self._limits, logging.getLogger("poise.serving.transport")
        quiet.setLevel(logging.CRITICAL)  # anyone can fill a log with failed handshakes
        listener = await serve(
            self._handle,
            host,
            port,
            ssl=tls,
            origins=[None],  # browsers name one, and would let any web page reach a server on this machine
            compression=None,
            process_request=self._open,
            server_header=None,
            open_timeout=limits.open_seconds,
            ping_interval=limits.ping_seconds,
            ping_timeout=limits.ping_seconds,
            close_timeout=_CLOSE,
            max_size=limits.message_bytes,
            max_queue=_WAITING,
            create_connection=_counted(limits, self._counts),
            logger=quiet,
        )
        planning = asyncio.create_task(self._batcher.run())
        try:
            yield listener.sockets[0].getsockname()[1]
        finally:
            await self._drain(listener)
            planning.cancel()
            self._batcher.close()

    async def _drain(self, listener: Listener) -> None:
        listener.server.close()  # no new connections
        self.ending = True
        try:
            async with asyncio.timeout(self._limits.drain_seconds):
                await self._batcher.idle()
        except TimeoutError:
            _log.warning("plans were still under way %g s after the end; they are lost", self._limits.drain_seconds)
        await asyncio.sleep(0)  # answers that are ready leave first
        listener.close(reason="the server ends")
        await listener.wait_closed()

    def _open(self, connection: ServerConnection, request: Opening) -> Response | None:
        """What a request over HTTP gets; None opens a WebSocket."""
        if request.path == "/healthz":
            if self.busy > self._limits.plan_seconds:
                return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "the policy hangs\n")
            return connection.respond(HTTPStatus.OK, "OK\n")
        keys = request.headers.get_all("Authorization")
        if not authorised(self._key, keys[0] if len(keys) == 1 else None):
            self._counts["connections_refused"] += 1
            refusal = connection.respond(HTTPStatus.UNAUTHORIZED, "expected the header Authorization: Api-Key KEY\n")
            if self._dashboard is not None:
                refusal.headers["WWW-Authenticate"] = 'Basic realm="poise: the key is the password", charset="UTF-8"'
            return refusal
        if request.path == "/metrics" or (self._dashboard is not None and "Upgrade" not in request.headers):
            host = urlsplit(f"//{''.join(request.headers.get_all('Host'))}").hostname or ""
            if self._key is None and not is_loopback(host):  # another site's name may lead a browser to this machine
                return connection.respond(HTTPStatus.FORBIDDEN, "expected the address of this machine, 127.0.0.1\n")
            return self._page(connection, request)
        full = self._places.full(_address(connection))
        if full is not None:
            self._counts["connections_refused"] += 1
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, f"{full}\n")
        return None

    def _figures(self, connection: ServerConnection) -> Response:
        try:
            body = exposition(self.counts, self.interventions, {"connections": len(self._places)})
        except ImportError as error:
            return connection.respond(HTTPStatus.NOT_FOUND, f"{error}\n")
        headers = Headers({"Content-Type": "text/plain; version=0.0.4", "Content-Length": str(len(body))})
        return Response(HTTPStatus.OK, "OK", headers, body)

    def _page(self, connection: ServerConnection, request: Opening) -> Response:
        if request.path == "/metrics" or self._dashboard is None:
            return self._figures(connection)
        page = self._dashboard.page(request.path, self.counts, len(self._places))
        if page is None:
            return connection.respond(HTTPStatus.NOT_FOUND, "there are /, /healthz and /metrics\n")
        headers = {**HEADERS, "Content-Type": page[0], "Content-Length": str(len(page[1]))}
        return Response(HTTPStatus.OK, "OK", Headers(headers), page[1])

    async def _handle(self, connection: ServerConnection) -> None:
        """One connection, from the first message to the last."""
        address = _address(connection)
        full = self._places.full(address)
        if full is not None:  # others came between
            await connection.close(_LATER, full[:100])
            return
        self._places.take(address)
        self._counts["connections_opened"] += 1
        client = _Client(connection, next(self._numbers), self._limits)
        _log.info("client %d of %s is there", client.number, address)
        try:
            await client.send(self._metadata)
            await self._converse(client)
        except (ConnectionClosed, TimeoutError):
            pass
        except Exception as error:
            await self._fail(client, error)
        finally:
            self._places.leave(address)
            for answer in client.answers:
                answer.cancel()
            self._batcher.forget(client.number)
            _log.info("client %d is gone", client.number)

    async def _converse(self, client: "_Client") -> None:
        while True:
            message = await client.receive()
            self._counts["requests"] += 1
            request = request_of(unpack(message, self._limits.message_bytes), self._spec)
            client.admit(request.robot)
            client.spawn(self._answer(client, request))

    async def _answer(self, client: "_Client", request: Request) -> None:
        begin = time.perf_counter()
        try:
            if self.ending:
                raise SupersededError("the server ends")
            planned = await self._batcher.submit(client.number, request)
            reply = self._reply(client, request, planned)
        except SupersededError as error:
            self._counts["superseded"] += 1
            reply = {"busy": str(error), **_named(request)}
        except Exception as error:
            self.interventions["rejected"] += isinstance(error, RejectedError)
            await self._fail(client, error)
            return
        try:
            await client.send(pack(reply))
            client.total = time.perf_counter() - begin
        except (ConnectionClosed, TimeoutError):
            return
        except Exception as error:  # or it would wait for ever
            await self._fail(client, error)

    def _reply(self, client: "_Client", request: Request, planned: Planned) -> dict[str, Any]:
        self._counts["plans"] += 1
        self._counts["infer_seconds"] += planned.seconds
        self._counts["wait_seconds"] += planned.waited
        self._counts["changed"] += planned.changed
        self.interventions += planned.interventions
        milliseconds = 1e3 * planned.seconds
        timing = {"infer_ms": milliseconds, "queue_ms": 1e3 * planned.waited, "batch": planned.batch}
        if client.total is not None:
            timing["prev_total_ms"] = 1e3 * client.total
        # No array but this one: openpi's ActionChunkBroker takes row after row of every array.
        return {
            "actions": planned.actions,
            "server_timing": timing,
            "policy_timing": {"infer_ms": milliseconds},
            "interventions": dict(planned.interventions),
            **_named(request),
        }

    async def _fail(self, client: "_Client", error: Exception) -> None:
        """Tell an error and close; of one that nobody foresaw only the log tells more."""
        self._counts["errors"] += 1
        foreseen = isinstance(error, ValueError | RuntimeError)
        _log.warning("client %d: %s", client.number, error, exc_info=None if foreseen else error)
        try:
            await client.send(str(error) if foreseen else "the server failed: its log tells more")
            await client.connection.close(_ERROR, "the text frame before tells the error")
        except (ConnectionClosed, TimeoutError):
            return


class _Client:
    """One connection."""

    def __init__(self, connection: ServerConnection, number: int, limits: Limits) -> None:
        self.connection, self.number, self.answers = connection, number, set[asyncio.Task[None]]()
        self._limits, self._pace, self._robots = limits, Pace(limits.rate), set[Name]()
        self.total: float | None = None  # seconds that the last answer took

    async def receive(self) -> bytes:
        """The next message, once the rate allows.

        Raises:
            ValueError: It is text, or its parts took longer than a message may.
        """
        await self._pace.keep()
        while len(self.answers) > 2 * self._limits.sessions:  # it asks, and does not read
            await asyncio.wait(self.answers, return_when=asyncio.FIRST_COMPLETED)
        message, parts = bytearray(), self.connection.recv_streaming()
        limit = asyncio.timeout(None)
        try:
            async with limit:
                async for part in parts:
                    if isinstance(part, str):
                        raise ValueError("got a text frame, expected a binary one that holds a map by msgpack")
                    message += part
                    if limit.when() is None:
                        limit.reschedule(asyncio.get_running_loop().time() + self._limits.message_seconds)
        except TimeoutError:
            seconds = self._limits.message_seconds
            raise ValueError(f"got part of a message for {seconds:g} s, expected all of it") from None
        return bytes(message)

    async def send(self, message: bytes | str) -> None:
        """Send a message to a client that takes it in time; drop one that does not."""
        try:
            async with asyncio.timeout(self._limits.message_seconds):
                await self.connection.send(message)
        except TimeoutError:
            self.connection.transport.abort()
            raise

    def admit(self, robot: Name) -> None:
        """Count a robot.

        Raises:
            ValueError: One more than a connection may have.
        """
        self._robots.add(robot)
        if len(self._robots) > self._limits.sessions:
            raise ValueError(f"got more than {self._limits.sessions} env_id, expected fewer: open other connections")

    def spawn(self, answer: Any) -> None:
        """Answer beside reading on."""
        task = asyncio.create_task(answer)
        self.answers.add(task)
        task.add_done_callback(self.answers.discard)


def _counted(limits: Limits, counts: dict[str, float]) -> type[ServerConnection]:
    """Connections that are counted from their first moment: beside those that are open as many others may open."""
    most = {"connections": 2 * limits.connections, "connections_per_address": 2 * limits.connections_per_address}
    places = Places(replace(limits, **most))

    class Counted(ServerConnection):
        def connection_made(self, transport: BaseTransport) -> None:
            super().connection_made(transport)
            self._from = _address(self)
            if places.full(self._from) is not None:
                counts["connections_refused"] += 1
                self.transport.abort()
            places.take(self._from)

        def connection_lost(self, exc: Exception | None) -> None:
            places.leave(self._from)
            super().connection_lost(exc)

    return Counted


def metadata(policy: Policy, safety: Safety | None = None) -> dict[str, Any]:
    """What the server tells on connection: what it expects, what comes back, and the limits that it is held to."""
    spec, limits = policy.spec, {} if safety is None else asdict(safety)
    return {
        "server": "poise",
        "policy": type(policy).__name__,
        "observations": {name: list(shape) for name, shape in spec.observations.items()},
        "optional": sorted(spec.optional),
        "history": spec.history,
        "planned": spec.planned,
        "execute": spec.execute,
        "action": spec.action,
        **({"safety": {name: bound and list(bound) for name, bound in limits.items()}} if limits else {}),
    }


def _named(request: Request) -> dict[str, Name]:
    return {} if request.name is None else {"request_id": request.name}


def _address(connection: ServerConnection) -> str:
    return (connection.remote_address or ("unknown",))[0]


__all__ = ["Server", "metadata"]
