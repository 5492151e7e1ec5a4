"""What every reader checks before it trusts a file: paths stay inside, sizes are believable, JSON is bounded.

A number in a file decides how much is allocated, and a string in it which file is opened next. Readers therefore ask
here first; what fails is a `DataError` that names the file and the field.
"""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

MAX_JSON = 64 * 2**20  # bytes of a JSON file or line
MAX_FEATURES = 1000
MAX_EPISODES = 10_000_000
MAX_DIMENSIONS = 8
_KINDS = "biuf"  # numbers and truth values: what `Episodes` hold
_FREE = 2**24  # bytes that any file may declare
_RATIO = 1000  # declared bytes a stored byte: more than codecs reach on recordings, far less than a bomb needs


class DataError(ValueError):
    """A dataset that cannot be read as it is.

    Attributes:
        path: The file.
        field: What in it is wrong, such as `meta/info.json: fps` or `data/action`.

    Args:
        path: The file.
        field: What in it is wrong.
        problem: What was found, what was expected, and the remedy.
    """

    def __init__(self, path: str | Path, field: str, problem: str) -> None:
        super().__init__(f"{path}: {field}: {problem}")
        self.path, self.field, self._problem = Path(path), field, problem

    def __reduce__(self) -> tuple[Any, ...]:
        """Travels between processes, as an error of a reader that runs in another one."""
        return type(self), (self.path, self.field, self._problem)


def inside(root: Path, relative: str, field: str | None = None) -> Path:
    """The path of a name that a file gives, if it lies in the folder `root`, links followed.

    Raises:
        DataError: It does not.
    """
    path = root / relative
    try:
        within = "\0" not in relative and path.resolve().is_relative_to(root.resolve())
        path.exists()  # fails for a name that is too long
    except (OSError, RuntimeError):
        within = False
    if not within:
        raise DataError(root, field or relative, f"got the path {relative!r}, expected one inside of this folder")
    return path


@contextmanager
def broken(path: Path, field: str, *errors: type[Exception]) -> Iterator[None]:
    """Where a library parses untrusted bytes: its errors leave as those of the file.

    Args:
        path: The file.
        field: What is parsed of it.
        *errors: What the library raises for broken bytes.

    Raises:
        DataError: One of these was raised.
    """
    try:
        yield
    except DataError:
        raise
    except errors as error:
        problem = f"is broken ({type(error).__name__}: {str(error)[:300]}), expected a whole file: restore it"
        raise DataError(path, field, problem) from error


def affordable(path: Path, field: str, shape: Sequence[int], dtype: Any, stored: int) -> np.dtype:
    """The dtype, once a declared array is found to be one of numbers that so many stored bytes can hold.

    Args:
        path: The file.
        field: The array in it.
        shape: Declared shape.
        dtype: Declared type.
        stored: Bytes that the file spends on it, compressed or not.

    Raises:
        DataError: Another type than numbers, too many dimensions, a negative one, or more than the file can hold.
    """
    try:
        kind = np.dtype(dtype)
    except (TypeError, ValueError, SyntaxError) as error:
        raise DataError(path, field, f"got the dtype {dtype!r}, expected one of numbers") from error
    if kind.kind not in _KINDS or kind.itemsize > 8:
        raise DataError(path, field, f"got the dtype {kind}, expected integers, floats or truth values")
    if len(shape) > MAX_DIMENSIONS or any(type(n) is not int or n < 0 for n in shape):
        raise DataError(path, field, f"got the shape {tuple(shape)}, expected at most 8 sizes of 0 or more")
    size = math.prod(shape) * kind.itemsize
    if size > max(_FREE, _RATIO * stored):
        raise DataError(
            path, field, f"declares {size} bytes for shape {tuple(shape)} of {kind}, but only {stored} are stored"
        )
    return kind


def parsed(path: Path, text: bytes, field: str) -> Any:
    """The JSON value of some text.

    Raises:
        DataError: It is no JSON, nested too deep, too long, or gives a key twice.
    """
    if len(text) > MAX_JSON:
        raise DataError(path, field, f"got {len(text)} bytes of JSON, expected at most {MAX_JSON}")
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise DataError(path, field, f"is no JSON ({error}): restore the file") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a key of {[key for key, _ in pairs][:20]} is given twice")
    return found


def read_json(path: Path, field: str | None = None) -> Any:
    """The JSON value of a file.

    Raises:
        DataError: No such file, or not JSON.
    """
    field = field or path.name
    if not path.is_file():
        raise DataError(path, field, "does not exist, expected a file of JSON")
    if path.stat().st_size > MAX_JSON:
        raise DataError(path, field, f"has {path.stat().st_size} bytes, expected at most {MAX_JSON}")
    return parsed(path, path.read_bytes(), field)


__all__ = [
    "MAX_DIMENSIONS",
    "MAX_EPISODES",
    "MAX_FEATURES",
    "MAX_JSON",
    "DataError",
    "affordable",
    "broken",
    "inside",
    "parsed",
    "read_json",
]
