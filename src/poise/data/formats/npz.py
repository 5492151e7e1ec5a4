"""Episodes in one compressed NumPy archive: an entry a feature, `episode_ends`, and what else is known as JSON."""

import json
import math
import tokenize
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from poise.data.flat import Flat
from poise.data.members import ZIP_ERRORS, entries
from poise.data.source import Contents, Format, Rows, Sink, Source
from poise.data.untrusted import MAX_FEATURES, DataError, affordable, broken, parsed
from poise.data.writing import Known

_ENDS, _ABOUT = "episode_ends", "poise_about"
_RESERVED = {_ENDS, _ABOUT, "file", "allow_pickle"}
_DENSE = 2  # deflate makes constant images smaller than 1 / 1000, by not more than this
_ERRORS = (*ZIP_ERRORS, SyntaxError, tokenize.TokenError)


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
        ends, found = arrays.pop(_ENDS), arrays.pop(_ABOUT, None)
        known = Known() if found is None else Known.of(path, _ABOUT, parsed(path, found.tobytes(), _ABOUT))
        columns = {name: array[:, None] if array.ndim == 1 else array for name, array in arrays.items()}
        return Flat(path, columns, ends, *known.checked(path, _ABOUT, len(ends) if ends.ndim else 0))

    def create(self, path: Path, contents: Contents) -> Sink:
        """Keep episodes in memory and write them at the end."""
        taken = _RESERVED & set(contents.features)
        if taken:
            raise ValueError(f"npz got the features {sorted(taken)}, whose names the archive needs: rename them")
        return _Archive(path, contents)


def _arrays(path: Path) -> dict[str, NDArray]:
    with broken(path, "archive", *_ERRORS), zipfile.ZipFile(path) as archive:
        found = {one.filename.removesuffix(".npy"): one for one in entries(path, archive)}
        if len(found) > MAX_FEATURES or len(found) < len(archive.infolist()):
            problem = f"has {len(archive.infolist())} entries, expected at most {MAX_FEATURES}, and no name twice"
            raise DataError(path, "archive", problem)
        return {name: _array(path, archive, one) for name, one in found.items()}


def _array(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> NDArray:
    """One entry, once its header is found to agree with its size."""
    with broken(path, entry.filename, *_ERRORS):
        with archive.open(entry) as file:
            version = npy.read_magic(file)
            read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = read_header(file)
            kind = affordable(path, entry.filename, shape, dtype, _DENSE * entry.compress_size)
            size = math.prod(shape) * kind.itemsize
            if size != entry.file_size - file.tell():
                raise DataError(path, entry.filename, f"declares {shape} of {kind}, but holds another number of bytes")
        with archive.open(entry) as file:
            return npy.read_array(file, allow_pickle=False).astype(kind.newbyteorder("="), copy=False)


class _Archive(Sink):
    def __init__(self, path: Path, contents: Contents) -> None:
        super().__init__(path, contents)
        self._rows: dict[str, list[NDArray]] = {name: [] for name in contents.features}

    def write(self, rows: Rows, steps: int, task: str) -> None:
        for name, kept in self._rows.items():
            kept.append(np.array(rows[name]))

    def finish(self) -> None:
        arrays: dict[str, Any] = {name: np.concatenate(kept) for name, kept in self._rows.items()}
        arrays[_ENDS] = np.cumsum([len(rows) for rows in next(iter(self._rows.values()))])
        arrays[_ABOUT] = np.frombuffer(json.dumps(self.known().plain()).encode(), np.uint8)
        with self.aside.open("wb") as file:  # a path without `.npz` would get one
            np.savez_compressed(file, **arrays)

    def close(self) -> None:
        self._rows.clear()


__all__ = ["Npz"]
