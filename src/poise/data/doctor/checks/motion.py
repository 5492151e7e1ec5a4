r"""Checks of motion: jumps, and angles that wrap.

With $s_i = |x_i - x_{i-1}|$ within episodes, a step is a jump where

$$ s_i > 15\, Q_{0.95}(s : s > 0) \quad\text{and}\quad s_i > \tfrac14\,\big[Q_{0.99}(x) - Q_{0.01}(x)\big]. $$

The largest step of the 206 human demonstrations of Push-T (Chi et al. 2023, arXiv 2303.04137) is 6.4 times that
quantile, wraps of the block's angle aside. Steps of 0 are left out, since people pause; the second condition keeps
sensors quiet that mostly rest, whose steps are noise.
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from poise.data.doctor.check import About, ColumnCheck
from poise.data.source import Finding, Severity
from poise.data.statistics import Column

_FACTOR, _QUANTILE, _SHARE = 15.0, 0.95, 0.25
_TURNS, _NEAR = (2 * math.pi, 360.0), 0.05  # a whole turn, and how near to it a step counts as one


class Jump(ColumnCheck):
    """A step far beyond all others: a glitch of a sensor, a cut, or two episodes glued together."""

    def column(self, about: About, column: Column) -> Iterator[Finding]:
        """A finding a jump."""
        if not about.judges(column):
            return
        change = column.steps()
        for row in _jumps(column, change):
            if not _is_turn(change[row]):
                words = (
                    f"{about.label(column)} jumps by {change[row]:.4g} in one step: look at the frames around it, and "
                    "cut the episode there or drop it"
                )
                yield Finding("jump", Severity.WARNING, words, column.feature, *column.place(row))


class Wrap(ColumnCheck):
    """An angle that jumps by a whole turn, which a network has to learn as a cliff."""

    def column(self, about: About, column: Column) -> Iterator[Finding]:
        """One finding, at the first wrap."""
        if not about.judges(column):
            return
        change = column.steps()
        rows = [row for row in _jumps(column, change) if _is_turn(change[row])]
        if rows:
            words = (
                f"{about.label(column)} jumps by about a whole turn {len(rows)} times, first here: give the angle as "
                "sine and cosine, or unwrap it"
            )
            yield Finding("wrap", Severity.WARNING, words, column.feature, *column.place(rows[0]))


def _is_turn(step: float) -> bool:
    return any(abs(abs(step) - turn) < _NEAR * turn for turn in _TURNS)


def _jumps(column: Column, change: NDArray[np.float64]) -> list[int]:
    """Rows that are far from the one before."""
    size, values = np.abs(change), column.values[np.isfinite(column.values)]
    moving = size[np.isfinite(size) & (size > 0)]
    if not len(moving):
        return []
    low, high = np.quantile(values.astype(np.float64), (0.01, 0.99))
    usual = float(np.quantile(moving, _QUANTILE, method="lower"))
    return np.flatnonzero(np.isfinite(size) & (size > max(_FACTOR * usual, _SHARE * (high - low)))).tolist()


__all__ = ["Jump", "Wrap"]
