"""The engine of Ray (extra `cluster`)."""

import itertools
import logging
import os
import socket
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

from poise.cli.engines.engine import Engine, Item, Outcome, Place, Result, called, deaf, positive
from poise.extras import extra


@final
@dataclass(frozen=True)
class Ray(Engine):
    """Tasks of Ray (Moritz et al. 2018, arXiv 1712.05889), on a cluster or on one of this machine that ends with them.

    A connection that the program has made already is used and kept. A task whose machine fails is not tried again.

    Attributes:
        jobs: How many at a time.
        address: Of the cluster, as `ray start` prints it; by default that of the variable RAY_ADDRESS, or else a
            cluster of this machine.
        cpus: Cores of one task.
        gpus: Accelerators of one task.
    """

    jobs: int = 1
    address: str | None = None
    cpus: int = 1
    gpus: int = 0

    def __post_init__(self) -> None:
        positive("jobs", self.jobs)

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Generator[Outcome[Result], None, None]:
        """See `Engine.map`.

        Raises:
            ImportError: The extra `cluster` is missing.
            ValueError: No cluster at the address, or one whose machines have too few cores or accelerators.
        """
        ray, place, waiting = _library(), Place.here(), iter(enumerate(items))
        running: dict[Any, int] = {}
        with self._connected(ray):
            task = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=0)(called)
            try:
                while True:
                    for number, item in itertools.islice(waiting, self.jobs - len(running)):
                        running[task.remote(place, function, item)] = number
                    if not running:
                        return
                    (done,), _ = ray.wait(list(running))
                    yield Outcome(running.pop(done), *_fetched(ray, done))
            finally:
                with deaf():
                    for reference in running:
                        ray.cancel(reference, force=True)

    @contextmanager
    def _connected(self, ray: Any) -> Iterator[None]:
        if ray.is_initialized():
            yield
            return
        address = self.address or os.environ.get("RAY_ADDRESS") or "local"
        own = {"num_cpus": self.jobs * self.cpus, "include_dashboard": False} if address == "local" else {}
        try:
            _answers(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
        except OSError as error:
            raise ValueError(
                f"got the Ray address {address!r}, where no cluster answers, expected what 'ray start --head' printed, "
                "or none for a cluster of this machine"
            ) from error
        try:
            self._enough(ray.nodes())
            yield
        finally:
            with deaf():
                ray.shutdown()

    def _enough(self, nodes: Iterable[dict[str, Any]]) -> None:
        """Raise a ValueError where a task would wait for ever, for no machine can take it."""
        needs = {"CPU": self.cpus, "GPU": self.gpus}
        found = [{kind: node["Resources"].get(kind, 0) for kind in needs} for node in nodes if node["Alive"]]
        if not any(all(has[kind] >= needs[kind] for kind in needs) for has in found):
            raise ValueError(f"got a Ray cluster of the machines {found}, expected one with at least {needs} for a run")


def _answers(address: str) -> None:
    """Raise an OSError where nothing listens at HOST:PORT; Ray itself would ask again and again."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


def _fetched(ray: Any, reference: Any) -> tuple[Any, str | None]:
    known = ray.exceptions
    try:
        return ray.get(reference)
    except (known.WorkerCrashedError, known.OutOfMemoryError, known.NodeDiedError, known.ObjectLostError) as error:
        return None, f"the process was killed, such as for want of memory ({type(error).__name__})"
    except known.RayError as error:
        reason = str(error).strip().splitlines()[-1]
        return None, f"the worker could not begin: {reason}; expected the modules of this command on every machine"


def _library() -> Any:
    with extra("cluster", "the engine ray needs"):
        import ray
    return ray


__all__ = ["Ray"]
