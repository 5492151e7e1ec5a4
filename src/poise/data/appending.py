"""Writing recordings so that nothing that was saved is lost: in a crash, on a full disk, or by two writers at once."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from poise.data.folder import HEADER, INDEX, MARK, Line, described, look_of, row_bytes, rows_file
from poise.data.source import Contents, Feature, Rows
from poise.data.untrusted import DataError, inside
from poise.data.writing import aside, remove, synced


class Writer:
    """A recording open for appending: rows go to the files at once, and an episode counts once it is saved.

    Args:
        path: An existing recording; what a crash left behind its last saved episode is cut off.

    Raises:
        DataError: It is broken.
        BlockingIOError: Another writer has it open.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.steps, self._failed = path, 0, False
        self._files: list[int] = []  # header, which is locked, index, and rows of each feature
        try:
            self._files.append(_locked(path))
            self.contents, lines = described(path)
            self.episodes, self._saved = len(lines), int(self.contents.lengths.sum())
            rows = [rows_file(path, number) for number in range(len(self.contents.features))]
            self._files += [os.open(file, os.O_RDWR) for file in (path / INDEX, *rows)]
            self._written = _complete(path / INDEX)
            self.discard()
        except BaseException:
            self.close()
            raise

    def add(self, rows: Rows) -> None:
        """Write rows of all features to the open episode; none counts if one of them cannot be written.

        Raises:
            OSError: The disk is full, or broken.
        """
        looks = self.contents.features
        plain = [np.ascontiguousarray(rows[name], look.dtype) for name, look in looks.items()]
        for file, look, values in zip(self._files[2:], looks.values(), plain, strict=True):
            first = (self._saved + self.steps) * row_bytes(look)
            self._put(file, values.reshape(-1).view(np.uint8).data, first)
        for digest, values in zip(self._digests, plain, strict=True):
            digest.update(values.data)
        self.steps += len(plain[0])

    def save(self, task: str) -> None:
        """End the open episode, and return once even a loss of power cannot take it.

        Raises:
            OSError: The disk is full, or broken; what was not saved is still open.
            ValueError: The disk failed earlier in this episode.
        """
        if self._failed:
            raise ValueError(f"{self.path}: the disk lost rows of this episode, so it cannot be saved: discard it")
        line = Line(self.steps, task, tuple(digest.hexdigest() for digest in self._digests)).text()
        try:
            self._sync(self._files[2:])
            self._put(self._files[1], memoryview(line), self._written)
            self._sync(self._files[1:2])
        except OSError:
            os.ftruncate(self._files[1], self._written)
            raise
        self._written += len(line)
        self._saved += self.steps
        self.episodes += 1
        self._begin()

    def discard(self) -> None:
        """Cut off whatever is not part of a saved episode."""
        os.ftruncate(self._files[1], self._written)
        for file, look in zip(self._files[2:], self.contents.features.values(), strict=True):
            os.ftruncate(file, self._saved * row_bytes(look))
        self._begin()

    def _sync(self, files: Sequence[int]) -> None:
        try:
            for file in files:
                os.fsync(file)
        except OSError:
            self._failed = True  # the system forgets what it could not write, so a second attempt would prove nothing
            raise

    def close(self) -> None:
        """Let go of the files, and of the lock."""
        while self._files:
            os.close(self._files.pop())

    def _begin(self) -> None:
        self.steps, self._failed = 0, False
        self._digests = [hashlib.sha256() for _ in self.contents.features]

    def _put(self, file: int, data: memoryview, first: int) -> None:
        """Write all bytes at a place of a file."""
        try:
            while data:
                written = os.pwrite(file, data, first)
                data, first = data[written:], first + written
        except OSError as error:
            problem = f"{error.strerror} while writing episode {self.episodes} of {self.path}"
            raise OSError(
                error.errno, f"{problem}: the {self.episodes} saved ones are safe; free some space and try again"
            ) from error


def begin(path: Path, contents: Contents) -> None:
    """Make an empty recording, which is there completely or not at all.

    Raises:
        ValueError: Features that it cannot hold.
        OSError: There is something at the path.
    """
    if not contents.features:
        raise ValueError(f"a recording at {path} got no features, expected at least one")
    looks = {name: _lasting(path, name, look) for name, look in contents.features.items()}
    features = [{"name": name, "dtype": look.dtype.name, "shape": look.shape} for name, look in looks.items()]
    plain = {"format": MARK, "features": features, "facts": contents.facts.plain(), "subsets": contents.subsets}
    place = aside(path)
    place.mkdir(parents=True)
    try:
        for name in (INDEX, *(f"{number}.bin" for number in range(len(looks)))):
            _new(place / name, b"")
        _new(place / HEADER, json.dumps(plain, indent=1).encode())
        synced(place)
        os.rename(place, path)
        synced(path.parent)
    finally:
        remove(place)


def _locked(path: Path) -> int:
    """The header, opened and locked against other writers."""
    import fcntl  # of POSIX systems: recordings are read without it

    header = inside(path, HEADER)
    if not header.is_file():
        raise DataError(path, HEADER, "does not exist, expected a recording, or a path where nothing is: name another")
    file = os.open(header, os.O_RDWR)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(file)
        problem = f"{path} is open in another recorder, expected one at a time: close that one, or name another path"
        raise BlockingIOError(error.errno, problem) from error
    return file


def _complete(index: Path) -> int:
    """Bytes of an index up to the end of its last complete line."""
    with index.open("rb") as file:
        return sum(len(line) for line in file if line.endswith(b"\n"))


def _lasting(path: Path, name: str, look: Feature) -> Feature:
    """A feature as it is written: single numbers become rows of one."""
    try:
        return look_of(path, look.dtype.name, look.shape or (1,))
    except DataError as error:
        raise ValueError(f"a recording cannot hold feature {name!r}: {error}") from error


def _new(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


__all__ = ["Writer", "begin"]
