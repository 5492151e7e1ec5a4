"""Fields of a recipe by dotted names, such as `policy.network.width`, and objects by the names of their classes."""

import dataclasses
import difflib
import typing
from collections.abc import Iterator
from typing import Any, TypeVar

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

    Args:
        value: A dataclass, such as a recipe.
        arguments: Of a command line.

    Returns:
        The dataclass, and the arguments that name no object.

    Raises:
        ValueError: A class that does not fit the field, or has values without defaults.
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
        value = replaced(value, name, _constructed(name, held[name], text if given else queue.pop(0)))
    return value, rest


def _constructed(name: str, kind: type, text: str) -> Any:
    known = concrete(kind)
    if text not in known:
        raise ValueError(f"got {name}={text}, expected the name of a class: one of {sorted(known)}")
    try:
        return known[text]()
    except TypeError as error:
        raise ValueError(
            f"got {name}={text}, which has fields without defaults ({error}): make it in the recipe"
        ) from error


__all__ = ["choose_classes", "fields", "nearest", "replaced"]
