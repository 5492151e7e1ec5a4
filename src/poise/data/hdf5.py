"""Untrusted HDF5 files, by h5py (extra `hdf5`): only numbers that lie in the file itself are ever read.

Refused: links to other files or paths, datasets stored elsewhere or composed of others, types that are no numbers,
filters of which HDF5 would load a plugin, and shapes that the stored bytes cannot hold. The library that parses the
file is written in C and hangs or dies in some broken files, so another process tries each file first: all of its
structure, and all of its numbers where it has at most 64 MiB.
"""

from contextlib import AbstractContextManager, ExitStack
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poise.data.quarantine import Limits, quarantined
from poise.data.source import Feature
from poise.data.untrusted import MAX_EPISODES, MAX_JSON, DataError, affordable, broken
from poise.extras import extra

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_ERRORS = (KeyError, RuntimeError, OSError, ValueError, TypeError, AttributeError, MemoryError, OverflowError)
_SQUEEZERS = {1: "deflate", 4: "szip", 5: "nbit", 6: "scaleoffset", 32000: "lzf"}  # that HDF5 and h5py bring along
_OTHERS = {2: "shuffle", 3: "fletcher32"}
_DENSE = 2  # deflate makes constant images smaller than 1 / 1000, by not more than this
_LONGEST = 2**20  # bytes of an attribute
_FREE = 2**24  # bytes of words that any file may hold
_DECODED = 2**26  # bytes of a file whose numbers are tried too
_SECONDS, _PACE, _LONG = 1.0, 2**21, 600.0  # of trying a file: at least, bytes a second, at most
_START, _MEMORY = 5, 2**30  # seconds and bytes that Python needs for itself


class Hdf5:
    """A file opened for reading, whose members are named by their path, such as `data/demo_0/actions`.

    Its methods raise DataError for what is not there, broken, or not to be trusted.

    Args:
        path: The file.
        resources: What closes it.

    Raises:
        DataError: It is none of HDF5, or broken.
        ImportError: h5py is missing.
    """

    def __init__(self, path: Path, resources: ExitStack) -> None:
        self.path, self._library = path, _library()
        if not path.is_file():
            raise DataError(path, "file", "does not exist, expected a file of HDF5")
        with self._broken("file"):
            about = path.stat()
            self._bytes = about.st_size
            _try(path.absolute(), about.st_size, about.st_mtime_ns)
            self._file = resources.enter_context(self._library.File(path, "r"))
        self._groups: dict[str, Any] = {"": self._file}

    def names(self, where: str) -> list[str]:
        """Names in a group, sorted."""
        with self._broken(where):
            group = self._group(where)
            if len(group) > MAX_EPISODES:
                raise DataError(self.path, where, f"has {len(group)} members, expected at most {MAX_EPISODES}")
            found = sorted(group)
            "".join(found).encode()  # fails for names that are no UTF-8
            return found

    def holds_group(self, where: str) -> bool:
        """Whether a member is a group."""
        with self._broken(where):
            return self._kind(where) is self._library.Group

    def look(self, where: str) -> tuple[np.dtype, tuple[int, ...]]:
        """Type, in the byte order of this machine, and shape of an array of numbers."""
        with self._broken(where):
            return self._look(where, self._dataset(where))

    def feature(self, where: str) -> Feature:
        """What the rows of an array look like; single numbers are rows of one."""
        dtype, shape = self.look(where)
        if not shape:
            raise DataError(self.path, where, "is a single number, expected a row a step")
        return Feature(dtype, shape[1:] or (1,))

    def rows(self, where: str, look: Feature, steps: int) -> NDArray:
        """The numbers of an array that has so many rows that look so."""
        dtype, shape = self.look(where)
        if (dtype, shape[:1], shape[1:] or (1,)) != (look.dtype, (steps,), look.shape):
            found = f"is {dtype} {shape}, expected {look.dtype} {(steps, *look.shape)}"
            raise DataError(self.path, where, f"{found} as declared or in the first episode")
        return self.array(where).reshape(steps, *look.shape)

    def length(self, where: str, array: str, attribute: str) -> int:
        """Rows of one array of a group, with which an attribute of the group has to agree, if there is one."""
        shape, said = self.look(f"{where}/{array}")[1], self.attribute(where, attribute)
        if not shape or not shape[0] or said not in (None, shape[0]):
            found = f"has {array} {shape} and {attribute} {said!r}"
            raise DataError(self.path, where, f"{found}, expected as many rows, at least 1")
        return shape[0]

    def array(self, where: str) -> NDArray:
        """The numbers of an array."""
        with self._broken(where):
            dataset = self._dataset(where)
            dtype, _ = self._look(where, dataset)
            return np.asarray(dataset[()]).astype(dtype, copy=False)

    def texts(self, where: str) -> list[str]:
        """The strings of an array of one dimension."""
        with self._broken(where):
            dataset = self._dataset(where)
            if self._library.check_string_dtype(dataset.dtype) is None:
                raise ValueError(f"got the type {dataset.dtype}, expected strings")
            self._believe(dataset)
            return [one.decode() for one in dataset[()]]

    def packets(self, where: str) -> list[bytes]:
        """The rows of an array of bytes, of the same length or not."""
        with self._broken(where):
            dataset = self._dataset(where)
            varying = self._library.check_vlen_dtype(dataset.dtype)
            if (varying, dataset.ndim) == (np.uint8, 1):
                self._believe(dataset)
            elif varying is not None or dataset.dtype != np.uint8 or dataset.ndim != 2:
                raise ValueError(f"got {dataset.dtype} of shape {dataset.shape}, expected rows of bytes")
            else:
                self._look(where, dataset)
            return [np.asarray(one, np.uint8).tobytes() for one in dataset[()]]

    def attribute(self, where: str, name: str) -> Any:
        """A number or text of a group, or None."""
        field = f"{where}: {name}"
        with self._broken(field):
            attributes = self._group(where).attrs
            if name not in attributes:
                return None
            found = attributes.get_id(name)
            if found.shape or found.get_storage_size() > _LONGEST:
                raise ValueError(f"got the shape {found.shape}, expected a number or text of at most {_LONGEST} bytes")
            if found.dtype.kind not in "biufS" and self._library.check_string_dtype(found.dtype) is None:
                raise ValueError(f"got the type {found.dtype}, expected a number or text")
            value = attributes[name]
            return value.item() if found.dtype.kind in "biuf" else _text(value)

    def _broken(self, field: str) -> AbstractContextManager[None]:
        return broken(self.path, field, *_ERRORS)

    def _kind(self, where: str) -> Any:
        above, _, name = where.rpartition("/")
        group = self._group(above)
        if name not in group:
            raise KeyError(f"{above or 'the file'} holds {sorted(group)[:20]}, expected also {name!r}")
        if group.id.links.get_info(name.encode()).type != self._library.h5l.TYPE_HARD:
            raise ValueError("is a link to another file or path, expected the data themselves")
        return group.get(name, getclass=True)

    def _group(self, where: str) -> Any:
        if where not in self._groups:
            if self._kind(where) is not self._library.Group:
                raise TypeError("is no group")
            self._groups[where] = self._file[where]
        return self._groups[where]

    def _dataset(self, where: str) -> Any:
        if self._kind(where) is not self._library.Dataset:
            raise TypeError("is no array")
        dataset = self._file[where]
        made = dataset.id.get_create_plist()
        if dataset.is_virtual or made.get_external_count():
            raise ValueError("lies in other files, expected an array within this one")
        filters = [made.get_filter(i)[0] for i in range(made.get_nfilters())]
        strange = set(filters) - set(_SQUEEZERS) - set(_OTHERS)
        if strange or len(filters) != len(set(filters)) or len(set(filters) & set(_SQUEEZERS)) > 1:
            known = {**_SQUEEZERS, **_OTHERS}
            raise ValueError(f"got the filters {filters}, expected at most one compressor of {known}")
        return dataset

    def _look(self, where: str, dataset: Any) -> tuple[np.dtype, tuple[int, ...]]:
        stored, shape = min(dataset.id.get_storage_size(), self._bytes), dataset.shape or ()
        dtype = affordable(self.path, where, shape, dataset.dtype, _DENSE * stored)
        if dataset.chunks is not None:
            affordable(self.path, where, dataset.chunks, dataset.dtype, _DENSE * stored)
        return dtype.newbyteorder("="), shape

    def _believe(self, dataset: Any) -> None:
        """That so many texts or packets may be stored."""
        stored = min(dataset.id.get_storage_size(), self._bytes)
        if dataset.ndim != 1 or dataset.size * dataset.dtype.itemsize > max(_FREE, 8 * stored):
            raise ValueError(f"got the shape {dataset.shape}, expected one dimension, as long as what is stored")


