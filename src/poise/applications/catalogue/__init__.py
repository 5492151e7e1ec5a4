"""The applications, one file an area: a new file here whose `APPLICATIONS` lists some is found by itself."""

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache

from poise.applications.application import Application


@cache
def applications() -> Mapping[str, Application]:
    """All of them by name, in the order of the files."""
    modules = (importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))
    return {one.name: one for module in modules for one in module.APPLICATIONS}


def find(name: str) -> Application:
    """One of them.

    Raises:
        ValueError: No application of that name; the nearest is named.
    """
    known = applications()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise ValueError(f"got the task {name!r}, expected one of {', '.join(known)}: did you mean {near!r}?")
    return known[name]


__all__ = ["applications", "find"]
