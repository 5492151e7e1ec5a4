"""Checks of datasets, which the doctor finds by themselves. To add one, write a class in a file of this package."""

import importlib
import pkgutil


def load() -> None:
    """Import every check of this package."""
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        importlib.import_module(module.name)


__all__ = ["load"]
