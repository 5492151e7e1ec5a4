"""Figures for Trackio (extra `trackio`): on this machine, where `trackio show` finds them; `TRACKIO_DIR` moves them."""

import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poise.training.trackers.tool import Tool
from poise.training.trackers.tracker import PROJECT, remembered

if TYPE_CHECKING:
    from trackio import Run  # pyright: ignore[reportMissingImports]


class Trackio(Tool):
    """A run of the project `poise`.

    A run that goes on is written anew. On the server that `TRACKIO_SPACE_ID` or `TRACKIO_SERVER_URL` names it is not:
    there the points that a killed run was ahead by are twice.
    """

    NEEDS = "trackio", "trackio"

    def __init__(self) -> None:
        super().__init__()
        self._run: Run | None = None

    def _begin(self, run: Path, about: Mapping[str, Any], step: int) -> int:
        import trackio  # pyright: ignore[reportMissingImports]

        here = not (os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL"))
        name = remembered(run, "trackio", step, lambda: f"{run.resolve().name}-{uuid.uuid4().hex[:6]}")
        if here and step:
            _delete(name)
        machine = {"auto_log_gpu": False, "auto_log_cpu": False}
        with _offline(trackio.huggingface_hub.constants) if here else nullcontext():
            self._run = trackio.init(PROJECT, name=name, config=dict(about), resume="allow", embed=False, **machine)
        return 0 if here else step + 1

    def _send(self, step: int, values: Mapping[str, float]) -> None:
        assert self._run is not None
        self._run.log(dict(values), step=step)

    def _end(self) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        trackio.finish()  # of the run alone, it would finish it again when the process ends


def _delete(name: str) -> None:
    """Delete what is there of a run."""
    import trackio  # pyright: ignore[reportMissingImports]

    runs = []
    with suppress(ValueError):  # there is no such project, as nothing got there
        runs += trackio.Api().runs(PROJECT)
    for run in runs:
        if run.name == name:
            run.delete()


@contextmanager
def _offline(hub: Any) -> Iterator[None]:
    """Where Trackio does not ask the Hub for the name of its user, as it does for every run wherever there is a token.

    The environment variable would be read too late where the Hub was used before, and would close it for all that
    comes after.
    """
    before, hub.HF_HUB_OFFLINE = hub.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = before


__all__ = ["Trackio"]
