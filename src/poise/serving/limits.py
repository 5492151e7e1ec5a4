"""What a server grants to whom: sizes, rates, connections, times, and a key."""

import asyncio
import base64
import hmac
import ipaddress
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from poise.wire import MAX_BYTES

_SHORTEST = 16  # characters of a key


@dataclass(frozen=True)
class Limits:
    """Bounds that keep one client from harming the others; see `poise.wire` for those of a message's form.

    Attributes:
        message_bytes: Size of a message.
        connections: At once, in all.
        connections_per_address: At once from one address.
        sessions: Robots (`env_id`) of one connection.
        memory_bytes: For what clients may have the server hold, all of them together: messages that come in,
            observations that wait, histories, and replies on their way. Half of it is divided among the connections
            that there may be, the rest goes to who comes first; a connection that needs more is closed with 1013.
        rate: Messages a second of one connection; a client that sends more is read more slowly.
        batch: Robots that are planned for at once.
        open_seconds: For the opening handshake.
        ping_seconds: Between two pings, and for the answer to one: who is gone or does not read is dropped after twice
            that.
        message_seconds: For the parts of one message, in either direction.
        plan_seconds: For one batch; beyond that `/healthz` tells that the server hangs.
        drain_seconds: For what is under way when the server is told to stop.

    Raises:
        ValueError: A bound of nothing.
    """

    message_bytes: int = MAX_BYTES
    connections: int = 256
    connections_per_address: int = 64
    sessions: int = 64
    memory_bytes: int = 4 * 2**30
    rate: float = 200.0
    batch: int = 64
    open_seconds: float = 5.0
    ping_seconds: float = 8.0
    message_seconds: float = 10.0
    plan_seconds: float = 30.0
    drain_seconds: float = 10.0

    def __post_init__(self) -> None:
        wrong = [name for name, value in vars(self).items() if not value > 0]
        if wrong:
            raise ValueError(f"Limits got {', '.join(f'{n}={getattr(self, n)}' for n in wrong)}, expected more than 0")


class Places:
    """The connections that are open, by address.

    Args:
        limits: How many there may be.
        times: So many times as many.
    """

    def __init__(self, limits: Limits, times: int = 1) -> None:
        self._all, self._each = times * limits.connections, times * limits.connections_per_address
        self._taken = Counter[str]()

    def __len__(self) -> int:
        return self._taken.total()

    def full(self, address: str) -> str | None:
        """Why there is no place for another connection from an address, or None."""
        if len(self) >= self._all:
            return f"all {self._all} connections are taken: try again later"
        if self._taken[address] >= self._each:
            return f"all {self._each} connections of {address} are taken: close one"
        return None

    def take(self, address: str) -> None:
        """Count a connection."""
        self._taken[address] += 1

    def leave(self, address: str) -> None:
        """Count it no more."""
        self._taken[address] -= 1
        self._taken += Counter()  # forgets addresses without any


class FullError(Exception):
    """Clients would have the server hold more than it may."""


class Held:
    """The bytes that clients have a server hold, at most `Limits.memory_bytes`.

    Half of them are divided evenly among the connections that there may be, open or opening, so that nobody can take
    a connection its share; the other half goes to who comes first.

    Args:
        limits: How many there may be, and of how many connections.
        robot: Bytes that one robot may hold.

    Attributes:
        total: Bytes that are held.
        robot: As given.

    Raises:
        ValueError: Limits under which a robot would find no room, or the largest message.
    """

    def __init__(self, limits: Limits, robot: int) -> None:
        places = 2 * limits.connections
        self._share = limits.memory_bytes // (2 * places)
        self._free = limits.memory_bytes - places * self._share
        self.total, self.robot = 0, robot
        most, least = self._share + self._free, robot + 2 * limits.message_bytes
        if most < least:
            raise ValueError(
                f"got a limit of {limits.memory_bytes} bytes of memory, of which one connection may take {most}, "
                f"expected {least}, for a robot of this policy and twice the largest message: raise --memory-bytes, or "
                "lower --message-bytes"
            )

    def change(self, before: int, after: int) -> None:
        """Let a connection hold other bytes than those before.

        Raises:
            FullError: There is no room; nothing has changed.
        """
        more = max(0, after - self._share) - max(0, before - self._share)
        if more > self._free:
            raise FullError("the server holds as much for its clients as it may: try again later")
        self._free -= more
        self.total += after - before


class Pace:
    """How fast the messages of one connection are taken: a bucket that holds one second's worth.

    Args:
        rate: Messages a second.
        clock: Seconds.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = rate, clock
        self._left, self._last = max(rate, 1.0), clock()

    def wait(self) -> float:
        """Take one message; return the seconds to wait before it."""
        now = self._clock()
        self._left = min(self._left + (now - self._last) * self._rate, max(self._rate, 1.0)) - 1
        self._last = now
        return max(0.0, -self._left / self._rate)

    async def keep(self) -> None:
        """Take one message, no sooner than the rate allows."""
        seconds = self.wait()
        if seconds:
            await asyncio.sleep(seconds)


def authorised(key: str | None, header: str | None) -> bool:
    """Whether a header `Authorization` holds the key; the time it takes tells nothing about it.

    Clients send `Api-Key KEY`. Browsers, which ask for a name and a password, send `Basic` and both, of which the
    password is to be the key.
    """
    if key is None:
        return True
    kind, _, given = (header or "").partition(" ")
    if kind == "Basic":
        try:
            given = base64.b64decode(given, validate=True).decode().partition(":")[2]
        except ValueError:
            return False
    known = kind in ("Api-Key", "Basic")
    return hmac.compare_digest(key.encode(), given.encode(errors="surrogateescape")) and known


def check_exposure(host: str, key: str | None) -> None:
    """Raise where a server would listen to others than this machine without a key.

    Raises:
        ValueError: A host that is not a loopback address, and no key.
    """
    if key is None and not is_loopback(host):
        raise ValueError(
            f"got --host {host} without a key, expected --api-key-file FILE: anyone who reaches this address could "
            "plan with the policy. Or keep 127.0.0.1 and forward the port by ssh"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host; of names only `localhost` is known to be so."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_key(path: Path) -> str:
    """The key in a file, without the white space around it.

    Raises:
        ValueError: A key that is short, not of one line, or not of visible ASCII.
    """
    key = path.read_text().strip()
    if len(key) < _SHORTEST or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(
            f"got {len(key)} characters in {path}, expected a key of at least {_SHORTEST} visible ASCII characters "
            'on one line: python -c "import secrets; print(secrets.token_urlsafe())" makes one'
        )
    return key


__all__ = ["FullError", "Held", "Limits", "Pace", "Places", "authorised", "check_exposure", "is_loopback", "read_key"]
