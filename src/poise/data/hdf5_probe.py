"""Whether the HDF5 library survives a file: it may hang or crash in one that is broken, where Python cannot stop it.

A program of its own, which `poise.data.hdf5` runs in a process with limits and which imports nothing of poise:

    python hdf5_probe.py FILE SECONDS BYTES FOLDERS...

It opens everything that hard links lead to, reads attributes and the index of all chunks, and decodes the numbers,
texts and packets of files of at most BYTES. What cannot be read is told as `field: problem` with the exit status 3.
After SECONDS of the processor, the start not counted, the system ends it. h5py is looked for in FOLDERS too.
"""

import math
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

_LONGEST = 2**20  # bytes of an attribute that is read
_PIECE = 2**24  # bytes decoded at a time
_RATIO = 2000  # declared bytes a stored byte, beyond which the reader decodes nothing


def main(path: str, seconds: str, most: str, *folders: str) -> None:
    """Read all of a file, or print what is broken and exit with status 3."""
    sys.path.extend(folders)
    import h5py
    import h5py.h5o

    where = "file"
    signal.setitimer(signal.ITIMER_PROF, float(seconds))  # ends the process, wherever it is
    try:
        with h5py.File(path, "r") as file:
            decode = os.path.getsize(path) <= int(most)
            for where, above, name in _links(h5py, file):  # noqa: B007 (an error names it)
                _visit(h5py, h5py.h5o.open(above, name), decode)
    except Exception as error:  # whatever h5py makes of a broken file
        print(f"{where}: is broken ({type(error).__name__}: {str(error)[:300]}), expected a whole file: restore it")
        sys.exit(3)


def _links(library: Any, file: Any) -> Iterator[tuple[str, Any, bytes]]:
    """Path, group and name of everything that hard links lead to, once each."""
    waiting, seen = [("", file["/"].id, b".")], set()
    while waiting:
        where, above, name = waiting.pop()
        yield where or "file", above, name
        group = library.h5o.open(above, name)
        for link in group if isinstance(group, library.h5g.GroupID) else ():
            if group.links.get_info(link).type == library.h5l.TYPE_HARD:
                address = library.h5o.get_info(group, link).addr
                if address not in seen:
                    seen.add(address)
                    waiting.append((f"{where}/{link.decode(errors='replace')}".lstrip("/"), group, link))


def _visit(library: Any, thing: Any, decode: bool) -> None:
    types = library.h5t
    plain = (types.INTEGER, types.FLOAT, types.ENUM, types.STRING)
    for number in range(library.h5a.get_num_attrs(thing)):
        attribute = library.h5a.open(thing, index=number)
        kind = attribute.get_type().get_class()
        if kind in plain and attribute.shape == () and attribute.get_storage_size() <= _LONGEST:
            attribute.read(np.empty((), attribute.dtype))
    if isinstance(thing, library.h5d.DatasetID):
        made = thing.get_create_plist()
        if made.get_layout() != library.h5d.VIRTUAL and not made.get_external_count():
            stored = thing.get_storage_size()
            known = all(library.h5z.filter_avail(made.get_filter(i)[0]) for i in range(made.get_nfilters()))
            if decode and known and thing.get_type().get_class() in (*plain, types.VLEN):
                _decode(library.Dataset(thing), stored)


def _decode(array: Any, stored: int) -> None:
    width = array.dtype.itemsize
    size, chunk = (width * math.prod(shape or ()) for shape in (array.shape, array.chunks))
    if array.shape is None or max(size, chunk) > max(_PIECE, _RATIO * stored):
        return
    if not array.shape:
        array[()]
        return
    rows = max(1, _PIECE * len(array) // max(1, size))
    for first in range(0, len(array), rows):
        array[first : first + rows]


if __name__ == "__main__":
    main(*sys.argv[1:])


__all__ = ["main"]
