"""Millions of broken messages: does the decoder ever raise anything but its own error, hang, or keep memory?

    python benchmarks/wire_fuzz.py --messages 2000000 --live 200000
    python benchmarks/wire_fuzz.py --messages 1000 --live 10000000 --raw 0.01     # for hours

Messages are mutated on the level of bytes (flips, cuts, copies, lengths and other bytes of msgpack) and of values
(types, shapes, keys and sizes of arrays, nesting), and each is decoded; the same seed gives the same messages. Then
some more of them, and some bytes that are no WebSocket at all, go to a live server, which must answer each, or say why
not and close with 1011, within a second, keep its memory, and serve a valid client afterwards. Several connections take
turns, which costs two milliseconds of a processor a message. Each is kept until the server ends it, as it does at every
error, so what a message that was understood leaves behind meets the next ones. Memory is compared with that after the
first thousand messages. `late_s` is how late this program itself woke at most: where that is near a second, the machine
is too busy to tell whether the server hung. The last line is JSON; the exit status is 1 if a target is missed.

With `--atheris FOLDER` the messages are made by atheris (`pip install atheris`), which seeks branches of the decoder
that none has reached, and are decoded alone. The folder keeps those that reached one, and, as `found-...`, one that
raises anything else or hangs, which ends the program.
"""

import argparse
import asyncio
import importlib
import inspect
import json
import random
import re
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgpack
import numpy as np
from serving_driver import ACTION, STATE, server
from websockets.sync.client import connect

from poise import wire
from poise.cli.memory import resident
from poise.wire import DecodeError, pack, unpack

HANG, GROWTH = 1.0, 50.0  # seconds, MiB
FORESEEN = {"planned", "closed 1011", "raw"}  # what a live server may do
_SETTLED, _LONGEST, _TICK = 1000, 10.0, 0.02  # messages, seconds, seconds
_ERROR, _PLAN, _CLOSE = 1, 2, 8  # kinds of frames: of text, of bytes, and of the end
OPENING = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
SPECIAL = bytes([0, 1, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, *range(0xC0, 0xE0), 0xFF])
VALID = {"state": np.linspace(-1, 1, STATE).astype(np.float32)}
SEEDS = [
    VALID,
    VALID | {"request_id": 7, "env_id": "left", "reset": True, "age": 0},
    {"observation/image": np.zeros((4, 4, 3), np.uint8), "prompt": "hi", **VALID},
    {"images": {"top": np.zeros((2, 3, 1), np.uint8)}, "state": np.zeros((2, STATE))},
    {"state": [float(x) for x in range(STATE)], "scalars": [np.float32(1), np.int8(2), np.bool_(True), 1.5, None]},
    {"b": np.array([True, False]), "h": np.array([1], np.float16), "e": np.zeros((0, 3), ">i4"), "raw": b"bytes"},
    {"camera": np.zeros((96, 96, 3), np.uint8), **VALID},
]
ODD = [
    0,
    1,
    -1,
    2**31,
    2**63,
    2**64 - 1,
    1.5,
    float("nan"),
    float("inf"),
    True,
    None,
    "",
    "x",
    b"",
    b"x",
    [],
    {},
    [1],
    "nd",
]
TYPES = [
    "<f4",
    ">f4",
    "|u1",
    "|b1",
    "|O8",
    "|V4",
    "<c8",
    "<U1",
    "<f16",
    "<M8",
    "f4",
    "(2)f4",
    "{'a':'f4'}",
    "O",
    "",
    "|i1",
]
FORMS = [{"__ndarray__": True}, {b"nd": True, b"type": "<f4"}, {b"__ndarray__": True}, {b"__npgeneric__": True}]


def form(value: Any, draw: random.Random) -> Any:
    """The form of an array on the wire, with something wrong in it."""
    found: dict[Any, Any] = {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str}
    found[b"shape"] = list(value.shape)
    for _ in range(draw.randint(0, 2)):
        match draw.randrange(5):
            case 0:
                found[b"dtype"] = draw.choice(TYPES)
            case 1:
                found[b"shape"] = [draw.choice(ODD) for _ in range(draw.randint(0, 9))]
            case 2:
                found[b"data"] = draw.choice([*ODD, draw.randbytes(draw.randint(0, 64))])
            case 3:
                del found[draw.choice(list(found))]
                break
            case _:
                found[draw.choice([b"x", "x", "__ndarray__", b"__npgeneric__"])] = draw.choice(ODD)
    return found


def changed(value: Any, draw: random.Random) -> Any:
    """A value with something wrong somewhere in it."""
    if draw.random() < 0.05:
        return draw.choice([*ODD, *FORMS])
    if isinstance(value, np.ndarray):
        return form(value, draw)
    if isinstance(value, dict):
        return {
            name if draw.random() > 0.03 else draw.choice(ODD[10:14]): changed(v, draw) for name, v in value.items()
        }
    if isinstance(value, list):
        return [changed(item, draw) for item in value] * draw.choice([1, 1, 1, 2, 300])
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": draw.choice([value.item(), *ODD]), b"dtype": draw.choice(TYPES)}
    return value


