"""Figures for TensorBoard (extra `tensorboard`): `tensorboard --logdir out`."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poise.training.trackers.tracker import Tracker, flat

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard(Tracker):
    """Event files in the folder `tensorboard` of the run. After a resume, later points of the killed run are gone."""

    FOLDER = "tensorboard"

    NEEDS = "torch.utils.tensorboard", "tensorboard"

    def __init__(self) -> None:
        self._writer: SummaryWriter | None = None

    def open(self, run: Path, about: Mapping[str, Any], step: int) -> None:
        """Begin a folder, or purge what came after the step."""
        self.check()
        from torch.utils.tensorboard import SummaryWriter

        if not step:
            shutil.rmtree(run / self.FOLDER, ignore_errors=True)
        self._writer = SummaryWriter(str(run / self.FOLDER), purge_step=step + 1 if step else None)
        if not step:
            text = json.dumps(about, indent=1).replace("\n", "\n    ")
            self._writer.add_text("about", f"    {text}")  # indented, Markdown shows it as it is

    def log(self, step: int, figures: Mapping[str, Any]) -> None:
        """Add a point to every curve."""
        assert self._writer is not None
        for name, value in flat(figures).items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()


__all__ = ["TensorBoard"]
