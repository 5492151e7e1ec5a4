"""Datasets of LeRobot opened for reading: what version 2 and version 3 share once it is known which file holds what."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from poise.data.formats.lerobot_meta import BOOKKEEPING, INFO, Info, Kind
from poise.data.images import decode_image
from poise.data.parquet import Parquet
from poise.data.source import Contents, Finding, Severity, Source
from poise.data.untrusted import DataError
from poise.data.video import decode_frames, film_seconds

_COUNTED = ("index", "episode_index", "frame_index")
_OFF_GRID = 1e-4  # seconds, as LeRobot allows


class Shard(NamedTuple):
    """A file that holds the rows of consecutive episodes and no others.

    Attributes:
        path: The file.
        first: Its first episode.
        last: The episode after its last one.
    """

    path: Path
    first: int
    last: int


class Layout(ABC):
    """Which file holds which episode."""

    @abstractmethod
    def shard(self, episode: int) -> Shard:
        """The file of an episode's rows."""

    @abstractmethod
    def film(self, episode: int, name: str) -> tuple[Path, float]:
        """The film of a feature, and the second in it at which the episode begins."""

    @abstractmethod
    def findings(self) -> Iterator[Finding]:
        """What is wrong with the description of the dataset, such as missing statistics."""


class Demonstrations(Source):
    """A dataset of LeRobot.

    Args:
        info: Its description.
        layout: Which file holds which episode.
        lengths: `(episodes,)`, rows.
        tasks: The tasks by number.
        said: The tasks of each episode; where they are not one, that of its first row counts.

    Raises:
        DataError: Lengths that do not add up to what is declared.
    """

    def __init__(
        self, info: Info, layout: Layout, lengths: NDArray, tasks: Sequence[str], said: Sequence[Sequence[str]]
    ) -> None:
        subsets, self._unknown = info.subsets()
        self._info, self._layout, self._said = info, layout, said
        episodes, frames = info.totals["total_episodes"], info.totals["total_frames"]
        if len(lengths) != episodes or lengths.min(initial=1) < 1:
            found = f"{len(lengths)} episodes, the shortest of {lengths.min(initial=1)} rows"
            problem = f"has {found}, expected {episodes} of at least 1 as {INFO} declares"
            raise DataError(info.root, "meta/episodes", problem)
        if lengths.max() > frames or lengths.sum() != frames:
            problem = f"has lengths that sum to {lengths.sum()}, expected {frames} as {INFO} declares"
            raise DataError(info.root, "meta/episodes", problem)
        self._file: Parquet | None = None
        super().__init__(info.root, Contents(info.features, lengths, info.facts, (), subsets))
        chosen = tuple(one[0] if len(one) == 1 else self._first_task(k, tasks) for k, one in enumerate(said))
        self.contents = replace(self.contents, tasks=chosen if any(chosen) else ())

    def rows(self, episode: int, names: Sequence[str]) -> dict[str, NDArray]:
        """See `Source.rows`."""
        shard = self._layout.shard(episode)
        first, last = (row - self._start(shard.first) for row in self.contents.span(episode))
        found = self._columns(shard, [n for n in names if self._info.kinds[n] is Kind.COLUMN], first, last)
        for name in names:
            if self._info.kinds[name] is not Kind.COLUMN:
                read = self._images if self._info.kinds[name] is Kind.IMAGE else self._frames
                found[name] = read(episode, name, shard, (first, last))
        return {name: found[name] for name in names}

    def whole(self, names: Sequence[str]) -> dict[str, NDArray] | None:
        """A copy, where there is no image among the features; see `Source.whole`."""
        if any(self._info.kinds[name] is not Kind.COLUMN for name in names):
            return None
        parts = [self._columns(shard, names) for shard in self._shards()]
        return {name: np.concatenate([part[name] for part in parts]) for name in names}

    def bookkeeping(self, name: str) -> NDArray:
        """All rows of one of the columns that are no features, such as `timestamp`.

        Raises:
            DataError: The file is broken there.
        """
        looks = {name: BOOKKEEPING[name]}
        return np.concatenate([self._opened(shard).arrays(looks)[name] for shard in self._shards()])

    def findings(self) -> Iterator[Finding]:
        """See `Source.findings`."""
        yield from self._layout.findings()
        for name in self._unknown:
            words = f"the split {name!r} in {INFO} names no episodes of this dataset: correct or remove it"
            yield Finding("splits", Severity.WARNING, words)
        for episode, tasks in enumerate(self._said):
            if len(tasks) > 1:
                words = f"has the tasks {list(tasks)[:5]}: that of its first row is read"
                yield Finding("several-tasks", Severity.WARNING, words, None, episode)
        yield from self._off_grid()
        yield from self._short_films()

    def _off_grid(self) -> Iterator[Finding]:
        ends, lengths = self.contents.ends, self.contents.lengths
        starts = ends - lengths
        frames = np.arange(ends[-1]) - np.repeat(starts, lengths)
        times = frames / self._info.rate
        off = np.abs(self.bookkeeping("timestamp")[:, 0] - times)
        wrong = np.flatnonzero(~(off <= _OFF_GRID + np.finfo(np.float32).eps * times))
        for episode in np.unique(np.searchsorted(ends, wrong, "right")):
            row = wrong[np.searchsorted(wrong, starts[episode])]
            words = f"has a timestamp {off[row]:.3g} s off row / {self._info.rate:g}: LeRobot refuses it; write it anew"
            yield Finding("timestamps", Severity.ERROR, words, "timestamp", int(episode), int(frames[row]))

    def _short_films(self) -> Iterator[Finding]:
        seconds: dict[Path, float] = {}
        for name in self._info.of(Kind.VIDEO):
            for episode, length in enumerate(self.contents.lengths):
                try:
                    path, start = self._layout.film(episode, name)
                    if path not in seconds:
                        seconds[path] = film_seconds(path, name)
                    lacking = start + length / self._info.rate - seconds[path]
                    words = f"its film ends {lacking:.3f} s before its rows do: record it anew or shorten the episode"
                except DataError as error:
                    lacking, words = np.inf, str(error)
                if lacking > 0.5 / self._info.rate:
                    yield Finding("video-length", Severity.ERROR, words, name, episode)

    def _images(self, episode: int, name: str, shard: Shard, rows: tuple[int, int]) -> NDArray:
        look = self._info.features[name]
        field = f"{name}, episode {episode}"
        found = self._opened(shard).images(name, *rows)
        return np.stack([decode_image(shard.path, field, data, look.shape) for data in found])

    def _frames(self, episode: int, name: str, shard: Shard, rows: tuple[int, int]) -> NDArray:
        path, start = self._layout.film(episode, name)
        shape = self._info.features[name].shape
        return decode_frames(path, f"{name}, episode {episode}", start, rows[1] - rows[0], self._info.rate, shape)

    def _columns(
        self, shard: Shard, names: Sequence[str], first: int = 0, last: int | None = None
    ) -> dict[str, NDArray]:
        """Rows of a file, once they are found to be those of the episodes that the description says."""
        looks = {name: self._info.features[name] for name in names} | {name: BOOKKEEPING[name] for name in _COUNTED}
        found = self._opened(shard).arrays(looks, first, last)
        index = self._start(shard.first) + np.arange(first, first + len(found["index"]))
        episode = np.searchsorted(self.contents.ends, index, "right")
        expected = {"index": index, "episode_index": episode}
        expected["frame_index"] = index - (self.contents.ends - self.contents.lengths)[episode]
        for name, values in expected.items():
            wrong = np.flatnonzero(found[name][:, 0] != values)
            if len(wrong):
                row = int(wrong[0])
                problem = f"is {found[name][row, 0]} in row {first + row}, expected {values[row]}"
                raise DataError(shard.path, name, f"{problem}: rows are missing, doubled or out of order")
        return {name: found[name] for name in names}

    def _shards(self) -> Iterator[Shard]:
        episode = 0
        while episode < len(self):
            shard = self._layout.shard(episode)
            yield shard
            episode = shard.last

    def _opened(self, shard: Shard) -> Parquet:
        """The file, which stays open until another one is asked for."""
        if self._file is None or self._file.path != shard.path:
            self._file = Parquet(shard.path)
            expected = int(self.contents.ends[shard.last - 1]) - self._start(shard.first)
            if self._file.rows != expected:
                found, self._file = self._file.rows, None
                words = f"are {found}, expected {expected}, the lengths of episodes {shard.first} to {shard.last - 1}"
                raise DataError(shard.path, "rows", words)
        return self._file

    def _start(self, episode: int) -> int:
        return self.contents.span(episode)[0]

    def _first_task(self, episode: int, tasks: Sequence[str]) -> str:
        shard = self._layout.shard(episode)
        row = self._start(episode) - self._start(shard.first)
        found = self._opened(shard).arrays({"task_index": BOOKKEEPING["task_index"]}, row, row + 1)
        number = int(found["task_index"][0, 0])
        if not 0 <= number < len(tasks):
            raise DataError(shard.path, "task_index", f"is {number} in row {row}, expected one of {len(tasks)} tasks")
        return tasks[number]


__all__ = ["Demonstrations", "Layout", "Shard"]
