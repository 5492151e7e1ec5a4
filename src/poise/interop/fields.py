"""Fields of an untrusted JSON object, by kind and range: a number in it decides what is built."""

import json
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from poise.data.untrusted import DataError

T = TypeVar("T")
MAX_SIZE = 65_536  # of a layer


@dataclass(frozen=True)
class Fields:
    """The fields of a JSON object; what asks for one raises a `DataError` that names it.

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
        """The fields of a value that must be an object."""
        if not isinstance(value, dict):
            raise DataError(path, where, f"got {_short(value)}, expected a JSON object")
        return cls(path, where, value)

    def refuse(self, name: str, expected: str) -> NoReturn:
        """Raise the error of a field."""
        got = f"got {_short(self.values[name])}" if name in self.values else "is missing"
        raise DataError(self.path, f"{self.where}: {name}", f"{got}, expected {expected}")

    def must(self, name: str, value: bool | int | str | None, why: str) -> None:
        """Raise unless a field has the only value that we have a counterpart of; null may be left out."""
        got = self.values.get(name)
        if type(got) is not type(value) or got != value:
            self.refuse(name, f"{repr(value) if isinstance(value, str) else json.dumps(value)}: {why}")

    def complete(self, defaults: Mapping[str, Any], names: Collection[str] = ()) -> "Fields":
        """The fields with defaults for those that are left out; no others than these and some names may be set."""
        known = {*defaults, *names}
        unknown = sorted(
            name for name, value in self.values.items() if value not in (None, False) and name not in known
        )
        if unknown:
            expected = f"expected only {sorted(known - {'_target_'})}"
            raise DataError(self.path, self.where, f"sets {unknown[:5]}, {expected}")
        return Fields(self.path, self.where, {**defaults, **self.values})

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

    def integer(self, name: str, most: int) -> int:
        """An integer from 1 to `most`."""
        value = self.values.get(name)
        if type(value) is not int or not 1 <= value <= most:
            self.refuse(name, f"an integer from 1 to {most}")
        return value

    def number(self, name: str) -> float:
        """A finite number above 0."""
        value = self.values.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= sys.float_info.max:
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

    def names(self, name: str) -> list[str]:
        """A list of strings."""
        value = self.values.get(name)
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            self.refuse(name, "a list of names")
        return value

    def shape(self, name: str, image: bool) -> tuple[int, ...]:
        """The shape of a vector, or of an image with the channels last, which a file gives with the channels first."""
        count = 3 if image else 1
        sizes = self.integers(name, 100_000, count)
        if len(sizes) != count:
            self.refuse(name, f"{count} sizes")
        return (*sizes[1:], sizes[0])

    def word(self, name: str, known: Collection[str]) -> str:
        """One of the known words."""
        word = self.values.get(name)
        return word if isinstance(word, str) and word in known else self.refuse(name, f"one of {sorted(known)}")

    def choice(self, name: str, options: Mapping[str, T]) -> T:
        """What one of the known words stands for."""
        return options[self.word(name, options)]


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


__all__ = ["MAX_SIZE", "Fields", "described"]
