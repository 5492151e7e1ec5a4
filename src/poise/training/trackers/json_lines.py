"""Figures as lines of JSON in `metrics.jsonl`: what every run writes."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from poise.files import replace_text
from poise.training.trackers.tracker import Tracker


class JsonLines(Tracker):
    """A line of JSON every time, on the disk at once. JSON has no NaN and no infinity: they become null."""

    FILE = "metrics.jsonl"

    def __init__(self) -> None:
        self._lines: TextIO | None = None

    def open(self, run: Path, about: Mapping[str, Any], step: int) -> None:  # noqa: ARG002 (training.json holds it)
        """Begin `metrics.jsonl`, or cut off what came after the step."""
        file = run / self.FILE
        cut(file, step)
        self._lines = file.open("a")

    def log(self, step: int, figures: Mapping[str, Any]) -> None:
        """Write a line."""
        assert self._lines is not None
        self._lines.write(json.dumps({"step": step, **_strict(figures)}, allow_nan=False) + "\n")
        self._lines.flush()

    def close(self) -> None:
        """Close the file."""
        if self._lines is not None:
            self._lines.close()


def reported(run: Path) -> Iterator[dict[str, Any]]:
    """What a run has reported so far: figures by name, with their `step`."""
    file = run / JsonLines.FILE
    for line in file.read_text().splitlines() if file.is_file() else ():
        yield json.loads(line)


def cut(file: Path, step: int) -> None:
    """Leave the lines of a file, each of them JSON with its `step`, up to this step; at step 0 none."""
    lines = file.read_text().splitlines(keepends=True) if step and file.is_file() else []
    replace_text(file, "".join(line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step))


def _strict(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {name: _strict(inner) for name, inner in value.items()}
        case list() | tuple():
            return [_strict(inner) for inner in value]
        case _:
            return value


__all__ = ["JsonLines", "cut", "reported"]
