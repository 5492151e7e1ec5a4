"""Checks of values: not finite, never changing, at their limits."""

from collections.abc import Iterator

import numpy as np

from poise.data.doctor.check import About, ColumnCheck, runs
from poise.data.source import Finding, Severity
from poise.data.statistics import Column

_SATURATED = 0.1  # share of the rows at one limit
_DISCRETE = 10  # different values, up to which a command is a choice among a few


class NotFinite(ColumnCheck):
    """NaN or infinity: one row of it makes every weight NaN in the first step of training."""

    def column(self, about: About, column: Column) -> Iterator[Finding]:
        """A finding an episode."""
        for rows in column.by_episode(np.flatnonzero(~np.isfinite(column.values))):
            words = (
                f"{about.label(column)} is NaN or infinite in {len(rows)} rows of the episode, first here: repair them "
                "from their neighbours, or drop the episode"
            )
            yield Finding("nan", Severity.ERROR, words, column.feature, *column.place(rows[0]))


class Constant(ColumnCheck):
    """A dimension that never changes: of no use to a policy, and a sensor that may be dead."""

    def column(self, about: About, column: Column) -> Iterator[Finding]:
        """One finding, of the whole dataset."""
        finite = column.values[np.isfinite(column.values)]
        if len(finite) > 1 and about.judges(column) and finite.min() == finite.max():
            words = f"{about.label(column)} is {finite[0]:g} in every row: check the sensor, or leave the dimension out"
            yield Finding("constant", Severity.WARNING, words, column.feature)


class Saturated(ColumnCheck):
    """Commands at their limit for much of the time: the demonstrator wanted more than the interface gave."""

    def column(self, about: About, column: Column) -> Iterator[Finding]:
        """One finding a limit, at its longest stretch; commands of a few different values are none."""
        levels = np.unique(column.values[np.isfinite(column.values)])
        if column.feature not in about.actions or len(levels) <= _DISCRETE:
            return
        for word, limit in (("smallest", levels[0]), ("largest", levels[-1])):
            at = column.values == limit
            if at.mean() > _SATURATED:
                first, _ = max(runs(at), key=lambda run: run[1])
                words = (
                    f"{about.label(column)} is at its {word} value {limit:g} in {at.mean():.0%} of the rows, longest "
                    "from here on: widen the limits of teleoperation, or scale actions so that they are not cut off"
                )
                yield Finding("saturated", Severity.WARNING, words, column.feature, *column.place(first))


__all__ = ["Constant", "NotFinite", "Saturated"]
