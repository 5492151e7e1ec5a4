"""What writers of several formats share: a place aside, names of members, and what a format has no field for."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from poise.data.facts import Facts
from poise.data.untrusted import DataError


class Known(NamedTuple):
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
    def of(cls, path: Path, field: str, plain: Any) -> "Known":
        """What `plain` wrote.

        Raises:
            DataError: Something else.
        """
        try:
            subsets = {str(name): tuple(map(int, numbers)) for name, numbers in plain["subsets"].items()}
            return cls(Facts.of(plain["facts"]), tuple(map(str, plain["tasks"])), subsets)
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise DataError(path, field, f"is not what poise writes ({error}): write the dataset anew") from error

    def checked(self, path: Path, field: str, episodes: int) -> "Known":
        """The same, if it is about so many episodes.

        Raises:
            DataError: It is not.
        """
        strays = [name for name, numbers in self.subsets.items() if not all(0 <= i < episodes for i in numbers)]
        if strays:
            raise DataError(path, field, f"got numbers in {strays} beyond the {episodes} episodes: restore the file")
        if self.tasks and len(self.tasks) != episodes:
            raise DataError(path, field, f"has {len(self.tasks)} tasks for {episodes} episodes, expected one each")
        return self

    def plain(self) -> dict[str, Any]:
        """As JSON data; tasks of which none says anything are left out."""
        subsets = {name: [*numbers] for name, numbers in self.subsets.items()}
        return {"facts": self.facts.plain(), "tasks": [*self.tasks] if any(self.tasks) else [], "subsets": subsets}


def aside(path: Path) -> Path:
    """Where a dataset lies until it is whole, on the same disk."""
    return path.with_name(f".{os.getpid()}.{path.name}")


def remove(path: Path) -> None:
    """Remove a file or folder, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def synced(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def member(format: str, name: str) -> str:
    """A name that can be one component of a path within a dataset.

    Raises:
        ValueError: It cannot.
    """
    long = len(name.encode()) > 200
    if not name or long or name.startswith(".") or not name.isprintable() or set(name) & set("/\\:"):
        expected = "printable characters, none of / \\ :, no dot at the start, at most 200 bytes"
        raise ValueError(f"{format} got the name {name[:200]!r}, expected {expected}: rename it")
    return name


__all__ = ["Known", "aside", "member", "remove", "synced"]
