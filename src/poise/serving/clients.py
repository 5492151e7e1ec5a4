"""One connection as the server sees it: how fast it is read, which robots it has, and which answers it is owed."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Protocol

from poise.serving.limits import Limits, Pace
from poise.serving.sessions import Name

_PART = 64  # bytes that a part of a message takes beside what is in it


class Connection(Protocol):
    """What is asked of a connection, of which `websockets` has the greater part.

    Attributes:
        transport: To the client.
        reading: Bytes of the message that is being read.
        robots: Bytes that its robots may hold.
    """

    transport: asyncio.Transport
    reading: int
    robots: int

    def recv_streaming(self) -> AsyncIterator[str | bytes]:
        """The parts of the next message."""
        ...

    async def send(self, message: bytes | str) -> None:
        """Send a message."""
        ...

    async def close(self, code: int = ..., reason: str = ...) -> None:
        """Close it."""
        ...

    def weigh(self) -> None:
        """Count what it holds; FullError where that is too much."""
        ...

    def taken(self) -> None:
        """Note that the message that was being read is no more held here."""
        ...


class Client:
    """One connection.

    Args:
        connection: To it.
        number: Its name.
        limits: What it may do.
        robot: Bytes that each of its robots may hold.

    Attributes:
        total: Seconds that the last answer took, from the arrival of the request; None before.
    """

    def __init__(self, connection: Connection, number: int, limits: Limits, robot: int) -> None:
        self.connection, self.number, self.answers = connection, number, set[asyncio.Task[None]]()
        self._limits, self._pace, self._robots, self._robot = limits, Pace(limits.rate), set[Name](), robot
        self.total: float | None = None

    async def receive(self) -> bytes:
        """The next message, once the rate allows.

        Raises:
            ValueError: It is text, or its parts took longer than a message may.
        """
        await self._pace.keep()
        while len(self.answers) > 2 * len(self._robots):  # it asks, and does not read
            await asyncio.wait(self.answers, return_when=asyncio.FIRST_COMPLETED)
        message: list[bytes] = []
        limit = asyncio.timeout(None)
        try:
            async with limit:
                async for part in self.connection.recv_streaming():
                    if isinstance(part, str):
                        raise ValueError("got a text frame, expected a binary one that holds a map by msgpack")
                    message.append(part)
                    self.connection.reading += _PART + len(part)
                    if limit.when() is None:
                        limit.reschedule(asyncio.get_running_loop().time() + self._limits.message_seconds)
        except TimeoutError:
            seconds = self._limits.message_seconds
            raise ValueError(f"got part of a message for {seconds:g} s, expected all of it") from None
        finally:
            self.connection.taken()
        return b"".join(message)

    async def send(self, message: bytes | str) -> None:
        """Send a message to a client that takes it in time; drop one that does not."""
        try:
            async with asyncio.timeout(self._limits.message_seconds):
                await self.connection.send(message)
        except TimeoutError:
            self.connection.transport.abort()
            raise

    def admit(self, robot: Name) -> None:
        """Count a robot, and the bytes that it may hold.

        Raises:
            ValueError: One more than a connection may have.
            FullError: There is no room for it.
        """
        if robot in self._robots:
            return
        if len(self._robots) >= self._limits.sessions:
            raise ValueError(f"got more than {self._limits.sessions} env_id, expected fewer: open other connections")
        self.connection.robots += self._robot
        self.connection.weigh()
        self._robots.add(robot)

    def spawn(self, answer: Any) -> None:
        """Answer beside reading on."""
        task = asyncio.create_task(answer)
        self.answers.add(task)
        task.add_done_callback(self.answers.discard)


__all__ = ["Client", "Connection"]
