"""What a check is given, and what it answers.

A check of numbers sees one column of the whole dataset at a time, and one of frames sees what was noted of one episode
at a time. A check is made anew for each examination, and may remember what it has seen.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from poise.data.facts import Role
from poise.data.source import Contents, Finding
from poise.data.statistics import Column, is_image

TIME = "timestamp"
COUNTER = "frame_index"
_BOOKKEEPING = frozenset({TIME, COUNTER, "index", "episode_index", "task_index"})
_OUTCOMES = frozenset({"reward", "rewards", "done", "dones", "next.reward", "next.done", "next.success"})


@dataclass(frozen=True)
class About:
    """What checks know of a dataset as a whole.

    Attributes:
        contents: What is in it.
        horizon: Rows that a window of training will span.
    """

    contents: Contents
    horizon: int

    @cached_property
    def actions(self) -> tuple[str, ...]:
        """Features that are commands: those that say so, or else those whose name begins with `action`."""
        declared = self.contents.facts.named(Role.ACTION)
        return declared or tuple(name for name in self.contents.features if name.startswith("action"))

    @cached_property
    def observations(self) -> tuple[str, ...]:
        """Features that sensors measure: those that say so, or else all that are nothing else by their name."""
        other = {*self.actions, *_BOOKKEEPING, *_OUTCOMES}
        declared = self.contents.facts.named(Role.OBSERVATION)
        return declared or tuple(name for name in self.contents.features if name not in other)

    @cached_property
    def cameras(self) -> tuple[str, ...]:
        """Features that are images."""
        return tuple(name for name, look in self.contents.features.items() if is_image(look))

    @cached_property
    def numbers(self) -> tuple[str, ...]:
        """Features that are no images."""
        return tuple(name for name in self.contents.features if name not in self.cameras)

    @cached_property
    def recorded(self) -> tuple[str, ...]:
        """Features that tell one episode from another: all but clocks and counters."""
        return tuple(name for name in self.contents.features if name not in _BOOKKEEPING)

    def judges(self, column: Column) -> bool:
        """Whether a column is measured or commanded, and not a clock, a counter or an outcome."""
        return column.feature in self.observations or column.feature in self.actions

    def labels(self, feature: str) -> list[str]:
        """Names of the columns of a feature for people, such as `state[2]` or `state[gripper]`."""
        width = math.prod(self.contents.features[feature].shape)
        names = self.contents.facts.names.get(feature, ())
        return [f"{feature}[{names[k] if len(names) == width else k}]" for k in range(width)]

    def label(self, column: Column) -> str:
        """Name of a column."""
        return self.labels(column.feature)[column.dimension]


@dataclass(frozen=True, eq=False)
class Seen:
    """What was noted of one episode while it was read.

    Attributes:
        number: Of the episode.
        length: Its rows.
        same: Feature -> `(length - 1,)`, whether a row equals the one before it, bit by bit.
        finite: Camera -> `(length,)`, whether an image is without NaN and infinity.
        digest: Of all rows, without clocks and counters.
    """

    number: int
    length: int
    same: Mapping[str, NDArray[np.bool_]]
    finite: Mapping[str, NDArray[np.bool_]]
    digest: bytes


class ColumnCheck(ABC):
    """A check of one column of numbers over the whole dataset."""

    @abstractmethod
    def column(self, about: About, column: Column) -> Iterator[Finding]:
        """What is wrong with it."""


class EpisodeCheck(ABC):
    """A check of whole frames, one episode at a time."""

    @abstractmethod
    def episode(self, about: About, seen: Seen) -> Iterator[Finding]:
        """What is wrong with it."""


def runs(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First index and length of every stretch of flags that are set."""
    edges = np.flatnonzero(np.diff(flags.astype(np.int8), prepend=0, append=0))
    return [(int(first), int(last - first)) for first, last in edges.reshape(-1, 2)]


__all__ = ["COUNTER", "TIME", "About", "ColumnCheck", "EpisodeCheck", "Seen", "runs"]
