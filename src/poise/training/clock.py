"""Where the time of a training goes."""

import math
import time

import torch

_EVERY = 50  # steps between measured ones where measuring waits for the device


class Clock:
    """A stopwatch over the phases of steps, and over what is between them.

    Work on an accelerator goes on after the call that began it, and a phase ends only when the device has done it. To
    wait for that at every step would slow training down: every fiftieth step is measured, on the CPU every one.

    Args:
        device: Where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._spent, self._since, self._running = device, dict[str, float](), 0.0, False
        self._within = self._between = 0.0
        self._begun, self._ended = 0.0, math.nan

    def start(self, step: int) -> None:
        """Begin a step."""
        self._begun = time.perf_counter()
        if not math.isnan(self._ended):
            self._between += self._begun - self._ended
        self._running = self._device.type == "cpu" or step % _EVERY == _EVERY - 1
        if self._running:
            self._since = self._now()

    def lap(self, phase: str) -> None:
        """The time since the last call belongs to this phase."""
        if self._running:
            now = self._now()
            self._spent[phase] = self._spent.get(phase, 0.0) + now - self._since
            self._since = now

    def end(self) -> None:
        """End a step."""
        self._ended = time.perf_counter()
        self._within += self._ended - self._begun

    @property
    def shares(self) -> dict[str, float]:
        """Phase -> its share of the time so far, and "else" -> that of what was between steps; their sum is one."""
        measured, whole = sum(self._spent.values()), self._within + self._between
        found = {phase: seconds / measured * self._within / whole for phase, seconds in self._spent.items()}
        return found | {"else": self._between / whole} if found else found

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


__all__ = ["Clock"]
