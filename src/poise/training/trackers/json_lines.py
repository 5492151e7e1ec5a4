"""Figures as lines of JSON in `metrics.jsonl`: what every run writes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from poise.training.trackers.tracker import Tracker


class JsonLines(Tracker):
    """A line of JSON every time, on the disk at once."""

    FILE = "metrics.jsonl"

    def __init__(self) -> None:
        self._lines: TextIO | None = None

    def open(self, run: Path, about: Mapping[str, Any], step: int) -> None:  # noqa: ARG002 (training.json holds it)
        """Begin `metrics.jsonl`, or cut off what came after the step."""
        file, kept = run / self.FILE, []
        if step and file.is_file():
            complete = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
            kept = [line for line in complete if json.loads(line)["step"] <= step]
        file.write_text("".join(kept))
        self._lines = file.open("a")

    def log(self, step: int, figures: Mapping[str, Any]) -> None:
        """Write a line."""
        assert self._lines is not None
        self._lines.write(json.dumps({"step": step, **figures}) + "\n")
        self._lines.flush()

    def close(self) -> None:
        """Close the file."""
        if self._lines is not None:
            self._lines.close()


__all__ = ["JsonLines"]