def created(path: Path) -> Any:
    """A new file for writing, of h5py.

    Raises:
        ImportError: h5py is missing.
    """
    return _library().File(path, "w")


def is_hdf5(path: Path) -> bool:
    """Whether a file looks like one of HDF5: by its suffix, or how it begins."""
    if not path.is_file():
        return False
    if path.suffix in (".hdf5", ".h5"):
        return True
    with path.open("rb") as file:
        return file.read(len(_SIGNATURE)) == _SIGNATURE


@lru_cache(maxsize=4096)
def _try(path: Path, size: int, changed: int) -> None:  # noqa: ARG001 (another file, if it changed)
    """Survive a file in another process, once as long as it does not change.

    Raises:
        DataError: The other process did not, or it found something broken.
    """
    seconds = min(_SECONDS + size / _PACE, _LONG)
    limits = Limits(_START + seconds, _MEMORY + 3 * size, 2**20, 10 * (_START + seconds))
    folders = {str(Path(package.__file__ or "").parents[1]) for package in (np, _library())}
    arguments = [str(path), str(seconds), str(_DECODED), *sorted(folders)]
    quarantined(path, "file", Path(__file__).with_name("hdf5_probe.py"), arguments, limits)


def _text(value: Any) -> str:
    text = value.decode() if type(value) is np.bytes_ or type(value) is bytes else str(value)
    if len(text.encode()) > MAX_JSON:  # which fails for bytes that are no UTF-8
        raise ValueError(f"got a text of {len(text)} letters, expected at most {MAX_JSON} bytes")
    return text


def _library() -> ModuleType:
    with extra("hdf5", "HDF5 needs"):
        import h5py
    return h5py


__all__ = ["Hdf5", "created", "is_hdf5"]
