"""What writers of several formats share: a place aside, names of members, and what a format has no field for."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from poise.data.facts import Facts
from poise.data.source import Contents
from poise.data.untrusted import DataError


class About(NamedTuple):
    """What is known of a dataset beside its arrays.

    Attributes:
        facts: What holds for all episodes.
        tasks: One instruction an episode, or none.
        subsets: Name -> numbers of episodes.
    """

    facts: Facts = Facts()
    tasks: tuple[str, ...] = ()
    subsets: Mapping[str, tuple[int, ...]] = {}

    @classmethod
    def of(cls, path: Path, field: str, plain: Any) -> "About":
        """What `about` wrote.

        Raises:
            DataError: Something else.
        """
        try:
            subsets = {str(name): tuple(map(int, numbers)) for name, numbers in plain["subsets"].items()}
            return cls(Facts.of(plain["facts"]), tuple(map(str, plain["tasks"])), subsets)
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise DataError(path, field, f"is not what poise writes ({error}): write the dataset anew") from error

    def checked(self, path: Path, field: str, episodes: int) -> "About":
        """The same, if it is about so many episodes.

        Raises:
            DataError: It is not.
        """
        strays = [name for name, numbers in self.subsets.items() if not all(0 <= i < episodes for i in numbers)]
        if strays or (self.tasks and len(self.tasks) != episodes):
            found = f"{len(self.tasks)} tasks and the subsets {strays or sorted(self.subsets)}"
            raise DataError(path, field, f"has {found} for {episodes} episodes, expected one task and numbers of each")
        return self


def about(contents: Contents, tasks: Sequence[str]) -> dict[str, Any]:
    """As JSON data; tasks of which none says anything are left out."""
    subsets = {name: list(numbers) for name, numbers in contents.subsets.items()}
    return {"facts": contents.facts.plain(), "tasks": list(tasks) if any(tasks) else [], "subsets": subsets}


def aside(path: Path) -> Path:
    """Where a dataset lies until it is whole, on the same disk."""
    return path.with_name(f".{os.getpid()}.{path.name}")


def remove(path: Path) -> None:
    """Remove a file or folder, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def member(format: str, name: str) -> str:
    """A name that can be one component of a path within a dataset.

    Raises:
        ValueError: It cannot.
    """
    if (
        not name
        or name.startswith(".")
        or not name.isprintable()
        or set(name) & set("/\\:")
        or len(name.encode()) > 200
    ):
        raise ValueError(
            f"{format} got the name {name[:200]!r}, expected printable characters, none of / \\ :, no dot at the start"
        )
    return name


__all__ = ["About", "about", "aside", "member", "remove"]