def mutated(data: bytes, others: list[bytes], draw: random.Random) -> bytes:
    """A message with a few bytes wrong."""
    message = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 4, 8])):
        place, size = draw.randrange(len(message) + 1), draw.choice([1, 1, 2, 4, 16])
        match draw.randrange(7):
            case 0 if message:
                message[place - 1] ^= 1 << draw.randrange(8)
            case 1:
                message[place : place + 1] = bytes([draw.choice(SPECIAL)])
            case 2:
                message[place:place] = draw.randbytes(size)
            case 3:
                del message[place : place + size]
            case 4:
                message[place:place] = message[draw.randrange(len(message) + 1) :][: 4 * size]
            case 5:
                message[place : place + 4] = draw.choice(
                    [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\x01\0\0"]
                )
            case _:
                other = draw.choice(others)
                message[place:] = other[draw.randrange(len(other)) :]
    return bytes(message) if draw.random() > 0.02 else b"\x91" * draw.randrange(2000) + bytes(message)


def messages(seed: int) -> Iterator[bytes]:
    """Broken messages without end, and a few that are whole."""
    draw, packed = random.Random(seed), [pack(value) for value in SEEDS]
    small = packed[:-1]
    while True:
        kind = draw.random()
        if kind < 0.3:
            with suppress(OverflowError, ValueError):  # what msgpack itself cannot say
                whole = bytes(msgpack.packb(changed(draw.choice(SEEDS[:-1]), draw), use_bin_type=True) or b"")
                yield whole if draw.random() < 0.7 else mutated(whole, small, draw)
        elif kind < 0.999:
            yield mutated(draw.choice(small), small, draw)
        else:
            yield mutated(packed[-1], small, draw)


def decode(count: int, seed: int) -> dict[str, Any]:
    """Decode so many messages; anything but a DecodeError ends the program."""
    kinds, slowest, source = Counter[str](), 0.0, messages(seed)
    before, begin = None, time.perf_counter()
    for number in range(count):
        message = next(source)
        start = time.perf_counter()
        try:
            unpack(message)
            kinds["accepted"] += 1
        except DecodeError as error:
            words = re.sub(r"\[.*?\]|b?'[^']*'|\d+", "_", str(error).partition(": ")[2]).split()
            kinds[" ".join(words[:5])] += 1
        slowest = max(slowest, time.perf_counter() - start)
        if number == min(_SETTLED, count - 1):
            before = resident()
    growth = resident() - (before or 0.0)
    common = dict(kinds.most_common(12))
    seconds = time.perf_counter() - begin
    return {"messages": count, "seconds": seconds, "slowest_s": slowest, "growth_mib": growth, "kinds": common}


def explored(count: int, seed: int, folder: Path) -> None:
    """Decode so many messages that atheris makes, which ends the program by itself."""
    try:
        atheris = importlib.import_module("atheris")
    except ImportError:
        sys.exit("--atheris needs a package that poise does not ask for: pip install atheris")

    def one(message: bytes) -> None:
        with suppress(DecodeError):
            unpack(message)

    for function in vars(wire).values():
        if inspect.isfunction(function) and function.__module__ == wire.__name__:
            atheris.instrument_func(function)
    folder.mkdir(parents=True, exist_ok=True)
    for number, value in enumerate(SEEDS[:-1]):
        (folder / f"seed-{number}").write_bytes(pack(value))
    limits = f"-runs={count}", f"-seed={seed + 1}", "-timeout=10", "-max_len=4096"
    atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={folder}/found-", str(folder)], one)
    atheris.Fuzz()


def framed(message: bytes) -> bytes:
    """A message as one binary frame of RFC 6455, behind a mask of zeros."""
    size, opcode, masked = len(message), 0x82, 0x80
    if size < 126:
        head = struct.pack(">BB", opcode, masked | size)
    elif size < 2**16:
        head = struct.pack(">BBH", opcode, masked | 126, size)
    else:
        head = struct.pack(">BBQ", opcode, masked | 127, size)
    return head + bytes(4) + message


class Kept:
    """A connection to a server, made anew whenever the server has ended it.

    It knows as much of WebSockets as it needs, for a client of `websockets` takes longer than the server.

    Attributes:
        made: How many there were.
    """

    def __init__(self, uri: str) -> None:
        address = urlsplit(uri)
        self._address, self.made = (address.hostname, address.port), 0
        self._reader, self._writer = asyncio.StreamReader(), None

    async def sent(self, message: bytes) -> str:
        """What the server does with a message."""
        if self._writer is None:
            self._writer = await self._opened()
        self._writer.write(framed(message))
        try:
            kind, text = await self._frame()
            if kind == _PLAN:
                return "planned"
            if kind == _ERROR:  # after which the server closes
                kind, text = await self._frame()
        except (asyncio.IncompleteReadError, ConnectionResetError):
            kind, text = _CLOSE, b""
        self.close()
        return f"closed {int.from_bytes(text[:2], 'big')}" if kind == _CLOSE else f"frame {kind}"

    async def thrown(self, message: bytes) -> str:
        """Send bytes that are no WebSocket, and wait until the server is done with them."""
        reader, writer = await asyncio.open_connection(*self._address)
        with suppress(OSError):
            writer.write(message + b"\r\n\r\n")
            writer.write_eof()
            await reader.read()
        writer.close()
        return "raw"

    def close(self) -> None:
        """End the connection, where there is one."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    async def _opened(self) -> asyncio.StreamWriter:
        self._reader, writer = await asyncio.open_connection(*self._address)
        writer.write(OPENING)
        await self._reader.readuntil(b"\r\n\r\n")
        await self._frame()  # what the server serves
        self.made += 1
        return writer

    async def _frame(self) -> tuple[int, bytes]:
        """The kind and the bytes of the next frame."""
        kind, size = await self._reader.readexactly(2)
        if size > 125:
            size = int.from_bytes(await self._reader.readexactly(2 if size == 126 else 8), "big")
        return kind & 15, await self._reader.readexactly(size)


class Judge:
    """What a server did with every message, how long that took at most, and what memory it has."""

    def __init__(self, process: int | str) -> None:
        self.kinds, self.slowest, self.late, self._process = Counter[str](), (0.0, ""), 0.0, process
        self._before = self._memory()

    def add(self, kind: str, seconds: float) -> None:
        """Take note of a message."""
        self.kinds[kind] += 1
        self.slowest = max(self.slowest, (seconds, kind))
        if self.kinds.total() == _SETTLED:
            self._before = self._memory()

    async def watch(self) -> None:
        """Note without end how late this program wakes."""
        while True:
            begin = time.perf_counter()
            await asyncio.sleep(_TICK)
            self.late = max(self.late, time.perf_counter() - begin - _TICK)

    def growth(self) -> float:
        """MiB since the first messages."""
        return self._memory() - self._before

    def _memory(self) -> float:
        return resident(process=self._process)


async def flown(uri: str, source: Iterator[bytes], draw: random.Random, raw: float, flight: int, judge: Judge) -> int:
    """Send messages, some of them raw, over several connections at a time; return how many were made."""
    several = [Kept(uri) for _ in range(flight)]

    async def one_after_another(kept: Kept) -> None:
        for message in source:
            tried, begin = kept.thrown if draw.random() < raw else kept.sent, time.perf_counter()
            async with asyncio.timeout(_LONGEST):
                kind = await tried(message)
            judge.add(kind, time.perf_counter() - begin)
        kept.close()

    watching = asyncio.create_task(judge.watch())
    await asyncio.gather(*map(one_after_another, several))
    watching.cancel()
    return sum(kept.made for kept in several)


def live(count: int, seed: int, raw: float, flight: int) -> dict[str, Any]:
    """Send so many messages to a server, some of them raw; a valid client is served afterwards."""
    with server("--evaluations", "1") as (uri, process):
        judge, begin = Judge(process), time.perf_counter()
        source = islice(messages(seed + 1), count)
        made = asyncio.run(flown(uri, source, random.Random(seed), raw, flight, judge))
        seconds, (slowest, kind) = time.perf_counter() - begin, judge.slowest
        with connect(uri, compression=None, proxy=None) as connection:
            connection.recv(timeout=10)
            connection.send(pack(VALID))
            reply = connection.recv(timeout=10)
            served = isinstance(reply, bytes) and unpack(reply)["actions"].shape[1] == ACTION
        figures = {"messages": count, "seconds": seconds, "slowest_s": slowest, "slowest": kind, "late_s": judge.late}
        return figures | {
            "growth_mib": judge.growth(),
            "connections": made,
            "kinds": dict(judge.kinds),
            "served": served,
        }


def main() -> None:
    """Decode and send, and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=2_000_000)
    parser.add_argument("--live", type=int, default=20_000)
    parser.add_argument("--raw", type=float, default=0.2, help="share of live messages that are no WebSocket")
    parser.add_argument("--flight", type=int, default=8, help="live messages under way at a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--atheris", type=Path, help="folder for the messages of atheris; nothing else is done")
    arguments = parser.parse_args()
    if arguments.atheris:
        explored(arguments.messages, arguments.seed, arguments.atheris)
    results = {"seed": arguments.seed, "decoded": decode(arguments.messages, arguments.seed)}
    print("decoded ", results["decoded"], flush=True)
    results["live"] = live(arguments.live, arguments.seed, arguments.raw, arguments.flight)
    print("live    ", results["live"])
    good = results["live"]["served"] and set(results["live"]["kinds"]) <= FORESEEN
    good = good and all(
        part["slowest_s"] < HANG and part["growth_mib"] < GROWTH for part in (results["decoded"], results["live"])
    )
    print(json.dumps(results))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
