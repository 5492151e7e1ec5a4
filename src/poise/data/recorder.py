"""Live recording, step by step: what was saved survives a crash, a loss of power and a full disk."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from poise.data.appending import Writer, begin
from poise.data.facts import Facts
from poise.data.source import Contents, Feature


class Recorder:
    """Adds steps and episodes to a recording, which `read` opens at any time; a context manager.

        with Recorder("demonstrations", Facts(rate=10.0, roles={"action": Role.ACTION})) as recorder:
            for step in robot:
                recorder.add({"state": state, "image": image, "action": action})
            recorder.save_episode("push the T to the goal")

    Steps go to the disk as they come, so memory stays flat for images too. If the path is a recording already, the new
    episodes follow its saved ones.

    Args:
        path: A folder that does not exist, or an earlier recording.
        facts: What holds for all episodes; None takes those of the earlier recording.
        features: What the features look like; None takes them from the first step, or from the earlier recording.

    Raises:
        DataError: A path that is no recording, or a broken one.
        BlockingIOError: Another recorder has it open.
        ValueError: Facts or features that are not those of the earlier recording, or that it cannot hold.
    """

    def __init__(
        self, path: str | Path, facts: Facts | None = None, features: Mapping[str, Feature] | None = None
    ) -> None:
        self._path, self._facts = Path(path), facts
        self._writer: Writer | None = None
        self._closed = False
        if self._path.exists():
            self._writer = Writer(self._path)
            try:
                self._check_same(self._writer.contents, features)
            except ValueError:
                self._writer.close()
                raise
        elif features is not None:
            self._writer = self._create(features)

    def _create(self, features: Mapping[str, Feature]) -> Writer:
        begin(self._path, Contents(features, np.zeros(0, np.int64), self._facts or Facts()))
        return Writer(self._path)

    def _check_same(self, old: Contents, features: Mapping[str, Feature] | None) -> None:
        for got, expected in ((self._facts, old.facts), (features, old.features)):
            if got not in (None, expected):
                raise ValueError(
                    f"Recorder got {got} for {self._path}, expected {expected}, those of its saved episodes: give the "
                    "same or none, or name another path"
                )

    @property
    def episodes(self) -> int:
        """Saved episodes."""
        return 0 if self._writer is None else self._writer.episodes

    @property
    def steps(self) -> int:
        """Steps of the open episode."""
        return 0 if self._writer is None else self._writer.steps

    def add(self, step: Mapping[str, ArrayLike]) -> None:
        """Add one step to the open episode.

        Args:
            step: Feature -> one row of it; a single number is a row of one.

        Raises:
            ValueError: Other features, dtypes or shapes than before, NaN or infinity, or after `close`; the step is not
                added.
            OSError: The disk is full; the step is not added, and may be added again.
        """
        if self._closed:
            raise ValueError(f"add got a step after the recorder of {self._path} was closed: open it anew")
        rows = {str(name): _row(name, value) for name, value in step.items()}
        if self._writer is None:
            self._writer = self._create({name: Feature(row.dtype, row.shape) for name, row in rows.items()})
        looks = self._writer.contents.features
        if rows.keys() != looks.keys():
            raise ValueError(f"add got the features {sorted(rows)}, expected {sorted(looks)}: give each at every step")
        for name, row in rows.items():
            look = looks[name]
            if (row.dtype, row.shape) != (look.dtype, look.shape):
                raise ValueError(
                    f"add got feature {name!r} of {row.dtype} {row.shape}, expected {look.dtype} {look.shape} as in "
                    "all steps before: convert it, or begin another recording"
                )
        self._writer.add({name: row[None] for name, row in rows.items()})

    def save_episode(self, task: str = "") -> None:
        """End the open episode; once this returns, nothing but the loss of the disk can take it.

        Args:
            task: What was to be done, such as `push the T to the goal`.

        Raises:
            ValueError: No step since the last episode.
            OSError: The disk is full; the episode is still open.
        """
        if self._writer is None or not self._writer.steps:
            raise ValueError("save_episode got no step since the last episode, expected at least one: add() some first")
        self._writer.save(task)

    def discard_episode(self) -> None:
        """Forget the steps of the open episode."""
        if self._writer is not None:
            self._writer.discard()

    def close(self) -> None:
        """Let go of the recording; the steps of an open episode are lost, with a warning."""
        self._closed = True
        if self._writer is None:
            return
        steps = self._writer.steps
        try:
            self._writer.discard()
        finally:
            self._writer.close()
            self._writer = None
        if steps:
            warnings.warn(
                f"{self._path}: {steps} steps after the last save_episode() are not kept: call it before closing, or "
                "discard_episode()",
                stacklevel=2,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _row(name: str, value: ArrayLike) -> NDArray:
    row = np.atleast_1d(np.asarray(value))
    if row.dtype.kind == "f" and not np.isfinite(row).all():
        raise ValueError(
            f"add got NaN or infinity in feature {name!r}, expected finite numbers: check the sensor, and discard the "
            "episode if steps are missing"
        )
    return row.astype(row.dtype.newbyteorder("="), copy=False)


__all__ = ["Recorder"]
