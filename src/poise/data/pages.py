"""Headers of the pages of Parquet files: what a page says that it becomes, before anybody makes room for it.

They are structures of Thrift's compact protocol, of which the second and third field are the sizes of a page
(https://github.com/apache/parquet-format, `PageHeader`).
"""

import mmap
from collections.abc import Iterator
from pathlib import Path

_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _STRUCT = 1, 2, 3, 7, 8, 12
_DEPTH = 16


def page_sizes(path: Path, spans: list[tuple[int, int]]) -> Iterator[int]:
    """Bytes of every page once it is decompressed, as it says itself.

    Args:
        path: The file.
        spans: Offset and length of chunks of columns.

    Raises:
        ValueError: No headers of pages.
        IndexError: They reach beyond the file.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for first, length in spans:
            at = first
            while at < first + length:
                at, numbers = _struct(data, at, 0)
                size, stored = numbers.get(2, -1), numbers.get(3, -1)
                if min(size, stored) < 0:
                    raise ValueError(f"got a page of {stored} stored bytes for {size}, expected numbers of 0 or more")
                yield size
                at += stored


def _struct(data: mmap.mmap, at: int, depth: int) -> tuple[int, dict[int, int]]:
    """The place after a structure, and its whole numbers by the number of the field."""
    if depth > _DEPTH:
        raise ValueError("got a header of a page nested too deep")
    number, found = 0, {}
    while data[at]:
        kind, step = data[at] & 15, data[at] >> 4
        at, given = (at + 1, 0) if step else _varint(data, at + 1)
        number = number + step if step else given >> 1 ^ -(given & 1)
        if kind in (4, 5, 6):
            at, value = _varint(data, at)
            found[number] = value >> 1 ^ -(value & 1)
        else:
            at = _skipped(data, at, kind, depth)
    return at + 1, found


def _skipped(data: mmap.mmap, at: int, kind: int, depth: int) -> int:
    """The place after a value that does not matter."""
    if kind in (_TRUE, _FALSE):
        return at
    if kind in (_BYTE, _DOUBLE):
        return at + (1 if kind == _BYTE else 8)
    if kind == _BINARY:
        at, length = _varint(data, at)
        return at + length
    if kind == _STRUCT:
        return _struct(data, at, depth + 1)[0]
    raise ValueError(f"got a value of the kind {kind} in the header of a page, expected none such")


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        value |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return at, value
    raise ValueError("got an endless number in the header of a page")


__all__ = ["page_sizes"]
