"""Recordings: our own store, a folder of raw rows that grows episode by episode and is read as it lies on the disk.

`recording.json` says what the features are; `0.bin`, `1.bin`, ... hold their rows (little-endian, a file a feature, in
the order of `recording.json`); `episodes.jsonl` has a line an episode: its length, its task, and the SHA-256 of its
rows of every feature. An episode counts once its line is complete, so a crash costs at most the episode that was open:
rows and a torn line beyond the last complete one are ignored, and cut off when the recording goes on.

Opening compares sizes alone, as reading gigabytes at every start would take too long; `findings` verifies all digests.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from poise.data.appending import begin
from poise.data.flat import Flat
from poise.data.folder import HEADER, INDEX, Line, described, header, row_bytes, rows_file
from poise.data.mapped import release
from poise.data.source import Contents, Finding, Format, Rows, Severity, Sink, Source
from poise.data.untrusted import DataError

_BUFFER = 4 * 2**20  # bytes written at a time when packing


@dataclass(frozen=True)
class Recording(Format):
    """A folder of raw rows: for live recording, packed data and mapped reading alike."""

    name: ClassVar[str] = "recording"
    suffix: ClassVar[str] = ".recording"

    def recognises(self, path: Path) -> bool:
        """By its `recording.json`."""
        return (path / HEADER).is_file()

    def open(self, path: Path) -> Source:
        """Map the files; none of their rows is read."""
        try:
            return _Mapped(path)
        except OSError as error:
            raise DataError(path, "files", f"cannot be read ({error}): check their permissions") from error

    def create(self, path: Path, contents: Contents) -> Sink:
        """Write episode by episode; memory holds one."""
        return _Packed(path, contents)


class _Mapped(Source):
    def __init__(self, path: Path) -> None:
        contents, self._lines = described(path)
        if not self._lines:
            raise DataError(path, INDEX, "has no complete line, expected at least one episode: record one first")
        super().__init__(path, contents)
        self._steps = int(contents.ends[-1])
        arrays = {
            name: np.memmap(rows_file(path, number), look.dtype, "r", shape=(self._steps, *look.shape))
            for number, (name, look) in enumerate(contents.features.items())
        }
        self._flat = Flat(path, arrays, contents.ends)

    def rows(self, episode: int, names: Sequence[str]) -> dict[str, NDArray]:
        return self._flat.rows(episode, names)

    def whole(self, names: Sequence[str]) -> dict[str, NDArray]:
        return self._flat.whole(names)

    def findings(self) -> Iterator[Finding]:
        """Rows that belong to no episode, and rows that are not those that were written."""
        features = self.contents.features
        for number, (name, look) in enumerate(features.items()):
            beyond = rows_file(self.path, number).stat().st_size - self._steps * row_bytes(look)
            if beyond:
                message = (
                    f"{beyond} bytes follow the last saved episode: they are ignored, and go when recording goes on"
                )
                yield Finding("unfinished", Severity.WARNING, message, name)
        for episode, line in enumerate(self._lines):
            for (name, rows), expected in zip(self.rows(episode, [*features]).items(), line.sha256, strict=True):
                if hashlib.sha256(rows.data).hexdigest() != expected:
                    message = "the rows are not those that were written: restore the file, or leave the episode out"
                    yield Finding("digest", Severity.ERROR, message, name, episode)
                release(rows)


class _Packed(Sink):
    """A recording in one piece.

    Large writes let the system keep large pages of the files, which are mapped thirty times as fast as small ones.
    """

    def __init__(self, path: Path, contents: Contents) -> None:
        super().__init__(path, contents)
        begin(self.aside, contents)
        self._looks = header(self.aside)[0]
        self._rows = [rows_file(self.aside, number).open("wb", _BUFFER) for number in range(len(self._looks))]
        self._index = (self.aside / INDEX).open("wb", _BUFFER)

    def write(self, rows: Rows, steps: int, task: str) -> None:
        digests = []
        for file, (name, look) in zip(self._rows, self._looks.items(), strict=True):
            plain = np.ascontiguousarray(rows[name].reshape(steps, *look.shape), look.dtype)
            file.write(plain.data)
            digests.append(hashlib.sha256(plain.data).hexdigest())
        self._index.write(Line(steps, task, tuple(digests)).text())

    def finish(self) -> None:
        for file in (*self._rows, self._index):
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        for file in (*self._rows, self._index):
            with suppress(OSError):  # of a disk that is full
                file.close()


__all__ = ["Recording"]
