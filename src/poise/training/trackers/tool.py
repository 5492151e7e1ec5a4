"""A tool of others behind a tracker: it gets every figure once, and what goes wrong in it ends no training."""

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from poise.training.trackers.json_lines import reported
from poise.training.trackers.tracker import Tracker, flat


class Tool(Tracker, ABC):
    """Sends figures to a library.

    What counts is `metrics.jsonl`: a run that goes on sends whatever of it the tool lacks, which a process that was
    killed may have had in its hands, and no step that the tool has already, which it would show twice. A tool that
    fails gets no more figures: that is told once, and the next resume tries again.
    """

    def __init__(self) -> None:
        self._lacks = math.inf  # the first step that the tool has not; infinity where it gets none

    def open(self, run: Path, about: Mapping[str, Any], step: int) -> None:
        """Begin a run, or go on with one.

        Raises:
            ImportError: As `check` does.
            ValueError: The tool cannot begin. Where a run goes on, that is only told.
        """
        self.check()
        try:
            self._lacks = self._begin(run, about, step)
        except Exception as error:  # whatever a tool raises
            if not step:
                name = type(self).__name__
                raise ValueError(
                    f"{name} cannot begin a run ({_short(error)}), expected a tool that works: repair it, or train "
                    f"without --track {name}"
                ) from error
            self._fail(error)
        for line in reported(run) if step else ():
            self.log(line.pop("step"), line)

    def log(self, step: int, figures: Mapping[str, Any]) -> None:
        """Send figures that the tool lacks."""
        if step >= self._lacks:
            try:
                self._send(step, flat(figures))
            except Exception as error:  # whatever a tool raises
                self._fail(error)

    def close(self) -> None:
        """Bring everything to where the tool keeps it."""
        if self._lacks < math.inf:
            try:
                self._end()
            except Exception as error:  # whatever a tool raises
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._lacks = math.inf
        said = f"{type(self).__name__} failed and gets no more figures ({_short(error)}): the training goes on"
        tqdm.write(f"{said}, metrics.jsonl keeps them, and poise train --resume would try again", file=sys.stderr)

    @abstractmethod
    def _begin(self, run: Path, about: Mapping[str, Any], step: int) -> int:
        """Begin a run, or go on with one.

        Returns:
            The first step that the tool lacks.
        """

    @abstractmethod
    def _send(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to every curve."""

    @abstractmethod
    def _end(self) -> None:
        """Bring everything to where the tool keeps it."""


def _short(error: Exception) -> str:
    """What went wrong in a line; some tools add their statements, and some say nothing."""
    return (str(error) or type(error).__name__).splitlines()[0]


__all__ = ["Tool"]
