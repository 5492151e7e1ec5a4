r"""Exact statistics of a dataset, a few columns at a time, so that memory stays bounded however many rows there are.

With the sorted values $x_{(0)} \le \dots \le x_{(n-1)}$ of *all* rows, a quantile is

$$ Q(q) = x_{(j)} + (h - j)\,(x_{(j+1)} - x_{(j)}), \qquad h = q (n - 1), \quad j = \lfloor h \rfloor, $$

definition 7 of Hyndman and Fan (1996, "Sample quantiles in statistical packages") and the default of NumPy. An average
of quantiles of episodes, which is cheaper, is another number: short episodes weigh as much as long ones in it, and the
extremes of few episodes are averaged away.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poise.data.reading import by_episode
from poise.data.source import Feature, Source

QUANTILES: Mapping[str, float] = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
_BUDGET = 128 * 2**20  # bytes of columns held at a time; one column is held whatever it takes
_CHUNK = 2**18  # rows whose deviations are formed at a time
_LEVELS = 256  # of a pixel


@dataclass(frozen=True, eq=False)
class Column:
    """One number of every row of a dataset.

    Attributes:
        feature: Its feature.
        dimension: Which number of the (flattened) row of the feature.
        values: `(steps,)`, of the dtype of the feature, episode after episode.
        ends: `(episodes,)`, cumulative and exclusive.
        episodes: `(episodes,)`, their numbers in the dataset.
    """

    feature: str
    dimension: int
    values: NDArray
    ends: NDArray[np.int64]
    episodes: NDArray[np.int64]

    def place(self, row: int) -> tuple[int, int]:
        """Number of the episode and frame within it."""
        k = int(np.searchsorted(self.ends, row, side="right"))
        return int(self.episodes[k]), int(row - (self.ends[k - 1] if k else 0))

    def steps(self) -> NDArray[np.float64]:
        """`(steps,)`, change since the row before; 0 at the start of episodes."""
        values = self.values.astype(np.float64)
        with np.errstate(invalid="ignore"):
            change = np.diff(values, prepend=values[:1])
        change[self.ends[:-1]] = 0.0
        return change

    def by_episode(self, rows: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
        """Ascending rows, parted where episodes end."""
        parts = np.split(rows, np.searchsorted(rows, self.ends[:-1]))
        return (part for part in parts if len(part))


@dataclass(frozen=True, eq=False)
class Statistics:
    """Of one feature over all rows: an entry a number of the row, or a channel of an image.

    NaN and infinity are left out, and so is what `count` is short of. Images are in 0 to 255, rounded where they are of
    floats.

    Attributes:
        count: `(D,)`, finite values.
        minimum: `(D,)`.
        maximum: `(D,)`.
        mean: `(D,)`.
        deviation: `(D,)`, standard deviation of the population.
        quantiles: `q01`, `q10`, `q50`, `q90` and `q99` -> `(D,)`.
    """

    count: NDArray[np.int64]
    minimum: NDArray[np.float64]
    maximum: NDArray[np.float64]
    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    quantiles: Mapping[str, NDArray[np.float64]]

    def named(self) -> dict[str, NDArray]:
        """Every statistic by the name it has in LeRobot's files."""
        moments = {"min": self.minimum, "max": self.maximum, "mean": self.mean, "std": self.deviation}
        return {"count": self.count, **moments, **self.quantiles}

    def plain(self) -> dict[str, Any]:
        """As JSON data; what no value defines is None."""
        return {name: [None if math.isnan(v) else v for v in values.tolist()] for name, values in self.named().items()}


def is_image(look: Feature) -> bool:
    """Whether rows of a feature are images, `(height, width, channels)`: of 8 bits, or of 1, 3 or 4 channels."""
    return len(look.shape) == 3 and (look.dtype == np.uint8 or look.shape[2] in (1, 3, 4))


def as_levels(frames: NDArray, white: float = 255.0) -> NDArray[np.uint8]:
    """Images as levels from 0 to 255: rounded, and cut off beyond; NaN becomes 0."""
    if frames.dtype == np.uint8:
        return frames
    return np.nan_to_num(frames * (255.0 / white)).round().clip(0, 255).astype(np.uint8)


def white_of(frames: NDArray) -> float:
    """What white is in images: 1 where they are of floats and nothing in them is above it, or else 255."""
    return 1.0 if frames.dtype.kind == "f" and not (frames > 1).any() else 255.0


def statistics(source: Source, names: Sequence[str] | None = None) -> dict[str, Statistics]:
    """Exact statistics over all rows of a dataset.

    Args:
        source: An opened dataset.
        names: Features; None means all.

    Raises:
        DataError: The file is broken.
    """
    looks = source.contents.features
    names = list(looks) if names is None else names
    images = [name for name in names if is_image(looks[name])]
    found: dict[str, list[_Row]] = {name: [] for name in names}
    for column in columns(source, [name for name in names if name not in images]):
        found[column.feature].append(_of_values(column.values))
    for name in images:
        found[name] = [_of_histogram(levels) for levels in _histograms(source, name)]
    return {name: _stacked(rows) for name, rows in found.items()}


