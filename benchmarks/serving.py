"""Does the server hold under load? Many clients at once, each of which asks again when it is answered.

    python benchmarks/serving.py --clients 32 --seconds 60

The same clients ask a server that plans for one robot at a time, and one that plans for all that wait at once. Beside
them a process of its own asks `GET /healthz` twenty times a second. Targets: no error, `/healthz` below 50 ms in 99 of
100 cases, no client served more than twice as often as another, memory of the server flat (below 10 MiB more at the end
than after a tenth of the time), and 3 times the plans. The last line is JSON; the exit status is 1 if one is missed.
Clients and server share the cores of this machine.
"""

import argparse
import asyncio
import http.client
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from serving_driver import ACTION, PICTURE, STATE, server
from websockets.asyncio.client import connect

from poise.cli.memory import resident
from poise.wire import pack, unpack

HEALTH, RATIO, FAIR, GROWTH = 50.0, 3.0, 2.0, 10.0


def health(uri: str, seconds: float) -> list[float]:
    """Milliseconds of `GET /healthz`, each on a new connection."""
    found, end, address = [], time.monotonic() + seconds, urlsplit(uri)
    while time.monotonic() < end:
        begin = time.perf_counter()
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=10)
        connection.request("GET", "/healthz")
        if connection.getresponse().read() != b"OK\n":
            raise RuntimeError("/healthz did not answer OK")
        connection.close()
        found.append(1e3 * (time.perf_counter() - begin))
        time.sleep(0.05)
    return found


async def client(uri: str, number: int, end: float, image: bool, waits: list[tuple[float, int]]) -> tuple[int, int]:
    """Ask until the end; return the number of plans and of errors."""
    draw, plans, errors = np.random.default_rng(number), 0, 0
    camera = {"camera": draw.integers(256, size=PICTURE, dtype=np.uint8)} if image else {}
    async with connect(uri, compression=None, proxy=None) as connection:
        await connection.recv()
        while time.monotonic() < end:
            begin = time.perf_counter()
            seen = {"state": draw.normal(size=STATE).astype(np.float32), **camera}
            await connection.send(pack({**seen, "request_id": plans}))
            reply = await connection.recv()
            wait = 1e3 * (time.perf_counter() - begin)
            answer: dict[str, Any] = unpack(reply) if isinstance(reply, bytes) else {}
            good = answer.get("request_id") == plans and answer["actions"].shape[1] == ACTION
            waits.append((wait, answer["server_timing"]["batch"] if good else 0))
            plans, errors = plans + good, errors + (not good)
    return plans, errors


async def load(uri: str, process: int, clients: int, seconds: float, image: bool) -> dict[str, Any]:
    """The figures of one server under so many clients."""
    loop, waits = asyncio.get_running_loop(), list[tuple[float, int]]()
    with ProcessPoolExecutor(1, get_context("spawn")) as others:
        await loop.run_in_executor(others, health, uri, 0.1)  # the process has started
        asked = loop.run_in_executor(others, health, uri, seconds)
        end = time.monotonic() + seconds
        tasks = [asyncio.create_task(client(uri, number, end, image, waits)) for number in range(clients)]
        await asyncio.sleep(seconds / 10)
        early = resident(process=process)
        counts = await asyncio.gather(*tasks)
        late, health_ms = resident(process=process), await asked
    plans, (wait, batch) = [count for count, _ in counts], np.array(waits).T
    return {
        "plans_per_second": sum(plans) / seconds,
        "errors": sum(errors for _, errors in counts),
        "reply_ms_median": float(np.median(wait)),
        "reply_ms_p99": float(np.quantile(wait, 0.99)),
        "batch_mean": len(batch) / float((1 / batch).sum()),
        "fairness": max(plans) / max(min(plans), 1),
        "health_ms_median": float(np.median(health_ms)),
        "health_ms_p99": float(np.quantile(health_ms, 0.99)),
        "memory_mib": late,
        "memory_growth_mib": late - early,
    }


def main() -> None:
    """Load both servers and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--image", action="store_true", help="every observation has a picture of 96 x 96 besides")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for name, batch, seconds in (("alone", 1, arguments.seconds / 4), ("batched", 64, arguments.seconds)):
        options = ("--batch", str(batch), "--threads", str(arguments.threads), *["--image"] * arguments.image)
        with server(*options) as (uri, process):
            results[name] = asyncio.run(load(uri, process, arguments.clients, seconds, arguments.image))
        print(f"{name:8} {' '.join(f'{figure}={value:.3g}' for figure, value in results[name].items())}")
    batched = results["batched"]
    results["speedup"] = batched["plans_per_second"] / results["alone"]["plans_per_second"]
    held = {
        "no errors": batched["errors"] == 0,
        f"/healthz p99 below {HEALTH:g} ms": batched["health_ms_p99"] < HEALTH,
        f"fairness at most {FAIR:g}": batched["fairness"] <= FAIR,
        f"memory grows by less than {GROWTH:g} MiB": batched["memory_growth_mib"] < GROWTH,
        f"at least {RATIO:g} times the plans": results["speedup"] >= RATIO,
    }
    for target, met in held.items():
        print(f"{'met' if met else 'MISSED':8} {target}")
    print(json.dumps({**vars(arguments), **results}))
    sys.exit(0 if all(held.values()) else 1)


if __name__ == "__main__":
    main()
