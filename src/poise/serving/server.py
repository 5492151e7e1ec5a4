"""A policy server that speaks openpi's protocol over WebSockets (extra `serve`).

On connection the server sends what it serves; then each observation gets a plan. An error is told in a text frame, and
ends the connection with code 1011. `GET /healthz` answers whatever the policy does, for the policy has a thread of its
own, and tells where that hangs.
"""

import asyncio
import itertools
import logging
import ssl
import sys
import time
from asyncio import BaseTransport, Future
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import urlsplit

from poise.extras import extra
from poise.serving.batching import Batcher, Planned, RejectedError, SupersededError
from poise.serving.clients import Client
from poise.serving.dashboard import HEADERS, Dashboard
from poise.serving.limits import FullError, Held, Limits, Places, authorised, check_exposure, is_loopback
from poise.serving.metrics import FIGURES, Latencies, exposition
from poise.serving.planning import Planner
from poise.serving.recording import Recording
from poise.serving.sessions import KEYS, Name, request_of, robot_bytes
from poise.wire import pack, unpack

with extra("serve", "serving needs"):
    from websockets.asyncio.server import Server as Listener
    from websockets.asyncio.server import ServerConnection, serve
    from websockets.datastructures import Headers
    from websockets.exceptions import ConnectionClosed
    from websockets.frames import Frame, Opcode
    from websockets.http11 import Request as Opening
    from websockets.http11 import Response
    from websockets.protocol import Event

_log = logging.getLogger("poise.serving")
_CLOSE = 2.0  # seconds for the closing handshake
_WAITING = 1  # frames that may wait to be read, and one more: each may be a whole message, and the newest wins
_FRAME = 256  # bytes that a frame takes beside what is in it
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
        ValueError: A policy one of whose features has the name of a key of the protocol, or limits under which no
            robot of it could be served.
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
        self._metadata = pack(planner.metadata())
        self._numbers, self.ending, self.interventions = itertools.count(), False, Counter[str]()
        self._counts, self._recording = dict.fromkeys(FIGURES, 0.0), recording
        self._latencies, self._held = Latencies(), Held(limits, robot_bytes(self._spec))

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
        opened = partial(_Connection, Places(limits, 2), self._held, self._counts)
        listener = await serve(
            cast(Any, self._handle),  # of connections as `opened` makes them
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
            create_connection=cast(type[ServerConnection], opened),
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
            got = "another key than this server's" if any(keys) else "no key"
            told = f"got {got}, expected the header Authorization: Api-Key KEY\n"
            refusal = connection.respond(HTTPStatus.UNAUTHORIZED, told)
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
            gauges = {"connections": len(self._places), "held_bytes": self._held.total}
            body = exposition(self.counts, self.interventions, self._latencies, gauges)
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

    async def _handle(self, connection: "_Connection") -> None:
        """One connection, from the first message to the last."""
        address = _address(connection)
        full = self._places.full(address)
        if full is not None:  # others came between
            await connection.close(_LATER, full[:100])
            return
        self._places.take(address)
        self._counts["connections_opened"] += 1
        client = Client(connection, next(self._numbers), self._limits, self._held.robot)
        _log.info("client %d of %s is there", client.number, address)
        try:
            await client.send(self._metadata)
            await self._converse(client)
        except (ConnectionClosed, TimeoutError):
            pass
        except FullError as error:
            connection.refuse(error)
        finally:
            self._places.leave(address)
            for answer in client.answers:
                answer.cancel()
            if connection.robots:  # or the worker would be woken for nothing
                self._batcher.forget(client.number)
            connection.robots = 0
            connection.forget()
            _log.info("client %d is gone", client.number)

    async def _converse(self, client: Client) -> None:
        why = None
        while why is None:
            try:
                self._take(client, await client.receive())
            except (ConnectionClosed, TimeoutError, FullError):
                raise
            except Exception as error:
                why = self._told(client, error)
        await self._end(client, why)  # here, for an error holds the message that it is about

    def _take(self, client: Client, message: bytes) -> None:
        begin = time.perf_counter()
        self._counts["requests"] += 1
        request = request_of(unpack(message, self._limits.message_bytes), self._spec)
        client.admit(request.robot)
        outcome = None if self.ending else self._batcher.submit(client.number, request)
        client.spawn(self._answer(client, request.name, outcome, begin))

    async def _answer(self, client: Client, name: Name, outcome: Future[Planned] | None, begin: float) -> None:
        try:
            if outcome is None:
                raise SupersededError("the server ends")
            reply = self._reply(client, name, await outcome)
        except SupersededError as error:
            self._counts["superseded"] += 1
            reply = {"busy": str(error), **_named(name)}
        except Exception as error:
            self.interventions["rejected"] += isinstance(error, RejectedError)
            await self._end(client, self._told(client, error))
            return
        try:
            await client.send(pack(reply))
            client.total = time.perf_counter() - begin
            if "actions" in reply:
                self._latencies.add(client.total)
        except (ConnectionClosed, TimeoutError):
            return
        except Exception as error:  # or it would wait for ever
            await self._end(client, self._told(client, error))

    def _reply(self, client: Client, name: Name, planned: Planned) -> dict[str, Any]:
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
            **_named(name),
        }

    def _told(self, client: Client, error: Exception) -> str:
        """What a client is told of an error; of one that nobody foresaw only the log tells more."""
        self._counts["errors"] += 1
        foreseen = isinstance(error, ValueError | RuntimeError)
        _log.warning("client %d: %s", client.number, str(error), exc_info=None if foreseen else error)
        return str(error) if foreseen else "the server failed: its log tells more"

    async def _end(self, client: Client, why: str) -> None:
        """Tell an error and close."""
        try:
            await client.send(why)
            await client.connection.close(_ERROR, "the text frame before tells the error")
        except (ConnectionClosed, TimeoutError):
            return


