"""Checks of clocks: time that stands still, leaps, or runs backwards."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from poise.data.doctor.check import COUNTER, TIME, About, ColumnCheck
from poise.data.source import Finding, Severity
from poise.data.statistics import Column

_OFF, _LOST = 0.1, 0.5  # periods by which a step may differ, and from which on a frame is missing or there twice


class Clock(ColumnCheck):
    """The features `timestamp`, in seconds, and `frame_index` go up by one period a row."""

    def column(self, about: About, column: Column) -> Iterator[Finding]:
        """A finding an episode: `reversed` where time runs backwards, or else `timestamps` where it is off the grid."""
        if column.feature not in (TIME, COUNTER):
            return
        steps, period = column.steps(), _period(about, column)
        inner = np.ones(len(steps), bool)
        inner[np.concatenate([[0], column.ends[:-1]])] = False
        off = np.flatnonzero(inner & (np.abs(steps - period) > _OFF * period))
        for rows in column.by_episode(off):
            yield self._finding(column, rows, steps[rows], period)

    def _finding(self, column: Column, rows: NDArray[np.intp], steps: NDArray[np.float64], period: float) -> Finding:
        back = np.flatnonzero(steps < 0)
        first = int(back[0]) if len(back) else 0
        place = column.place(int(rows[first]))
        if len(back):
            words = (
                f"{column.feature} goes back by {-steps[first]:.4g} here, and {len(back)} times in the episode: sort "
                "the frames by their time, or drop the episode"
            )
            return Finding("reversed", Severity.ERROR, words, column.feature, *place)
        lost = np.abs(steps - period).max() > _LOST * period
        words = (
            f"{column.feature} goes on by {steps[0]:.4g} instead of {period:.4g} here, and is off the grid in "
            f"{len(rows)} steps of the episode: {'frames are missing or doubled; ' if lost else ''}resample the "
            "episode at a constant rate, or correct the rate of the dataset"
        )
        return Finding("timestamps", Severity.ERROR if lost else Severity.WARNING, words, column.feature, *place)


def _period(about: About, column: Column) -> float:
    """Of a row, as the dataset declares it, or else as most steps are."""
    if column.feature == COUNTER:
        return 1.0
    if about.contents.facts.rate is not None:
        return 1 / about.contents.facts.rate
    ahead = column.steps()
    return float(np.median(ahead[ahead > 0])) if (ahead > 0).any() else 1.0


__all__ = ["Clock"]
