"""Files of an untrusted folder or zip, by the same names."""

import os
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from poise.data.untrusted import MAX_JSON, DataError, affordable, broken, inside, parsed

ZIP_ERRORS = (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError, ValueError, zlib.error)


class Members(ABC):
    """Files of a folder or zip; its methods raise DataError where it is broken.

    Args:
        path: The folder or zip.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def sizes(self, folder: str) -> Mapping[str, int]:
        """File in a folder -> its bytes; none where there is no such folder."""

    @abstractmethod
    def folders(self, folder: str) -> list[str]:
        """Sorted names of the folders in a folder."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The bytes of a file."""

    def json(self, folder: str, name: str) -> Any:
        """The value of a JSON file."""
        field, size = f"{folder}/{name}".lstrip("/"), self.sizes(folder).get(name)
        if size is None or size > MAX_JSON:
            found = f"has {size} bytes" if size else "does not exist"
            raise DataError(self.path, field, f"{found}, expected a file of JSON of at most {MAX_JSON} bytes")
        return parsed(self.path, self.read(field), field)


class Folder(Members):
    """A folder; links that lead out of it are refused.

    Args:
        path: The folder.
    """

    def sizes(self, folder: str) -> Mapping[str, int]:
        """See `Members.sizes`."""
        entries = self._entries(folder)
        return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}

    def folders(self, folder: str) -> list[str]:
        """See `Members.folders`."""
        return sorted(entry.name for entry in self._entries(folder) if entry.is_dir())

    def read(self, name: str) -> bytes:
        """See `Members.read`."""
        with broken(self.path, name, OSError):
            return inside(self.path, name).read_bytes()

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        where = inside(self.path, folder)
        if not where.is_dir():
            return []
        with broken(self.path, folder, OSError), os.scandir(where) as entries:
            return list(entries)


class Zip(Members):
    """A zip, whose directory is untrusted as its files are.

    Args:
        path: The file.
        stack: What closes it.
    """

    def __init__(self, path: Path, stack: ExitStack) -> None:
        super().__init__(path)
        self._found: dict[str, dict[str, zipfile.ZipInfo]] = {}
        with broken(path, "zip", *ZIP_ERRORS):
            self._archive = stack.enter_context(zipfile.ZipFile(path))
        for entry in entries(path, self._archive):
            folder, _, name = entry.filename.rstrip("/").rpartition("/")
            self._found.setdefault(folder, {})[name] = entry

    def sizes(self, folder: str) -> Mapping[str, int]:
        """See `Members.sizes`."""
        return {name: entry.file_size for name, entry in self._found.get(folder, {}).items() if not entry.is_dir()}

    def folders(self, folder: str) -> list[str]:
        """See `Members.folders`."""
        start = f"{folder}/" if folder else ""
        return sorted({f.removeprefix(start).split("/")[0] for f in self._found if f.startswith(start) and f != folder})

    def read(self, name: str) -> bytes:
        """See `Members.read`."""
        folder, _, file = name.rpartition("/")
        entry = self._found[folder][file]
        affordable(self.path, name, (entry.file_size,), np.uint8, entry.compress_size)
        with broken(self.path, name, *ZIP_ERRORS):
            return self._archive.read(entry)


def entries(path: Path, archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """What is in a zip, each file once, none with more bytes than the zip has, and compressed as NumPy and zarr do.

    Raises:
        DataError: A name twice, a size that is a lie, or another compression.
    """
    found, names, size = archive.infolist(), set[str](), path.stat().st_size
    for entry in found:
        if entry.filename in names:
            raise DataError(path, entry.filename[:200], "is in the zip twice, expected every file once")
        if entry.header_offset + entry.compress_size > size:
            problem = f"takes {entry.compress_size} bytes from {entry.header_offset} on of a zip of {size}"
            raise DataError(path, entry.filename[:200], f"{problem}, expected as many as there are: restore the file")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            problem = f"has compression {entry.compress_type}, expected stored or deflated: write the zip anew"
            raise DataError(path, entry.filename[:200], problem)
        names.add(entry.filename)
    return found


__all__ = ["ZIP_ERRORS", "Folder", "Members", "Zip", "entries"]
