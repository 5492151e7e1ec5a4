"""A thread that calls functions in turn, and that the process does not wait for at its end."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Worker:
    """One thread; unlike that of an executor, it keeps no process alive with a call that never returns.

    Args:
        name: Of the thread.
    """

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Have a function called after those before it; return what gets its outcome."""
        outcome: Future[T] = Future()

        def call() -> None:
            if not outcome.set_running_or_notify_cancel():
                return
            try:
                outcome.set_result(function(*arguments))
            except BaseException as error:  # it is told, and the thread goes on
                outcome.set_exception(error)

        self._calls.put(call)
        return outcome

    def close(self) -> None:
        """End the thread after what was submitted; what comes later is not called."""
        self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()


__all__ = ["Worker"]
