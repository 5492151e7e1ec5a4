"""What the folder of a recording says of itself, checked before any of its rows is touched; see `formats.recording`.

All raise DataError where the recording is broken.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from poise.data.facts import Facts
from poise.data.source import Contents, Feature
from poise.data.untrusted import MAX_EPISODES, MAX_FEATURES, DataError, affordable, inside, parsed, read_json
from poise.data.writing import Known

HEADER, INDEX, MARK = "recording.json", "episodes.jsonl", "poise recording 1"
_LONGEST = 2**20  # bytes of a line of the index


class Line(NamedTuple):
    """One episode of the index.

    Attributes:
        length: Rows.
        task: What was to be done.
        sha256: Of the rows of every feature, in the order of the header.
    """

    length: int
    task: str
    sha256: tuple[str, ...]

    def text(self) -> bytes:
        """As it stands in the index."""
        return json.dumps({"length": self.length, "task": self.task, "sha256": self.sha256}).encode() + b"\n"


def described(path: Path) -> tuple[Contents, list[Line]]:
    """What is in a recording, and its episodes, once its files are found to be large enough for them."""
    features, facts, subsets = header(path)
    lines = [*_lines(path, len(features))]
    steps = sum(line.length for line in lines)
    for number, (name, look) in enumerate(features.items()):
        file = rows_file(path, number)
        got, expected = file.stat().st_size, steps * row_bytes(look)
        if got < expected:
            problem = (
                f"has {got} bytes for feature {name!r}, expected at least {expected} for the {len(lines)} episodes"
            )
            raise DataError(path, file.name, f"{problem} of {INDEX}: restore the file")
    tasks = tuple(line.task for line in lines) if any(line.task for line in lines) else ()
    known = Known(facts, tasks, subsets).checked(path, f"{HEADER}: subsets", len(lines))
    return Contents(features, np.array([line.length for line in lines], np.int64), *known), lines


def header(path: Path) -> tuple[dict[str, Feature], Facts, dict[str, tuple[int, ...]]]:
    """Features, facts and subsets of a recording."""
    plain = read_json(inside(path, HEADER), HEADER)
    try:
        if plain["format"] != MARK:
            raise DataError(path, f"{HEADER}: format", f"got {plain['format']!r:.100}, expected {MARK!r}")
        features = {_name(one["name"]): look_of(path, one["dtype"], tuple(one["shape"])) for one in plain["features"]}
        if not len(features) == len(plain["features"]) <= MAX_FEATURES or not features:
            found = f"got {len(plain['features'])} with {len(features)} names"
            raise DataError(path, f"{HEADER}: features", f"{found}, expected 1 to {MAX_FEATURES} of different names")
        subsets = {str(name): tuple(map(int, numbers)) for name, numbers in plain["subsets"].items()}
        return features, Facts.of(plain["facts"]), subsets
    except DataError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        problem = f"is not what this format writes ({error!r:.200}): restore the file"
        raise DataError(path, HEADER, problem) from error


def _name(found: Any) -> str:
    if type(found) is not str:
        raise ValueError(f"got the name {found!r:.100} of a feature, expected a text")
    return found


def look_of(path: Path, dtype: Any, shape: tuple[Any, ...]) -> Feature:
    """A feature that a recording can hold, from the plain name of its dtype and the shape of a row."""
    where = f"{HEADER}: features"
    kind = affordable(path, where, (), dtype, 0)
    if kind.name != dtype:
        raise DataError(path, where, f"got the dtype {dtype!r:.100}, expected its plain name {kind.name!r}")
    if not 0 < len(shape) <= 7 or any(type(n) is not int or not 0 < n < 2**31 for n in shape):
        raise DataError(path, where, f"got the shape {shape!r:.100} of a row, expected 1 to 7 sizes above 0")
    return Feature(kind.newbyteorder("<"), shape)


def _lines(path: Path, features: int) -> Iterator[Line]:
    """The complete lines of the index; what a crash tore off is none."""
    index = inside(path, INDEX)
    if not index.is_file():
        raise DataError(path, INDEX, "does not exist, expected a line an episode: restore the file")
    with index.open("rb") as file:
        for number in range(1, MAX_EPISODES + 2):
            text, field = file.readline(_LONGEST), f"{INDEX}: line {number}"
            if not text.endswith(b"\n"):
                if len(text) == _LONGEST:
                    raise DataError(path, field, f"has more than {_LONGEST} bytes, expected one episode")
                return
            yield _line(path, field, text, features)
    raise DataError(path, INDEX, f"has more than {MAX_EPISODES} lines, expected fewer episodes")


def _line(path: Path, field: str, text: bytes, features: int) -> Line:
    plain = parsed(path, text, field)
    try:
        line = Line(plain["length"], str(plain["task"]), tuple(map(str, plain["sha256"])))
    except (KeyError, TypeError) as error:
        raise DataError(path, field, f"got {text[:200]!r}, expected length, task and sha256: restore it") from error
    if type(line.length) is not int or not 0 < line.length < 2**48 or len(line.sha256) != features:
        got = f"the length {line.length!r:.50} and {len(line.sha256)} digests"
        raise DataError(path, field, f"got {got}, expected rows and {features} digests: restore the line")
    return line


def rows_file(path: Path, number: int) -> Path:
    """The rows of a feature, by its number: a name in a recording is never one of a file."""
    file = inside(path, f"{number}.bin")
    if not file.is_file():
        raise DataError(path, file.name, f"does not exist, expected the rows of feature {number}: restore the file")
    return file


def row_bytes(look: Feature) -> int:
    """Bytes of a row."""
    return math.prod(look.shape) * look.dtype.itemsize


__all__ = ["HEADER", "INDEX", "MARK", "Line", "described", "header", "look_of", "row_bytes", "rows_file"]