def columns(source: Source, names: Sequence[str], chosen: Sequence[int] | None = None) -> Iterator[Column]:
    """Every column of some features, each whole; only a few are in memory at a time.

    Args:
        source: An opened dataset.
        names: Features, which are no images.
        chosen: Numbers of episodes; None means all.
    """
    episodes = np.arange(len(source)) if chosen is None else np.asarray(chosen, np.int64)
    ends = np.cumsum(source.contents.lengths[episodes])
    looks = {name: source.contents.features[name] for name in names}
    if not len(ends):
        return
    for group in _groups(looks, int(ends[-1])):
        held = {name: np.empty((len(part), ends[-1]), looks[name].dtype) for name, part in group.items()}
        first = 0
        for rows, last in zip(by_episode(source, list(group), episodes.tolist()), ends.tolist(), strict=True):
            for name, part in group.items():
                held[name][:, first:last] = rows[name].reshape(last - first, -1)[:, part.start : part.stop].T
            first = last
        for name, part in group.items():
            for dimension, values in zip(part, held[name], strict=True):
                yield Column(name, dimension, values, ends, episodes)


def _groups(looks: Mapping[str, Feature], steps: int) -> Iterator[dict[str, range]]:
    """Columns that are held together: as many as the budget allows, at least one."""
    group: dict[str, range] = {}
    left = _BUDGET
    for name, look in looks.items():
        size = steps * look.dtype.itemsize
        for dimension in range(math.prod(look.shape)):
            if group and size > left:
                yield group
                group, left = {}, _BUDGET
            first = group[name].start if name in group else dimension
            group[name], left = range(first, dimension + 1), left - size
    if group:
        yield group


_Row = tuple[int, float, float, float, float, list[float]]  # count, minimum, maximum, mean, deviation, quantiles
_NONE: _Row = 0, math.nan, math.nan, math.nan, math.nan, [math.nan] * len(QUANTILES)


def _of_values(values: NDArray) -> _Row:
    whole = np.uint64 if values.dtype == np.uint64 else np.int64
    kept = values[np.isfinite(values)] if values.dtype.kind == "f" else values.astype(whole)
    if not len(kept):
        return _NONE
    mean = float(np.mean(kept, dtype=np.float64))
    squares = math.fsum(
        float(np.square(kept[i : i + _CHUNK].astype(np.float64) - mean).sum()) for i in range(0, len(kept), _CHUNK)
    )
    places = _places(len(kept))
    kept.partition(sorted({0, len(kept) - 1, *(j for j, _, _ in places), *(k for _, k, _ in places)}))
    return _summary(len(kept), mean, squares / len(kept), lambda rank: float(kept[rank]))


def _summary(count: int, mean: float, variance: float, ranked: Callable[[int], float]) -> _Row:
    """What there is to say, given the value of each rank."""
    quantiles = [ranked(j) + part * (ranked(k) - ranked(j)) for j, k, part in _places(count)]
    return count, ranked(0), ranked(count - 1), mean, math.sqrt(variance), quantiles


def _places(count: int) -> list[tuple[int, int, float]]:
    """For every quantile the ranks that it lies between, and the part of the way from the one to the other."""
    ranks = [q * (count - 1) for q in QUANTILES.values()]
    return [(math.floor(h), min(math.floor(h) + 1, count - 1), h - math.floor(h)) for h in ranks]


def _histograms(source: Source, name: str) -> NDArray[np.int64]:
    """`(channels, 256)`, how often each channel has each level; the first episode tells what white is."""
    channels = source.contents.features[name].shape[2]
    counts, white = np.zeros((channels, _LEVELS), np.int64), None
    for rows in by_episode(source, [name]):
        white = white_of(rows[name]) if white is None else white
        for frame in (as_levels(frame, white) for frame in rows[name]):
            for channel in range(channels):
                counts[channel] += np.bincount(frame[..., channel].reshape(-1), minlength=_LEVELS)
    return counts


def _of_histogram(counts: NDArray[np.int64]) -> _Row:
    total, levels, up_to = int(counts.sum()), np.arange(_LEVELS), np.cumsum(counts)
    if not total:
        return _NONE
    mean = float(counts @ levels) / total
    variance = float(counts @ (levels - mean) ** 2) / total
    return _summary(total, mean, variance, lambda rank: float(np.searchsorted(up_to, rank, side="right")))


def _stacked(rows: Sequence[_Row]) -> Statistics:
    moments = np.array([row[1:5] for row in rows], float).reshape(-1, 4).T
    quantiles = np.array([row[5] for row in rows], float).reshape(-1, len(QUANTILES)).T
    return Statistics(
        np.array([row[0] for row in rows], np.int64), *moments, quantiles=dict(zip(QUANTILES, quantiles, strict=True))
    )


__all__ = ["QUANTILES", "Column", "Statistics", "as_levels", "columns", "is_image", "statistics", "white_of"]
