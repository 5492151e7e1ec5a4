"""What a robot does while no action comes: hold, and after a while stop. Needs neither a policy nor PyTorch."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

Hold = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""`last actions (robots, action) -> actions that hold`: `repeated` for positions, `zeroed` for velocities."""


def repeated(last: NDArray[np.float32]) -> NDArray[np.float32]:
    """The last action again: what holds a robot that is commanded by positions."""
    return last.copy()


def zeroed(last: NDArray[np.float32]) -> NDArray[np.float32]:
    """Zeros: what holds a robot that is commanded by velocities, or by increments."""
    return np.zeros_like(last)


class Watchdog:
    """Says whether the newest action is young enough to move on, and stops the robot once when none comes for long.

    A stop is final until `reset`: what made the actions stay away is not known to be over because one arrives.

    Args:
        max_age: Seconds from an action until the robot must hold.
        stop_after: Seconds from an action until `stop` is called, at least `max_age`.
        stop: Stops the robot; called once, by whoever calls `alive`, or by the thread of `watching`.
        clock: Seconds since some fixed moment.

    Attributes:
        stopped: Whether `stop` was called since the last reset.

    Raises:
        ValueError: Times that are not positive, or a stop before the hold.
    """

    def __init__(
        self, max_age: float, stop_after: float, stop: Callable[[], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        if not 0 < max_age <= stop_after:
            raise ValueError(
                f"Watchdog got max_age={max_age} and stop_after={stop_after} seconds, expected 0 < max_age <= "
                "stop_after: a robot first holds, and then stops"
            )
        self.max_age, self.stop_after = max_age, stop_after
        self._stop, self._clock, self._lock = stop, clock, threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Begin anew, as if an action had come now."""
        self.stopped, self._fed = False, self._clock()

    def feed(self) -> None:
        """A fresh action has come."""
        self._fed = self._clock()

    def alive(self) -> bool:
        """Whether to send the newest action; otherwise the robot must hold. Ask in every control step."""
        age = self._clock() - self._fed
        with self._lock:
            late = age > self.stop_after and not self.stopped
            self.stopped = self.stopped or late
        if late:
            self._stop()
        return not self.stopped and age <= self.max_age

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Ask in a thread too, ten times within `max_age`: it stops a robot whose loop hangs, in a camera's driver say.

        What it cannot do is hold: nobody sends while the loop hangs. A robot should hold by itself when nothing comes.
        """
        over = threading.Event()

        def watch() -> None:
            while not over.wait(self.max_age / 10):
                self.alive()

        thread = threading.Thread(target=watch, name="poise-watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


__all__ = ["Hold", "Watchdog", "repeated", "zeroed"]
