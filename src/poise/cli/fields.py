"""Fields of a recipe by dotted names, such as `policy.network.width`, and objects by the names of their classes."""

import dataclasses
import difflib
import typing
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import tyro

from poise.plain import concrete

T = TypeVar("T")


def fields(value: Any, prefix: str = "") -> Iterator[tuple[str, type, Any]]:
    """Every field of a dataclass and of those that it holds: dotted name, declared type, value."""
    hints = typing.get_type_hints(type(value))
    for field in dataclasses.fields(value):
        name, inner = f"{prefix}{field.name}", getattr(value, field.name)
        yield name, hints[field.name], inner
        if dataclasses.is_dataclass(inner):
            yield from fields(inner, f"{name}.")


def replaced(value: T, name: str, new: Any) -> T:
    """A copy of a dataclass with another value in the field of that dotted name."""
    first, _, rest = name.partition(".")
    inner = replaced(getattr(value, first), rest, new) if rest else new
    return dataclasses.replace(value, **{first: inner})  # pyright: ignore[reportArgumentType]


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """The known name that looks most like this one; the last word weighs most, for people leave out the first ones."""

    def likeness(other: str) -> float:
        whole = difflib.SequenceMatcher(None, name, other).ratio()
        return whole + difflib.SequenceMatcher(None, name.split(".")[-1], other.split(".")[-1]).ratio()

    return max(known, key=likeness)


def choose_classes(value: T, arguments: list[str]) -> tuple[T, list[str]]:
    """Replace objects in the fields of a dataclass by those that `--policy.sampler Heun` names, with their defaults.

    Where a class has a field without a default, it takes its fields from the arguments, which stay there too.

    Args:
        value: A dataclass, such as a recipe.
        arguments: Of a command line.

    Returns:
        The dataclass, and the arguments that name no object.

    Raises:
        ValueError: A class that does not fit the field, or a field without a default that the arguments do not give.
        SystemExit: The value of a field of another type, which is printed.
    """
    rest, queue = [], list(arguments)
    while queue:
        argument = queue.pop(0)
        option, given, text = argument.partition("=")
        name = option.removeprefix("--").replace("-", "_")
        held = {n: kind for n, kind, inner in fields(value) if dataclasses.is_dataclass(inner)}
        if not option.startswith("--") or name not in held or not (given or queue):
            rest.append(argument)
            continue
        value = replaced(value, name, _constructed(name, held[name], text if given else queue.pop(0), arguments))
    return value, rest


def _constructed(name: str, kind: type, text: str, arguments: Sequence[str]) -> Any:
    known = concrete(kind)
    if text not in known:
        raise ValueError(f"got {name}={text}, expected the name of a class: one of {sorted(known)}")
    needed = [field.name for field in dataclasses.fields(known[text]) if _without_default(field)]
    if not needed:
        return known[text]()
    hints, words = typing.get_type_hints(known[text]), _words(name, arguments)
    if missing := [f"--{name}.{field}" for field in needed if not words.get(field)]:
        raise ValueError(
            f"got {name}={text}, whose fields {needed} have no defaults, expected their values: give "
            f"{' and '.join(missing)} too, or make it in the recipe"
        )
    plain = [field for field in words if field in hints and not dataclasses.is_dataclass(hints[field])]
    return known[text](**{f: tyro.cli(hints[f], prog=f"--{name}.{f}", args=words[f]) for f in plain})


def _without_default(field: dataclasses.Field) -> bool:
    return field.init and field.default is field.default_factory is dataclasses.MISSING


def _words(name: str, arguments: Sequence[str]) -> dict[str, list[str]]:
    """What the arguments say of the fields of the object of that dotted name: the words that follow each."""
    found, last = dict[str, list[str]](), list[str]()
    for argument in arguments:
        option, given, text = argument.partition("=")
        if not option.startswith("--"):
            last.append(argument)
            continue
        last = [text] if given else []
        holder, _, field = option.removeprefix("--").replace("-", "_").rpartition(".")
        if holder == name:
            found[field] = last
    return found


__all__ = ["choose_classes", "fields", "nearest", "replaced"]
