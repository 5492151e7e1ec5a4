"""The robot's end of `poise serve`: no torch, only NumPy, msgpack and websockets (extra `serve`).

    with Client("ws://127.0.0.1:8000") as client:
        reply = client.infer({"state": state, "camera": picture}, timeout=0.5)
        reply["actions"][0]

A thread of its own talks to the server and connects again when the connection is lost. For the loop of a robot, which
must not wait for the network, see `poise.robot`.
"""

import asyncio
import itertools
import logging
import ssl
import threading
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, NamedTuple

from poise.extras import extra
from poise.wire import MAX_BYTES, pack, unpack

with extra("serve", "the client needs"):
    from websockets.asyncio.client import ClientConnection, connect
    from websockets.exceptions import ConnectionClosed, InvalidStatus
    from websockets.frames import CloseCode

_FIRST, _LONGEST = 0.05, 0.2  # seconds between two tries to connect
_OPEN, _PING, _CLOSE = 2.0, 2.0, 0.5  # seconds for a handshake, between pings, and to close
_PONG = 10.0  # for the answer to a ping; openpi's server gives none while it plans
_OWED = 16  # answers that a server may owe before it is given up
_log = logging.getLogger("poise.client")


class ServerError(RuntimeError):
    """What the server said about an observation that it did not plan for; it then closes the connection."""


class BusyError(RuntimeError):
    """An observation that was not planned for because a newer one took its place, or because the server ends."""


class _Asked(NamedTuple):
    number: int
    message: bytes
    answer: Future[dict[str, Any]]
    episode: int


