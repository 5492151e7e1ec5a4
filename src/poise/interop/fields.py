"""Fields of an untrusted JSON object, by kind and range: a number in it decides what is built."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from poise.data.untrusted import DataError

T = TypeVar("T")


@dataclass(frozen=True)
class Fields:
    """The fields of a JSON object.

    Attributes:
        path: The file.
        where: Its part, for messages.
        values: Name -> value.
    """

    path: Path
    where: str
    values: Mapping[str, Any]

    @classmethod
    def of(cls, path: Path, where: str, value: Any) -> "Fields":
        """The fields of a value that must be an object.

        Raises:
            DataError: It is none.
        """
        if not isinstance(value, dict):
            raise DataError(path, where, f"got {_short(value)}, expected a JSON object")
        return cls(path, where, value)

    def refuse(self, name: str, expected: str) -> NoReturn:
        """Raise the error of a field.

        Raises:
            DataError: Always.
        """
        got = f"got {_short(self.values[name])}" if name in self.values else "is missing"
        raise DataError(self.path, f"{self.where}: {name}", f"{got}, expected {expected}")

    def inner(self, name: str) -> "Fields":
        """The object in a field."""
        if not isinstance(self.values.get(name), dict):
            self.refuse(name, "a JSON object")
        return Fields(self.path, f"{self.where}: {name}", self.values[name])

    def text(self, name: str) -> str:
        """A string."""
        value = self.values.get(name)
        return value if isinstance(value, str) else self.refuse(name, "a string")

    def flag(self, name: str) -> bool:
        """A truth value."""
        value = self.values.get(name)
        return value if isinstance(value, bool) else self.refuse(name, "true or false")

    def integer(self, name: str, most: int, least: int = 1) -> int:
        """An integer in a range."""
        value = self.values.get(name)
        if type(value) is not int or not least <= value <= most:
            self.refuse(name, f"an integer from {least} to {most}")
        return value

    def number(self, name: str) -> float:
        """A finite number above 0."""
        value = self.values.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            self.refuse(name, "a finite number above 0")
        return float(value)

    def integers(self, name: str, most: int, count: int) -> tuple[int, ...]:
        """A list of up to `count` integers, each from 1 to `most`."""
        value = self.values.get(name)
        if not isinstance(value, list) or not 1 <= len(value) <= count:
            self.refuse(name, f"a list of 1 to {count} integers")
        if any(type(n) is not int or not 1 <= n <= most for n in value):
            self.refuse(name, f"integers from 1 to {most}")
        return tuple(value)

    def choice(self, name: str, options: Mapping[str, T]) -> T:
        """What one of the known words stands for."""
        word = self.values.get(name)
        if not isinstance(word, str) or word not in options:
            self.refuse(name, f"one of {sorted(options)}")
        return options[word]


@contextmanager
def described(path: Path, where: str) -> Iterator[None]:
    """Where a file describes something of ours that checks itself.

    Raises:
        DataError: What it describes cannot be.
    """
    try:
        yield
    except DataError:
        raise
    except (ValueError, TypeError, RuntimeError, OverflowError, MemoryError) as error:
        raise DataError(path, where, f"describes what cannot be built: {str(error)[:500]}") from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:77]}..."


__all__ = ["Fields", "described"]
