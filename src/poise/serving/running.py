"""A server in the main thread of a process, until it is told to end."""

import asyncio
import signal
import ssl
from collections.abc import Callable

from poise.serving.server import Server


def run(
    server: Server, host: str, port: int, tls: ssl.SSLContext | None = None, ready: Callable[[str], object] = print
) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish what is under way; in the main thread.

    Args:
        server: The policy.
        host: As in `Server.listening`.
        port: As there.
        tls: As there.
        ready: Gets a line with the address as soon as clients may come.

    Raises:
        ValueError: As there.
    """
    asyncio.run(_until_told(server, host, port, tls, ready))


async def _until_told(
    server: Server, host: str, port: int, tls: ssl.SSLContext | None, ready: Callable[[str], object]
) -> None:
    told, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    async with server.listening(host, port, tls) as port:
        ready(f"serving at {'wss' if tls else 'ws'}://{host}:{port}")
        await told.wait()


__all__ = ["run"]
