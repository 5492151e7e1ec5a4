"""Figures for Weights & Biases (extra `wandb`): offline, unless `WANDB_MODE=online`; `wandb sync` sends them later."""

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poise.training.trackers.tracker import PROJECT, Tracker, flat, remembered

if TYPE_CHECKING:
    from wandb import Run  # pyright: ignore[reportMissingImports]


class WeightsAndBiases(Tracker):
    """Files in the folder `wandb` of the run.

    A resumed run keeps its id. Points that the server has already are sent again and dropped there, which is right as a
    resumed training repeats them.
    """

    NEEDS = "wandb", "wandb"

    def __init__(self) -> None:
        self._run: Run | None = None

    def open(self, run: Path, about: Mapping[str, Any], step: int) -> None:
        """Begin a run, or go on with the one of the same id."""
        self.check()
        import wandb  # pyright: ignore[reportMissingImports]

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.resolve().name,
            dir=run,
            id=remembered(run, "wandb", step, lambda: uuid.uuid4().hex[:8]),
            resume="allow",
            config=dict(about),
            mode=os.environ.get("WANDB_MODE", "offline"),
            settings=wandb.Settings(console="off", silent=True),  # the bar on the terminal stays as it is
        )

    def log(self, step: int, figures: Mapping[str, Any]) -> None:
        """Add a point to every curve."""
        assert self._run is not None
        self._run.log(flat(figures), step=step)

    def close(self) -> None:
        """Bring everything to the disk, or to the server."""
        if self._run is not None:
            self._run.finish()


__all__ = ["WeightsAndBiases"]
