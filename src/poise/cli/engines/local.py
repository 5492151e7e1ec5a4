"""The local engine."""

import itertools
import multiprocessing
import signal
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, final

from poise.cli.engines.engine import Engine, Item, Outcome, Place, Result, called, deaf, positive

_CLEAN = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")


@final
@dataclass(frozen=True)
class Local(Engine):
    """Processes of this machine, a fresh one for every item.

    Attributes:
        jobs: How many at a time.
    """

    jobs: int = 1

    def __post_init__(self) -> None:
        positive("jobs", self.jobs)

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Generator[Outcome[Result], None, None]:
        """See `Engine.map`."""
        _CLEAN.set_forkserver_preload([__name__, function.__module__])  # every process begins with imports done
        place, waiting = Place.here(), iter(enumerate(items))
        running: dict[Connection, tuple[int, BaseProcess]] = {}
        try:
            while True:
                for number, item in itertools.islice(waiting, self.jobs - len(running)):
                    reader, writer = _CLEAN.Pipe(duplex=False)
                    process = _CLEAN.Process(target=_reported, args=(writer, place, function, item))
                    process.start()
                    writer.close()  # the process has its own, with which the pipe ends
                    running[reader] = number, process
                if not running:
                    return
                ready = wait(list(running))
                for reader in [reader for reader in running if reader in ready]:
                    number, process = running.pop(reader)
                    yield Outcome(number, *_received(reader, process))
        finally:
            _ended(running)


def _reported(writer: Connection, place: Place, function: Callable[[Item], Any], item: Item) -> None:
    # Ctrl-C is left to the parent, which ends this process; a training would take it as the wish to stop early.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    writer.send(called(place, function, item))


def _received(reader: Connection, process: BaseProcess) -> tuple[Any, str | None]:
    try:
        result = reader.recv()
    except (EOFError, OSError):
        result = None
    reader.close()
    process.join()
    if result is not None:
        return result
    code = process.exitcode or 0
    if code < 0:
        return None, f"the process was killed by signal {-code}, such as for want of memory"
    return None, f"the process ended with status {code}"


def _ended(running: dict[Connection, tuple[int, BaseProcess]]) -> None:
    with deaf():
        for _, process in running.values():
            process.terminate()
        for reader, (_, process) in running.items():
            process.join()
            reader.close()


__all__ = ["Local"]
