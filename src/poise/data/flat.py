"""A dataset of flat arrays, as `Episodes` are, behind the interface of all datasets."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from poise.data.episodes import Episodes
from poise.data.facts import Facts
from poise.data.source import Contents, Feature, Finding, Source
from poise.data.untrusted import DataError


class Flat(Source):
    """Arrays `(steps, ...)` whose episodes follow each other.

    Args:
        path: Where they are from, for messages.
        arrays: Feature -> rows of all episodes.
        ends: `(episodes,)`, cumulative and exclusive.
        facts: What holds for all episodes.
        tasks: One instruction an episode, or none.
        subsets: Name -> numbers of episodes.

    Raises:
        DataError: Ends that are no increasing steps up to the common length of the arrays.
    """

    def __init__(
        self,
        path: Path,
        arrays: Mapping[str, NDArray],
        ends: NDArray,
        facts: Facts | None = None,
        tasks: tuple[str, ...] = (),
        subsets: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        steps = {name: len(array) if array.ndim else -1 for name, array in arrays.items()}
        lengths = episode_lengths(path, "episode_ends", ends, steps)
        looks = {name: Feature(array.dtype, array.shape[1:]) for name, array in arrays.items()}
        super().__init__(path, Contents(looks, lengths, facts or Facts(), tasks, subsets or {}))
        self._arrays = arrays

    def rows(self, episode: int, names: Sequence[str]) -> dict[str, NDArray]:
        """Views of the arrays; see `Source.rows`."""
        first, last = self.contents.span(episode)
        return {name: self._arrays[name][first:last] for name in names}

    def whole(self, names: Sequence[str]) -> dict[str, NDArray]:
        """The arrays; see `Source.whole`."""
        return {name: self._arrays[name] for name in names}

    def findings(self) -> Iterator[Finding]:
        """None; see `Source.findings`."""
        yield from ()


def episode_lengths(path: Path, field: str, ends: NDArray, steps: Mapping[str, int]) -> NDArray[np.int64]:
    """Rows of each episode, once its ends are found to fit.

    Args:
        path: The dataset.
        field: Where in it the ends are.
        ends: `(episodes,)`, cumulative and exclusive.
        steps: Feature -> its number of rows.

    Raises:
        DataError: Ends that are no increasing steps up to the common length of the features.
    """
    if ends.ndim != 1 or ends.dtype.kind not in "iu" or not len(ends) or not steps:
        raise DataError(path, field, f"got {ends.dtype} {ends.shape} for {dict(steps)}, expected whole numbers")
    lengths = np.diff(ends.astype(np.int64), prepend=0)
    if (lengths <= 0).any() or set(steps.values()) != {int(ends[-1])}:
        found = f"got ends up to {ends[-1]} for features of lengths {dict(steps)}, expected strictly increasing ones"
        last = "of which the last is the common length: the row after the last one of each episode"
        raise DataError(path, field, f"{found}, {last}")
    return lengths


def in_memory(episodes: Episodes) -> Flat:
    """Episodes as an opened dataset."""
    return Flat(Path("episodes"), episodes.features, episodes.ends, episodes.facts, episodes.tasks)


__all__ = ["Flat", "episode_lengths", "in_memory"]
