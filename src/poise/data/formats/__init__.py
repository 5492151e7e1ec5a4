"""Formats of demonstrations: one file a format, found by itself. Each imports the packages it needs when it opens."""

import importlib
import pkgutil


def load() -> None:
    """Import every format of this package."""
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        importlib.import_module(module.name)


__all__ = ["load"]
