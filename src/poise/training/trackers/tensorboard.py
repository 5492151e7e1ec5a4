"""Figures for TensorBoard (extra `tensorboard`): `tensorboard --logdir out`."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poise.training.trackers.tool import Tool

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard(Tool):
    """Event files in the folder `tensorboard` of the run. After a resume, later points of the killed run are gone."""

    FOLDER = "tensorboard"

    NEEDS = "torch.utils.tensorboard", "tensorboard"

    def __init__(self) -> None:
        super().__init__()
        self._writer: SummaryWriter | None = None

    def _begin(self, run: Path, about: Mapping[str, Any], step: int) -> int:
        from torch.utils.tensorboard import SummaryWriter

        if not step:
            shutil.rmtree(run / self.FOLDER, ignore_errors=True)
        self._writer = SummaryWriter(str(run / self.FOLDER), purge_step=step + 1 if step else None)
        if not step:
            text = json.dumps(about, indent=1).replace("\n", "\n    ")
            self._writer.add_text("about", f"    {text}")  # indented, Markdown shows it as it is
        return step + 1

    def _send(self, step: int, values: Mapping[str, float]) -> None:
        assert self._writer is not None
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def _end(self) -> None:
        assert self._writer is not None
        self._writer.close()


__all__ = ["TensorBoard"]
