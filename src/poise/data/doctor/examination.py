"""One examination: every check over every episode and every column."""

from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from poise.data.doctor.check import About, ColumnCheck, EpisodeCheck, Seen
from poise.data.doctor.checks import load
from poise.data.source import Finding, Severity, Source
from poise.data.statistics import columns
from poise.data.untrusted import DataError
from poise.plain import concrete


def examine(source: Source, horizon: int = 16, listed: int = 5) -> Iterator[Finding]:
    """What is wrong with a dataset; nothing if it is clean.

    Rows are read twice, and only one camera of one episode or a few columns of numbers are in memory at a time.

    Args:
        source: An opened dataset.
        horizon: Rows that a window of training will span; shorter episodes are a finding.
        listed: Findings of one code and feature that are given in full; the others are counted in one more.
    """
    about, counts = About(source.contents, horizon), Counter[tuple[str, str | None]]()
    left_out: dict[tuple[str, str | None], Finding] = {}
    for finding in _all(source, about):
        kind = finding.code, finding.feature
        counts[kind] += 1
        if counts[kind] <= listed:
            yield finding
        else:
            left_out[kind] = finding
    for kind, finding in left_out.items():
        more = f"{counts[kind] - listed} more of this kind, of {counts[kind]} in all"
        yield finding._replace(message=more, episode=None, frame=None)


def _all(source: Source, about: About) -> Iterator[Finding]:
    load()
    try:
        yield from source.findings()
    except DataError as error:
        yield _unreadable(error, None)
    of_episodes = [kind() for kind in concrete(EpisodeCheck).values()]
    readable = []
    for number in range(len(source)):
        try:
            seen = _seen(source, about, number)
        except DataError as error:
            yield _unreadable(error, number)
            continue
        readable.append(number)
        for check in of_episodes:
            yield from check.episode(about, seen)
    of_columns = [kind() for kind in concrete(ColumnCheck).values()]
    for column in columns(source, about.numbers, readable):
        for check in of_columns:
            yield from check.column(about, column)


def _unreadable(error: DataError, number: int | None) -> Finding:
    message = f"cannot be read: {error}; restore it from its source, or drop it"
    return Finding("unreadable", Severity.ERROR, message, error.field, number)


def _seen(source: Source, about: About, number: int) -> Seen:
    """Note what checks need of an episode, so that its images need not stay in memory."""
    digest, same, finite = blake2b(), {}, {}
    for group in (about.numbers, *([camera] for camera in about.cameras)):
        for name, rows in source.rows(number, group).items() if group else ():
            same[name] = _like_before(rows)
            if name in about.cameras:
                finite[name] = np.array([bool(np.isfinite(frame).all()) for frame in rows], bool)
            if name in about.recorded:
                digest.update(np.ascontiguousarray(rows).data)
    return Seen(number, int(source.contents.lengths[number]), same, finite, digest.digest())


def _like_before(rows: NDArray) -> NDArray[np.bool_]:
    if rows.ndim < 4:
        return (rows[1:] == rows[:-1]).reshape(max(len(rows) - 1, 0), -1).all(1)
    return np.array([np.array_equal(*pair) for pair in zip(rows[:-1], rows[1:], strict=True)], bool)


__all__ = ["examine"]
