"""Where the figures of a training go: lines of JSON always, and the tools that people look at curves with.

A tracker is one class in one file of this folder; `poise train --track NAME` finds it by its name.
"""

import importlib
import pkgutil

from poise.training.trackers.tracker import Tracker

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_file.name}")

__all__ = ["Tracker"]
