"""Figures for Trackio (extra `trackio`): on this machine, where `trackio show` finds them; `TRACKIO_DIR` moves them."""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poise.training.trackers.tracker import PROJECT, Tracker, flat, remembered

if TYPE_CHECKING:
    from trackio import Run  # pyright: ignore[reportMissingImports]


class Trackio(Tracker):
    """A run of the project `poise`.

    Trackio forgets no point: after a resume, those that the killed run was ahead by are there twice.
    """

    NEEDS = "trackio", "trackio"

    def __init__(self) -> None:
        self._run: Run | None = None

    def open(self, run: Path, about: Mapping[str, Any], step: int) -> None:
        """Begin a run, or go on with the one of the same name."""
        self.check()
        import trackio  # pyright: ignore[reportMissingImports]

        name = remembered(run, "trackio", step, lambda: f"{run.resolve().name}-{uuid.uuid4().hex[:6]}")
        machine = {"auto_log_gpu": False, "auto_log_cpu": False}
        self._run = trackio.init(PROJECT, name=name, config=dict(about), resume="allow", embed=False, **machine)

    def log(self, step: int, figures: Mapping[str, Any]) -> None:
        """Add a point to every curve."""
        assert self._run is not None
        self._run.log(flat(figures), step=step)

    def close(self) -> None:
        """Bring everything to the disk."""
        if self._run is not None:
            self._run.finish()


__all__ = ["Trackio"]