class _Connection(ServerConnection):
    """A connection that is counted from its first moment, and so are the bytes that it has the server hold.

    Beside those that are open as many others may open.

    Attributes:
        reading: Bytes of the message that is being read.
        robots: Bytes that its robots may hold.
    """

    def __init__(self, gate: Places, held: Held, counts: dict[str, float], *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self._gate, self._held, self._counts = gate, held, counts
        self.reading = self.robots = self._opening = self._pongs = self._weight = 0
        self._newest = Frame(Opcode.CONT, b"")

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)
        self._from = _address(self)
        if self._gate.full(self._from) is not None:
            self._counts["connections_refused"] += 1
            self.transport.abort()
        self._gate.take(self._from)

    def connection_lost(self, exc: Exception | None) -> None:
        self._gate.leave(self._from)
        super().connection_lost(exc)
        self._opening = self._pongs = 0
        self.loop.call_soon(self.forget)  # when a reader to whom a frame was promised has it

    def forget(self) -> None:
        """Drop what waits to be read."""
        self.recv_messages.frames.queue.clear()
        with suppress(FullError):  # it may hold something else
            self.weigh()

    def data_received(self, data: bytes) -> None:
        if self.request is None:
            self._opening += len(data)
        super().data_received(data)
        try:
            self.weigh()
        except FullError as error:
            self.refuse(error)

    def process_event(self, event: Event) -> None:
        super().process_event(event)
        if isinstance(event, Frame):
            self._newest = event
            if self.paused and event.opcode is Opcode.PING:  # it does not read the answers
                self._pongs += _FRAME + len(event.data)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._pongs = 0

    def taken(self) -> None:
        """Note that the message that was being read is no more held here."""
        self.reading = 0
        if not self.recv_messages.frames.queue:  # to add up many that wait at each of them would take long
            self._newest.data = b""  # the parser holds on to it until the next one
            self.weigh()

    def weigh(self) -> None:
        """Count what it holds.

        Raises:
            FullError: That is too much.
        """
        buffer = self.protocol.reader.buffer
        coming = sys.getsizeof(buffer) if buffer else 0
        waiting = sum(_FRAME + len(frame.data) for frame in self.recv_messages.frames.queue)
        weight = self._opening + coming + waiting + self.reading + self.robots + self._pongs
        self._held.change(self._weight, weight)
        self._weight = weight

    def refuse(self, error: FullError) -> None:
        """Close with 1013, and take nothing more."""
        if self.protocol.eof_sent:
            return
        self._counts["connections_refused"] += 1
        self.protocol.fail(_LATER, str(error))
        self.send_data()
        self.loop.call_soon(self.forget)
        self.loop.call_later(0.0 if self.paused else _CLOSE, self.transport.abort)  # who does not read is not told


def _named(name: Name) -> dict[str, Name]:
    return {} if name is None else {"request_id": name}


def _address(connection: ServerConnection) -> str:
    return (connection.remote_address or ("unknown",))[0]


__all__ = ["Server"]
