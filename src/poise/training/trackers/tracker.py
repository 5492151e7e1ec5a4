"""What a training asks of a tool that keeps its figures."""

import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from poise.extras import extra

PROJECT = "poise"
"""Under which tools that sort runs by project keep them."""


class Tracker(ABC):
    """Keeps the figures of one training. It works offline unless its user says otherwise.

    Attributes:
        NEEDS: The module of the tool, and the extra that brings it; None where nothing is needed.
        QUIET: Environment variables that keep the tool from reporting to its makers. What the user has set stays.
    """

    NEEDS: ClassVar[tuple[str, str] | None] = None
    QUIET: ClassVar[Mapping[str, str]] = {}

    def check(self) -> None:
        """Import the tool, before anything is changed for a run.

        Raises:
            ImportError: It is not installed; the message names the extra.
        """
        for variable, value in self.QUIET.items():
            os.environ.setdefault(variable, value)  # before the import, which looks at it
        if self.NEEDS is not None:
            module, name = self.NEEDS
            with extra(name, f"{type(self).__name__} needs"):
                importlib.import_module(module)

    @abstractmethod
    def open(self, run: Path, about: Mapping[str, Any], step: int) -> None:
        """Begin a run, or go on with one.

        Args:
            run: Its folder.
            about: JSON data: specs, data, machine.
            step: Steps done. Figures of later steps, which a process that died may have left, are to be forgotten.

        Raises:
            ImportError: As `check` does.
        """

    @abstractmethod
    def log(self, step: int, figures: Mapping[str, Any]) -> None:
        """Keep figures by name. Values are numbers, or lists and mappings of numbers, or None."""

    @abstractmethod
    def close(self) -> None:
        """The run is over."""


def flat(figures: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Figures as numbers by name, for tools that know nothing else.

    `{"shares": {"data": 0.1}}` becomes `{"shares/data": 0.1}`. A list is named by position; where it holds pairs, which
    are the points of a curve, their second numbers are kept: `{"levels": [(6.9, 0.5), (3.1, 0.2)]}` becomes
    `{"levels/0": 0.5, "levels/1": 0.2}`. None is left out.
    """
    found: dict[str, float] = {}
    for name, value in figures.items():
        match value:
            case None:
                pass
            case Mapping():
                found |= flat(value, f"{prefix}{name}/")
            case list() | tuple():
                last = {str(i): v[-1] if isinstance(v, list | tuple) else v for i, v in enumerate(value)}
                found |= flat(last, f"{prefix}{name}/")
            case _:
                found[f"{prefix}{name}"] = float(value)
    return found


def remembered(run: Path, tool: str, step: int, new: Callable[[], str]) -> str:
    """The name that a tool knows a run by, kept in its folder: that of the run that goes on, or a new one.

    Args:
        run: Folder of the run.
        tool: Name of the file.
        step: Steps done.
        new: Makes a name.
    """
    file = run / f"{tool}.id"
    if not (step and file.is_file()):
        file.write_text(new())
    return file.read_text()


__all__ = ["PROJECT", "Tracker", "flat", "remembered"]
