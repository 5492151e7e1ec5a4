"""What a training asks of a tool that keeps its figures."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Tracker(ABC):
    """Keeps the figures of one training. It works offline unless its user says otherwise."""

    @abstractmethod
    def open(self, run: Path, about: Mapping[str, Any], step: int) -> None:
        """Begin a run, or go on with one.

        Args:
            run: Its folder.
            about: JSON data: specs, data, machine.
            step: Steps done. Figures of later steps, which a process that died may have left, are to be forgotten.

        Raises:
            ImportError: The tool is not installed; the message names the extra.
        """

    @abstractmethod
    def log(self, step: int, figures: Mapping[str, Any]) -> None:
        """Keep figures by name. Values are numbers, or lists and mappings of numbers, or None."""

    @abstractmethod
    def close(self) -> None:
        """The run is over."""


__all__ = ["Tracker"]
