"""Datasets opened episode by episode: what a format translates to `Source` and from `Sink`.

Reading, conversion, statistics and the doctor know these two and no format. To add a format, write one file in
`poise.data.formats` with a `Format`, a `Source` and, where it is written too, a `Sink`: the conformance tests find it.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from poise.data.facts import Facts
from poise.data.writing import Known, aside, remove, synced

Rows = Mapping[str, NDArray]
"""Feature -> rows `(steps, ...)` of one episode."""


class Severity(StrEnum):
    """How bad a finding is."""

    ERROR = "error"
    WARNING = "warning"


class Finding(NamedTuple):
    """One thing that is wrong with a dataset.

    Attributes:
        code: Short and stable, such as `nan`.
        severity: How bad it is.
        message: What was found and what to do.
        feature: Where, or None.
        episode: Number of the episode, or None for all.
        frame: Row within the episode, or None.
    """

    code: str
    severity: Severity
    message: str
    feature: str | None = None
    episode: int | None = None
    frame: int | None = None


@dataclass(frozen=True)
class Feature:
    """What a feature looks like in a file.

    Attributes:
        dtype: As NumPy writes it.
        shape: Of one row.
        video: Its rows are decoded from a film, which takes time and loses a little.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    video: bool = False


@dataclass(frozen=True)
class Contents:
    """What is in a dataset, without its rows.

    Attributes:
        features: Name -> what it looks like.
        lengths: `(episodes,)`, their rows.
        facts: What holds for all episodes.
        tasks: One instruction an episode; empty where there are none.
        subsets: Name -> numbers of episodes, such as `train` and `valid`.
    """

    features: Mapping[str, Feature]
    lengths: NDArray[np.int64]
    facts: Facts = Facts()
    tasks: tuple[str, ...] = ()
    subsets: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """`(episodes,)`, cumulative and exclusive."""
        return np.cumsum(self.lengths)

    def span(self, episode: int) -> tuple[int, int]:
        """The first row of an episode among all rows, and the row after its last one."""
        last = int(self.ends[episode])
        return last - int(self.lengths[episode]), last


class Source(ABC):
    """A dataset opened for reading; a context manager.

    Args:
        path: Where it is.
        contents: What is in it.
        resources: What is closed with it.
    """

    def __init__(self, path: Path, contents: Contents, resources: ExitStack | None = None) -> None:
        self.path, self.contents = path, contents
        self._resources = resources or ExitStack()

    @abstractmethod
    def rows(self, episode: int, names: Sequence[str]) -> dict[str, NDArray]:
        """Rows of one episode, of the dtypes and shapes of `contents`; their values are not checked.

        Raises:
            DataError: The file is broken there.
        """

    @abstractmethod
    def whole(self, names: Sequence[str]) -> dict[str, NDArray] | None:
        """All rows of the features, where this is faster than by episode, as a map of the file or a copy; else None.

        Raises:
            DataError: The file is broken there.
        """

    @abstractmethod
    def findings(self) -> Iterator[Finding]:
        """What is wrong with the file that its rows do not show, such as missing statistics."""

    def __len__(self) -> int:
        return len(self.contents.lengths)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()


class Sink(ABC):
    """A dataset that is being written beside its place; a context manager that puts it there, or leaves nothing.

    Args:
        path: Its place.
        contents: What will be in it, of which `lengths` do not count.

    Attributes:
        path: Its place.
        aside: Where it is written.
        contents: What will be in it.
        tasks: One instruction for each episode so far.
    """

    def __init__(self, path: Path, contents: Contents) -> None:
        self.path, self.aside, self.contents = path, aside(path), contents
        self.tasks: list[str] = []

    def append(self, rows: Rows, task: str = "") -> None:
        """Write one episode.

        Raises:
            ValueError: Features of different lengths, or no rows.
        """
        steps = {len(rows[name]) for name in self.contents.features}
        if len(steps) != 1 or 0 in steps:
            raise ValueError(f"{self.path} got an episode of {sorted(steps)} rows, expected one number of all features")
        self.write(rows, steps.pop(), task)
        self.tasks.append(task)

    def known(self) -> Known:
        """What is known beside the arrays, once all episodes are written."""
        return Known(self.contents.facts, tuple(self.tasks), self.contents.subsets)

    @abstractmethod
    def write(self, rows: Rows, steps: int, task: str) -> None:
        """Write one episode of so many rows, which the caller may use for others afterwards."""

    @abstractmethod
    def finish(self) -> None:
        """Write what can only be known at the end."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the files, at the end or after an error."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            with closing(self):
                if error is None and not self.tasks:
                    raise ValueError(f"{self.path} got no episode to write, expected at least one")
                if error is None:
                    self.finish()
            if error is None:
                os.replace(self.aside, self.path)
                synced(self.path.parent)
        finally:
            remove(self.aside)


@dataclass(frozen=True)
class Format(ABC):
    """One format of demonstrations.

    Attributes:
        name: What `--format` calls it.
        suffix: Of paths that `write` gives this format unless told otherwise; empty for none.
        written: Whether `create` writes it; otherwise it is only read.
        loses: What of a dataset it has no place for, of `tasks`, `subsets`, `rate`, `robot`, `roles` and `names`; and
            `pixels` where images change a little.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]
    written: ClassVar[bool] = True
    loses: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def recognises(self, path: Path) -> bool:
        """Whether an existing path looks like one of this format; cheap, and without the packages that it needs."""

    @abstractmethod
    def open(self, path: Path) -> Source:
        """Open a dataset.

        Raises:
            DataError: It is broken.
            ImportError: Names the extra that is missing.
        """

    @abstractmethod
    def create(self, path: Path, contents: Contents) -> Sink:
        """Begin to write a dataset of such contents, whose `lengths` count for its subsets alone.

        Raises:
            ValueError: A format that is only read, or features that it cannot hold.
            ImportError: Names the extra that is missing.
        """


__all__ = ["Contents", "Feature", "Finding", "Format", "Rows", "Severity", "Sink", "Source"]