class Client:
    """A connection to a policy server of poise or openpi, which comes back by itself.

    Args:
        uri: Such as `ws://127.0.0.1:8000`, or `wss://` with TLS.
        api_key: Key of the server, if it asks for one.
        timeout: Seconds that `infer` waits by default.
        tls: For `wss://`, what is trusted; by default the certificates of the system.

    Attributes:
        trouble: Why there is no connection, or no reply.

    Raises:
        InvalidURI: Of websockets: an address that is none.
    """

    def __init__(
        self, uri: str, api_key: str | None = None, timeout: float = 1.0, tls: ssl.SSLContext | None = None
    ) -> None:
        self.uri, self.timeout, self._tls = uri, timeout, tls
        self._headers = {"Authorization": f"Api-Key {api_key}"} if api_key else {}
        self._connection()  # an address that is none is told here
        self._metadata: dict[str, Any] | None = None
        self.trouble, self._warned = "no connection was tried yet", ""
        self._numbers, self._episode, self._known_episode = itertools.count(), 0, 0  # the last that the server knows of
        self._asked: deque[_Asked] = deque()  # what the server was asked and owes an answer to, in order
        self._next: _Asked | None = None
        self._loop, self._there, self._known = asyncio.new_event_loop(), asyncio.Event(), threading.Event()
        self._talking = self._loop.create_task(self._talk())
        self._thread = threading.Thread(target=self._run, name="poise-client", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; what is not answered yet fails."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._talking.cancel)
            self._thread.join()

    @property
    def metadata(self) -> dict[str, Any] | None:
        """What the server told when it was last connected to; None before."""
        return self._metadata

    def wait(self, timeout: float | None = None) -> dict[str, Any]:
        """Wait for the first connection; return the metadata of the server.

        Raises:
            TimeoutError: There was none in time; says why.
        """
        if not self._known.wait(self.timeout if timeout is None else timeout):
            raise TimeoutError(f"there is no connection to {self.uri}: {self.trouble}")
        assert self._metadata is not None
        return self._metadata

    def reset(self) -> None:
        """Begin an episode with the next observation; only a server of poise understands it."""
        self._episode += 1

    def ask(self, observation: Mapping[str, Any]) -> Future[dict[str, Any]]:
        """Send an observation, and return at once what will hold the reply.

        While there is no connection the newest observation waits for it. The observation is packed before this returns.
        To drop the reply, cancel what is returned.

        Returns:
            The reply, with `actions`, or ServerError, BusyError or ConnectionError.

        Raises:
            TypeError: An observation with something that has no form on the wire.
            ConnectionError: The client is closed.
        """
        number, episode = next(self._numbers), self._episode
        extra = {"request_id": number, **({"reset": True} if episode != self._known_episode else {})}
        asked = _Asked(number, pack({**observation, **extra}), Future(), episode)
        try:
            self._loop.call_soon_threadsafe(self._offer, asked)
        except RuntimeError:  # the loop has ended
            raise ConnectionError(f"the client of {self.uri} is closed, expected an open one") from None
        return asked.answer

    def infer(self, observation: Mapping[str, Any], timeout: float | None = None) -> dict[str, Any]:
        """Send an observation and wait for the reply; one that comes later is dropped.

        Args:
            observation: Name -> array, one control step `(...)`; what the server expects is in its metadata.
            timeout: Seconds; None means those of the client.

        Raises:
            TimeoutError: No reply in time; says what is known about the reason.
            ServerError: The server refused the observation.
            BusyError: A newer observation took its place.
            ConnectionError: The connection was lost meanwhile, or is refused.
        """
        seconds = self.timeout if timeout is None else timeout
        answer = self.ask(observation)
        try:
            return answer.result(seconds)
        except TimeoutError:
            answer.cancel()
            raise TimeoutError(f"no reply of {self.uri} within {seconds:g} s: {self.trouble}") from None

    # What follows runs in the thread.

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        with suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._talking)
        self._lost(ConnectionError(f"the client of {self.uri} is closed"), everything=True)
        self._loop.close()

    def _offer(self, asked: _Asked) -> None:
        if self._next is not None:
            _settle(self._next, BusyError("superseded by a newer observation before it was sent"))
        self._next = asked
        self._there.set()

    async def _talk(self) -> None:
        """Connect, talk, and connect again, without end."""
        pause = _FIRST
        while True:
            opened = False
            try:
                async with self._connection() as connection:
                    self._metadata = _metadata(await asyncio.wait_for(connection.recv(), _PONG))
                    opened = True
                    self._known.set()
                    self.trouble, pause = "the server is slow", _FIRST
                    _log.info("connected to %s", self.uri)
                    await self._converse(connection)
            except Exception as error:  # whatever it is, a robot needs its connection back
                refused = isinstance(error, InvalidStatus)
                trouble = _told(error) if refused else f"{type(error).__name__}: {error}".removesuffix(": ")
                if (
                    isinstance(error, ConnectionClosed)
                    and error.rcvd is not None
                    and error.rcvd.code == CloseCode.MESSAGE_TOO_BIG
                ):
                    trouble += " (send less, such as smaller images, or start the server with larger --message-bytes)"
                if not opened and self.uri.startswith("wss:") and _no_tls(error):
                    trouble += " (where a server speaks no TLS: is it one without --tls-cert? That is at ws://)"
                if trouble != self._warned:  # once a reason, not at every try
                    _log.warning("no connection to %s: %s", self.uri, trouble)
                self.trouble = self._warned = trouble
                said = isinstance(error, ServerError)
                lost = error if said else ConnectionError(f"no connection to {self.uri}: {self.trouble}")
                self._lost(lost, everything=refused)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST)

    def _connection(self) -> connect:
        secure: dict[str, Any] = {"ssl": self._tls} if self._tls else {}
        return connect(
            self.uri,
            additional_headers=self._headers,
            compression=None,
            proxy=None,
            open_timeout=_OPEN,
            ping_interval=_PING,
            ping_timeout=_PONG,
            close_timeout=_CLOSE,
            max_size=MAX_BYTES,
            **secure,
        )

    async def _converse(self, connection: ClientConnection) -> None:
        sending, reading = (asyncio.create_task(task(connection)) for task in (self._send, self._read))
        try:
            await asyncio.wait({sending, reading}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()  # only an error ends both: of a lost connection there may be something left to read
            await reading
        finally:
            sending.cancel()
            reading.cancel()
        raise ConnectionError("the server closed the connection")

    async def _read(self, connection: ClientConnection) -> None:
        async for message in connection:
            self._receive(message)

    async def _send(self, connection: ClientConnection) -> None:
        while True:
            await self._there.wait()
            self._there.clear()
            asked, self._next = self._next, None
            if asked is None or asked.answer.cancelled():
                continue
            self._asked.append(asked)
            if len(self._asked) > _OWED:
                connection.transport.abort()
            self._known_episode = asked.episode  # before it waits: what is asked meanwhile begins no other one
            try:
                await connection.send(asked.message)
            except (ConnectionClosed, asyncio.CancelledError):
                if self._next is None and asked in self._asked:  # it never left: the next connection takes it
                    self._asked.remove(asked)
                    self._next = asked
                    self._there.set()
                return

    def _receive(self, message: bytes | str) -> None:
        if isinstance(message, str):
            raise ServerError(message)  # the connection is of no more use
        reply, self._warned = _reply(message), ""
        number = reply.pop("request_id", None)
        if number is None:  # openpi's server repeats none, and answers in order
            asked = self._asked.popleft() if self._asked else None
        else:
            asked = next((asked for asked in self._asked if asked.number == number), None)
            if asked is not None:
                self._asked.remove(asked)
        if asked is not None:
            busy = reply.get("busy")
            _settle(asked, reply if busy is None else BusyError(str(busy)))

    def _lost(self, error: Exception, everything: bool = False) -> None:
        """Fail what the server owes, and perhaps what was not sent yet."""
        while self._asked:
            _settle(self._asked.popleft(), error)
        if everything and self._next is not None:
            _settle(self._next, error)
            self._next = None


def _settle(asked: _Asked, outcome: dict[str, Any] | Exception) -> None:
    if not asked.answer.set_running_or_notify_cancel():  # nobody waits any more
        return
    if isinstance(outcome, Exception):
        asked.answer.set_exception(outcome)
    else:
        asked.answer.set_result(outcome)


def _reply(message: bytes | str) -> dict[str, Any]:
    reply = unpack(message) if isinstance(message, bytes) else message
    if not isinstance(reply, dict):
        raise ValueError(f"got a message of the server that is a {type(reply).__name__}, expected a map")
    return reply


def _metadata(message: bytes | str) -> dict[str, Any]:
    found = _reply(message)
    wrong = [name for name in ("history", "execute") if type(found.get(name, 1)) is not int or found.get(name, 1) < 1]
    if wrong or not isinstance(found.get("observations", {}), dict):
        raise ValueError(f"got the metadata {str(found)[:200]}, expected numbers above 0 and a map of observations")
    return found


def _no_tls(error: Exception) -> bool:
    """Whether a TLS handshake may have failed so because the server knows none."""
    broken = isinstance(error, ConnectionResetError | EOFError | ssl.SSLError)
    return broken and not isinstance(error, ssl.SSLCertVerificationError)


def _told(error: InvalidStatus) -> str:
    body = (error.response.body or b"").decode(errors="replace").strip()
    return f"refused with HTTP status {error.response.status_code}: {body[:200]}"


__all__ = ["BusyError", "Client", "ServerError"]
