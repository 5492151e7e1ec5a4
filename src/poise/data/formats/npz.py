"""Episodes in one compressed NumPy archive: an entry a feature, `episode_ends`, and what else is known as JSON."""

import json
import math
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from poise.data.facts import Facts
from poise.data.flat import Flat
from poise.data.source import Contents, Format, Rows, Sink, Source
from poise.data.untrusted import MAX_FEATURES, DataError, affordable, parsed

_ENDS, _ABOUT = "episode_ends", "poise_about"


@dataclass(frozen=True)
class Npz(Format):
    """The archive of NumPy: small data in one file; it is read as a whole."""

    name: ClassVar[str] = "npz"
    suffix: ClassVar[str] = ".npz"

    def recognises(self, path: Path) -> bool:
        """By its suffix."""
        return path.is_file() and path.suffix == ".npz"

    def open(self, path: Path) -> Source:
        """Read the archive; arrays of objects are refused, so nothing in the file is executed."""
        arrays = _arrays(path)
        if _ENDS not in arrays:
            raise DataError(path, _ENDS, f"is missing among {sorted(arrays)}: the exclusive end of every episode")
        ends, about = arrays.pop(_ENDS), arrays.pop(_ABOUT, None)
        facts, tasks, subsets = Facts(), (), {}
        if about is not None:
            plain = parsed(path, about.tobytes(), _ABOUT)
            try:
                facts, tasks = Facts.of(plain["facts"]), tuple(map(str, plain["tasks"]))
                subsets = {str(name): tuple(map(int, numbers)) for name, numbers in plain["subsets"].items()}
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise DataError(path, _ABOUT, f"is not what this format writes ({error}): write it anew") from error
        return Flat(path, arrays, ends, facts, tasks, subsets)

    def create(self, path: Path, contents: Contents) -> Sink:
        """Keep episodes in memory and write them at the end."""
        return _Archive(path, contents)


def _arrays(path: Path) -> dict[str, NDArray]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if len(entries) > MAX_FEATURES:
                raise DataError(path, "archive", f"has {len(entries)} entries, expected at most {MAX_FEATURES}")
            return {one.filename.removesuffix(".npy"): _array(path, archive, one) for one in entries}
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise DataError(path, "archive", f"is broken or none of NumPy ({error}): write it anew") from error
    except zlib.error as error:
        raise DataError(path, "archive", f"is broken ({error}): write it anew") from error


def _array(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> NDArray:
    """One entry, once its header is found to agree with its size."""
    try:
        with archive.open(entry) as file:
            version = npy.read_magic(file)
            read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = read_header(file)
            kind = affordable(path, entry.filename, shape, dtype, entry.compress_size)
            size = math.prod(shape) * kind.itemsize
            if size != entry.file_size - file.tell():
                raise DataError(path, entry.filename, f"declares {shape} of {kind}, but holds another number of bytes")
        with archive.open(entry) as file:
            return npy.read_array(file, allow_pickle=False)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(path, entry.filename, f"is no array of numbers ({error})") from error


class _Archive(Sink):
    def __init__(self, path: Path, contents: Contents) -> None:
        self._path, self._contents = path, contents
        self._rows: dict[str, list[NDArray]] = {name: [] for name in contents.features}
        self._tasks: list[str] = []

    def append(self, rows: Rows, task: str = "") -> None:
        for name, kept in self._rows.items():
            kept.append(np.array(rows[name]))
        self._tasks.append(task)

    def finish(self) -> None:
        contents, first = self._contents, next(iter(self._rows.values()))
        tasks = self._tasks if any(self._tasks) else []
        about: Mapping[str, Any] = {"facts": contents.facts.plain(), "tasks": tasks, "subsets": contents.subsets}
        arrays: dict[str, Any] = {name: np.concatenate(kept) for name, kept in self._rows.items()}
        arrays[_ENDS] = np.cumsum([len(rows) for rows in first])
        arrays[_ABOUT] = np.frombuffer(json.dumps(about).encode(), np.uint8)
        aside = self._path.with_name(f".{os.getpid()}.{self._path.name}")
        try:
            np.savez_compressed(aside, **arrays)
            os.replace(aside, self._path)
        finally:
            aside.unlink(missing_ok=True)

    def abandon(self) -> None:
        self._rows.clear()


__all__ = ["Npz"]
