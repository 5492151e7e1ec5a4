"""Demonstrations as flat arrays: every feature has one row a time step, and `ends` says where episodes stop."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from poise.data.facts import Facts
from poise.data.mapped import release

_CHUNK = 65536  # rows checked for NaN at a time, so that memory-mapped features stay on disk


@dataclass(frozen=True, eq=False)
class Episodes:
    """Episodes one after the other.

    Attributes:
        features: Name -> array `(steps, ...)`, in the units of the data; `action[i]` answers the observation of row i.
        ends: `(episodes,)`, cumulative and exclusive: episode k is the rows `ends[k-1]` to `ends[k] - 1`.
        tasks: One instruction an episode, such as `push the T to the goal`; empty where there are none.
        facts: What features are for, their names, and how fast they came.

    Raises:
        ValueError: No feature, unequal lengths, ends that do not increase or do not reach the last row, another number
            of tasks than of episodes, NaN, infinity.
    """

    features: Mapping[str, NDArray]
    ends: NDArray[np.int64]
    tasks: tuple[str, ...] = ()
    facts: Facts = Facts()

    def __post_init__(self) -> None:
        object.__setattr__(self, "ends", np.asarray(self.ends, dtype=np.int64).reshape(-1))
        lengths = {name: len(array) for name, array in self.features.items()}
        if not lengths or len(set(lengths.values())) > 1:
            raise ValueError(
                f"Episodes got features of lengths {lengths}, expected one common length: trim or repair them"
            )
        if not len(self.ends) or np.any(np.diff(self.ends, prepend=0) <= 0):
            raise ValueError(
                f"Episodes got ends {_short(self.ends)}, expected strictly increasing positive step numbers: "
                "each is the row after the last one of its episode"
            )
        steps = next(iter(lengths.values()))
        if self.ends[-1] != steps:
            raise ValueError(
                f"Episodes got a last end of {self.ends[-1]}, expected {steps}, the length of the features"
            )
        if self.tasks and len(self.tasks) != len(self.ends):
            raise ValueError(f"Episodes got {len(self.tasks)} tasks for {len(self.ends)} episodes, expected one each")
        for name, array in self.features.items():
            self._check_finite(name, array)

    def _check_finite(self, name: str, array: NDArray) -> None:
        if not (np.issubdtype(array.dtype, np.number) or array.dtype == np.bool_):
            raise ValueError(f"Episodes got feature {name!r} of dtype {array.dtype}, expected numbers")
        if not np.issubdtype(array.dtype, np.floating):
            return
        for first in range(0, len(array), _CHUNK):
            rows = array[first : first + _CHUNK].reshape(min(_CHUNK, len(array) - first), -1)
            bad = np.flatnonzero(~np.isfinite(rows).all(1))
            release(array)
            if len(bad):
                row = first + int(bad[0])
                raise ValueError(
                    f"Episodes got NaN or infinity in feature {name!r} at row {row} "
                    f"(episode {int(np.searchsorted(self.ends, row, side='right'))}), expected finite numbers: "
                    "drop or repair that episode"
                )

    @property
    def steps(self) -> int:
        """Number of rows."""
        return int(self.ends[-1])

    @property
    def starts(self) -> NDArray[np.int64]:
        """First row of every episode."""
        return np.concatenate([[0], self.ends[:-1]])

    def __len__(self) -> int:
        return len(self.ends)

    def __add__(self, other: "Episodes") -> "Episodes":
        """These episodes and then the other ones, which have the same features.

        Raises:
            ValueError: Features that only one side has, or of different shapes.
        """
        one, two = ({name: array.shape[1:] for name, array in part.features.items()} for part in (self, other))
        if one != two:
            raise ValueError(
                f"Episodes with the features {one} got others with {two} to add, expected the same names and shapes: "
                "drop or rename what only one side has"
            )
        rows = {name: np.concatenate([array, other.features[name]]) for name, array in self.features.items()}
        tasks = self.tasks + other.tasks if self.tasks and other.tasks else ()
        return Episodes(rows, np.concatenate([self.ends, self.steps + other.ends]), tasks, self.facts)

    def select(self, chosen: Sequence[int] | NDArray) -> "Episodes":
        """The chosen episodes, in the given order, as a copy."""
        rows = np.concatenate([np.arange(self.starts[i], self.ends[i]) for i in chosen])
        lengths = self.ends - self.starts
        tasks = tuple(self.tasks[i] for i in chosen) if self.tasks else ()
        arrays = {name: array[rows] for name, array in self.features.items()}
        return Episodes(arrays, np.cumsum(lengths[np.asarray(chosen)]), tasks, self.facts)

    def split(self, share: float, seed: int = 42) -> "tuple[Episodes, Episodes]":
        """Training and validation episodes, as copies; see `held_out`."""
        validation = self.held_out(share, seed)
        return self.select(np.setdiff1d(np.arange(len(self)), validation)), self.select(validation)

    def held_out(self, share: float, seed: int = 42) -> NDArray[np.int64]:
        """Numbers of the `round(share * episodes)` episodes, at least one, that validation gets.

        Drawn as in the published Push-T configurations (Chi et al. 2023, arXiv 2303.04137).

        Raises:
            ValueError: A share that leaves no episode to train on.
        """
        count = max(1, round(share * len(self)))
        if not 0 < share < 1 or count >= len(self):
            raise ValueError(
                f"split got share={share} of {len(self)} episodes, expected a share that leaves some on both sides"
            )
        return np.sort(np.random.default_rng(seed).choice(len(self), size=count, replace=False))


def _short(values: NDArray) -> str:
    return np.array2string(values, threshold=8, edgeitems=3)


__all__ = ["Episodes"]
