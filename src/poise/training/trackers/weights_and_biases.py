"""Figures for Weights & Biases (extra `wandb`): offline, unless `WANDB_MODE=online`; `wandb sync` sends them later.

wandb sync out/pusht/wandb
"""

import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poise.training.trackers.tool import Tool
from poise.training.trackers.tracker import PROJECT, remembered

if TYPE_CHECKING:
    from wandb import Run  # pyright: ignore[reportMissingImports]


class WeightsAndBiases(Tool):
    """Files in the folder `wandb` of the run.

    Steps only rise there: of a second file for the same run, `wandb sync` gives other numbers to the steps that the
    first one has. So a run that goes on offline is written anew, and the file that was not sent yet is deleted; where
    it was sent, the whole of it becomes another run. Online a run goes on under its id, after the last step that the
    server has.
    """

    NEEDS = "wandb", "wandb"
    QUIET = {"WANDB_ERROR_REPORTING": "false"}

    def __init__(self) -> None:
        super().__init__()
        self._run: Run | None = None

    def _begin(self, run: Path, about: Mapping[str, Any], step: int) -> int:
        import wandb  # pyright: ignore[reportMissingImports]

        mode, folder = os.environ.get("WANDB_MODE", "offline"), run / "wandb"
        sent = [*folder.glob("run-*"), *folder.glob("offline-run-*/*.synced")]
        for other in folder.glob("offline-run-*"):
            if not list(other.glob("*.synced")):
                shutil.rmtree(other)
        again = step if mode == "online" or not sent else 0
        opened = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.resolve().name,
            dir=run,
            id=remembered(run, "wandb", again, lambda: uuid.uuid4().hex[:8]),
            resume="allow",
            config=dict(about),
            mode=mode,
            settings=wandb.Settings(console="off", silent=True),  # the bar on the terminal stays as it is
        )
        self._run = opened
        return opened.starting_step

    def _send(self, step: int, values: Mapping[str, float]) -> None:
        assert self._run is not None
        self._run.log(dict(values), step=step, commit=True)  # else a step is kept back until the next one

    def _end(self) -> None:
        assert self._run is not None
        self._run.finish()


__all__ = ["WeightsAndBiases"]
