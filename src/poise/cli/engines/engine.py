"""What all engines are, and what a function finds around it wherever it runs."""

import os
import platform
import signal
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_OF_THE_WORKER = "RAY_", "CUDA_"  # beginnings of variables that say where a worker is


class Outcome(NamedTuple, Generic[Result]):
    """What came of one item.

    Attributes:
        number: Of the item, from 0.
        value: What the function returned.
        error: Its exception in one line, or what became of its process; None where it returned.
    """

    number: int
    value: Result | None
    error: str | None


class Engine(ABC):
    """Runs a function on items side by side."""

    @abstractmethod
    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Generator[Outcome[Result], None, None]:
        """Yield the outcome of every item as it ends, in no particular order.

        An exception, or the death of a worker, is the outcome of its item alone. Closing the generator, as Ctrl-C does,
        ends what still runs.

        Args:
            function: Of the top level of a module that workers can import.
            items: Its arguments; they and what is returned travel between processes.
        """


class Place(NamedTuple):
    """What a function finds around it."""

    folder: Path
    variables: dict[str, str]

    @classmethod
    def here(cls) -> "Place":
        """That of this process."""
        return cls(Path.cwd(), {k: v for k, v in os.environ.items() if not k.startswith(_OF_THE_WORKER)})

    def enter(self) -> None:
        """Recipes name files relative to the folder and may read variables; what a worker has set itself it keeps."""
        if not self.folder.is_dir():
            raise FileNotFoundError(
                f"the folder {self.folder} does not exist on {platform.node()}, expected that of the command: share "
                "its file system with the workers"
            )
        os.chdir(self.folder)
        for name, value in self.variables.items():
            os.environ.setdefault(name, value)


def called(place: Place, function: Callable[[Item], Result], item: Item) -> tuple[Result | None, str | None]:
    """What the function returns, or the line of its exception."""
    try:
        place.enter()
        return function(item), None
    except Exception as error:  # whatever it is, it belongs to this item
        return None, " ".join("".join(traceback.format_exception_only(error)).split())


@contextmanager
def deaf() -> Iterator[None]:
    """Where a second Ctrl-C does not stop the tidying up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def positive(name: str, value: int) -> None:
    """Raise a ValueError unless the value is 1 or more."""
    if value < 1:
        raise ValueError(f"got {name}={value}, expected at least 1")


__all__ = ["Engine", "Item", "Outcome", "Place", "Result", "called", "deaf", "positive"]
